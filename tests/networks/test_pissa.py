"""PiSSA: a LoRA begun on the main part of the weight, of which the file holds the change. PEFT:
test_diffusers_reader.py."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from library.saving.exporting import Exporter, bytes_of_save, export_notes
from library.saving.state_contents import TrainingParts
from library.settings.flags.save import SaveOptions
from networks import lora_anima
from networks.kinds.adapter import NO_DROPOUT, Dropout
from networks.kinds.lora import PiSSA
from networks.workshop.verifying import Written, differences
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import loss_of, rel_l2, tiny_transformer
from tests.helpers.trained_networks import trained
from tests.helpers.written_adapters import live_differences

LAYER = "blocks.0.mlp.layer1"


@pytest.fixture(scope="module")
def network():
    return trained("lora", 2, pissa="true", train_norm=False)


def falling(out, width):
    """A Linear whose singular values fall fast, as where a rank means something."""
    base = nn.Linear(width, out, bias=False)
    left, _, right = torch.linalg.svd(base.weight.detach(), full_matrices=False)
    base.weight.data = left @ torch.diag(0.7 ** torch.arange(len(right))) @ right
    return base


def test_it_starts_on_the_main_part_of_the_weight_and_changes_nothing():
    base = falling(24, 20)
    adapter = PiSSA(base, 3, 2.0, NO_DROPOUT)
    left, values, right = torch.linalg.svd(base.weight.detach(), full_matrices=False)
    main = left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    assert rel_l2(2 / 3 * adapter.start_up @ adapter.start_down, main) < 1e-3
    torch.testing.assert_close(adapter.start_up.norm(dim=0), adapter.start_down.norm(dim=1))
    assert adapter.scale == pytest.approx(2 / 3) and not adapter.delta().any()
    model = tiny_transformer()
    before = loss_of(model).item()
    lora_anima.create_network(1.0, 3, 1, None, None, model, pissa=1).apply_to(None, model)
    assert loss_of(model).item() == before


def test_gradients_are_those_of_factors_that_the_weight_was_split_into():
    """(W - s B0 A0) x + s B A x, with A and B trained: the same gradients, by either path."""
    base, generator = falling(24, 20), torch.Generator().manual_seed(3)
    adapter = PiSSA(base, 3, 2.0, NO_DROPOUT)
    for change in adapter.factors().values():
        change.data.normal_(std=0.1, generator=generator)
    x = torch.randn(2, 5, 20, generator=generator)
    down = (adapter.start_down + adapter.lora_down).detach().requires_grad_()
    up = (adapter.start_up + adapter.lora_up).detach().requires_grad_()
    weight = base.weight.detach()
    rest = weight - adapter.scale * adapter.start_up @ adapter.start_down
    expected = x @ (rest + adapter.scale * up @ down).T
    theirs = torch.autograd.grad(expected.square().sum(), [down, up])
    for found in (adapter(x, weight, None), x @ weight.T + adapter.added(x)):
        torch.testing.assert_close(found, expected)
        mine = torch.autograd.grad(found.square().sum(), list(adapter.factors().values()))
        for one, other in zip(mine, theirs):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_rank_above_the_weights_own_and_dropout_work():
    adapter = PiSSA(nn.Linear(9, 5, bias=False), 7, 7.0, Dropout(neuron=0.5, rank=0.5))
    assert adapter.start_down.shape == (7, 9) and adapter.start_down.any(dim=1).all()
    assert not adapter.start_up[:, 5:].any()
    out = adapter(torch.randn(1, 2, 9), torch.zeros(5, 9), None)
    out.sum().backward()
    assert adapter.lora_up.grad.any()


def test_comfyui_makes_of_the_file_what_was_trained(tmp_path, network):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    file = load_file(tmp_path / "a.safetensors")
    theirs, mine = weight_differences(file), live_differences(network)
    assert theirs.keys() == mine.keys() and len(mine) == 40
    for name, difference in mine.items():
        assert rel_l2(theirs[name], difference) < 3e-6, name
    assert len(file[f"diffusion_model.{LAYER}.lora_down.weight"]) == network.dim == 6
    assert file[f"diffusion_model.{LAYER}.alpha"] == network.alpha == 4
    assert network.network_args["pissa"] == "true"
    assert differences(network, file, Written(torch.float32)) == []


def test_small_changes_survive_a_file_in_bf16(tmp_path, network):
    """As the difference of two products of factors of the weight's size they would not."""
    network.save_weights(tmp_path / "a.safetensors", torch.bfloat16, None)
    theirs = weight_differences(load_file(tmp_path / "a.safetensors"))
    for name, difference in live_differences(network).items():
        assert rel_l2(theirs[name], difference) < 5e-3, name


def test_a_start_from_the_file_goes_on_with_it(tmp_path, network):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    again = lora_anima.create_network(
        1.0, 3, 9, None, None, tiny_transformer(), pissa=1, train_norm=False
    )
    again.load_weights(tmp_path / "a.safetensors")
    like, _ = lora_anima.create_network_from_weights(
        1.0, str(tmp_path / "a.safetensors"), None, None, tiny_transformer(), train_norm=False
    )
    expected = {p.path: p.adapter.delta() for p in network.placements}
    for other in (again, like):
        for placement in other.placements:
            assert rel_l2(placement.adapter.delta(), expected[placement.path]) < 1e-5
    for one, other in zip(again.placements, network.placements):
        for name, tensor in other.adapter.state_dict().items():
            torch.testing.assert_close(one.adapter.state_dict()[name], tensor, rtol=0, atol=2e-6)


def test_the_universal_form_can_have_the_rank_that_was_asked_for(tmp_path, network, caplog):
    caplog.set_level("INFO")
    sizes = {}
    for rank in (None, 2):
        options = SaveOptions(output_dir=str(tmp_path), export_format="universal", export_rank=rank)
        file = Exporter(options, network).write(tmp_path / f"{rank}.safetensors", {})
        sizes[rank] = {len(t) for k, t in load_file(file).items() if "lora_A" in k}
        rest = [line for line in export_notes(options, network) if "LoRA of rank 2" in line]
        assert bool(rest) == (rank == 2)
        assert bytes_of_save(options, network) == pytest.approx(file.stat().st_size, rel=0.3)
    assert sizes == {None: {6}, 2: {2}}
    assert "a LoRA of rank 2 in place of the LoRA: it differs from it by" in caplog.text
    assert "does not hold what was trained" not in caplog.text


def test_a_state_holds_where_it_began(network):
    """Another device may find the main part with other last bits, or other signs."""
    saved = TrainingParts(network, *[None] * 5).factors()
    assert sum(name.endswith("adapter.start_up") for name in saved) == 40
    other = trained("lora", 2, pissa="true", train_norm=False)
    for placement in other.placements:
        placement.adapter.start_down.neg_()
    TrainingParts(other, *[None] * 5).restore_factors(saved, "a state")
    for name, tensor in TrainingParts(other, *[None] * 5).factors().items():
        assert torch.equal(tensor, saved[name])


def test_what_does_not_go_with_it_is_refused(network):
    (problem,) = lora_anima.check_network_args(4, 1, pissa=True, svd_down=True)
    assert "two starts" in problem.message
    (problem,) = network.limit_problems(1.0)
    assert problem.where == "scale_weight_norms = 1" and "does not go with pissa" in problem.message
    assert not network.limit_problems(None) and not trained("lora").limit_problems(1.0)
