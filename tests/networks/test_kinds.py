"""A kind of adapter is one file and one row: a toy in a table of its own goes the whole way.

The toy multiplies what a Linear makes of its input, so it is no difference that is added: each
output gets a gain that is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from library.errors import AdapterFileError
from networks import lora_anima
from networks._anima_adapter_common import AnimaNetworks
from networks.kinds.adapter import at_use
from networks.kinds.kind import Kind, KindArguments, Kinds, Training
from networks.kinds.linear import LinearAdapter, base_product
from networks.kinds.stored import check_shape
from networks.kinds.table import KINDS
from networks.merging import merge_file
from tests.helpers.tiny import loss_of, tiny_transformer


class Gain(LinearAdapter):
    """output = (1 + multiplier * gain) * (weight @ x) + bias"""

    zero_factor = "gain"
    gain: nn.Parameter

    def __init__(self, out_features, dropout):
        super().__init__(None, 1.0, dropout)
        self._add_factors({"gain": (out_features,)})

    def forward(self, x, weight, bias):
        gain = at_use(1 + self.multiplier * self.gain, x)
        out = base_product(x, weight, None) * gain
        return out if bias is None else out + bias

    def merged(self, parameters):
        return {"weight": parameters["weight"] * (1 + self.multiplier * self.gain)[:, None]}

    @torch.no_grad()
    def limit_norm(self, limit):
        norm = self.gain.norm()
        self.gain.mul_((limit / norm.clamp(min=1e-30)).clamp(max=1.0))
        return norm


@dataclass(frozen=True, kw_only=True)
class GainArguments(KindArguments):
    ALIASES: ClassVar[Mapping[str, str]] = {"colour": "gain_colour"}
    gain_colour: str = "none"

    def make(self, base, rank, alpha, dropout):
        return Gain(base.out_features, dropout)


def gain_as_file(base, factors, dropout):
    check_shape(factors["gain"].shape, (base.out_features,))
    return Gain(base.out_features, dropout)


def gain_change(factors, weight):
    return weight.float() * factors["gain"].to(weight.device, torch.float32)[:, None]


TOY = Kind(
    "Gain",
    factors={"gain": ("gain", "gain.weight")},
    change=gain_change,
    training=Training("gain", GainArguments, gain_as_file, "any"),
)
TABLE = Kinds(*KINDS.values(), TOY)
TOYS = AnimaNetworks("Gain", TABLE)


def started(networks=TOYS, **kwargs):
    """A model with every gain random, as after training, and its network."""
    model = tiny_transformer()
    network = networks.create_network(1.0, None, None, None, None, model, **kwargs)
    network.apply_to(None, model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, network


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "a.safetensors"
    started()[1].save_weights(path, None, None)
    return path


def test_it_is_applied_and_strength_zero_is_the_base():
    model, network = started()
    base = loss_of(tiny_transformer()).item()
    assert loss_of(model).item() != pytest.approx(base, rel=1e-3)
    network.set_multiplier(0.0)
    assert loss_of(model).item() == base


def test_one_step_moves_its_factors_and_nothing_else():
    model, network = started()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups, names = network.prepare_optimizer_params(None, None, 1e-3)
    assert names == ["unet"]
    optimizer = torch.optim.AdamW(groups, weight_decay=0)
    loss_of(model).backward()
    optimizer.step()
    network.check_trainables()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n in before if ".adapter." in n}
    assert {n.rpartition(".")[2] for n in moved} == {"gain", "w_norm"}


def test_it_is_written_with_its_spelling_and_read_back_with_its_values(file):
    model, _ = started()
    path = "blocks.0.mlp.layer1"
    written = load_file(file)
    gain = model.get_submodule(path).adapter.gain
    assert torch.equal(written[f"diffusion_model.{path}.gain"], gain)
    fresh = TOYS.create_network(1.0, None, None, None, None, tiny_transformer())
    fresh.load_weights(file)
    as_file, _ = TOYS.create_network_from_weights(1.0, str(file), None, None, tiny_transformer())
    for other in (fresh, as_file):
        again = other.export_tensors(torch.float32)
        assert again.keys() == written.keys() and all(
            torch.equal(again[k], written[k]) for k in again
        )


def test_it_is_merged_as_it_is_applied(file):
    model, network = started()
    live = loss_of(model).item()
    with network.merged():
        assert loss_of(model).item() == pytest.approx(live, rel=1e-5)
    assert loss_of(model).item() == live
    base = tiny_transformer()
    merge_file(base, str(file), 1.0, TABLE)
    assert loss_of(base).item() == pytest.approx(live, rel=1e-5)


def test_it_decides_how_its_norm_is_limited():
    _, network = started()
    told = network.scale_weight_norms(0.2)
    norms = torch.stack([p.adapter.gain.norm() for p in network.placements if not p.is_norm])
    assert told["max_norm/keys_scaled"] > 0
    assert norms.max().item() == pytest.approx(0.2, rel=1e-5)


def test_its_arguments_are_its_own():
    _, network = started(colour="red")
    assert network.network_args["gain_colour"] == "red"
    assert "networks.gain_anima" in str(
        AnimaNetworks("LoRA", TABLE).check_network_args(4, 1, colour="red")
    )
    assert "networks.lokr_anima" in str(TOYS.check_network_args(4, 1, lokr_factor=4))


def test_a_file_of_another_kind_is_refused_by_name(tmp_path, file):
    with pytest.raises(AdapterFileError, match=r"a Gain file, not a LoRA.*networks\.gain_anima"):
        AnimaNetworks("LoRA", TABLE).create_network_from_weights(
            1.0, str(file), None, None, tiny_transformer()
        )
    with pytest.raises(AdapterFileError, match="no factor of"):
        lora_anima.create_network_from_weights(1.0, str(file), None, None, tiny_transformer())
    wrong = {"diffusion_model.blocks.0.mlp.layer1.gain": torch.ones(3)}
    save_file(wrong, tmp_path / "b.safetensors")
    with pytest.raises(AdapterFileError, match=r"weight of shape \(3,\)"):
        TOYS.create_network_from_weights(
            1.0, str(tmp_path / "b.safetensors"), None, None, tiny_transformer()
        )


def test_every_row_says_how_its_files_are_spelled_and_merged():
    factors = [factor for kind in KINDS.values() for factor in kind.factors]
    assert len(factors) == len(set(factors))
    for name, kind in KINDS.items():
        assert kind.name == name
        assert bool(kind.training) != bool(kind.merged_as) or name == "norm"


def test_two_kinds_with_one_factor_are_our_mistake():
    with pytest.raises(AssertionError, match="gain is a factor of two kinds"):
        Kinds(TOY, Kind("Twin", {"gain": ("gain",)}, gain_change))
