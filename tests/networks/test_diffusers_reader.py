"""diffusers' own loader, the authority for what diffusers takes of a file, and ours beside it.

And PEFT, which it brings: the authority for rsLoRA and PiSSA.
"""

import pytest
import torch
from safetensors.torch import load_file

from library.anima_runtime.family import ANIMA_FILES
from library.saving.exporting import Exporter
from library.settings.flags.save import SaveOptions
from networks import lora_anima
from networks.codec import DecodedFile, KeyDecoder, decode_tensors
from networks.kinds.table import KINDS
from networks.merging import changes_of, merge_module, weighted_modules
from networks.reader_rules import Effect
from networks.readers import verdicts
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import golden_vectors, rel_l2, tiny_transformer
from tests.helpers.trained_networks import trained
from tools import convert_lora_format

PATHS = ("blocks.0.mlp.layer1", "blocks.1.cross_attn.k_proj", "llm_adapter.blocks.0.mlp.0")


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("diffusers", "0.42", reason="diffusers reads these files from 0.42 on")
    from tests.helpers.diffusers_reader import DiffusersReader

    return DiffusersReader()


@pytest.fixture(autouse=True)
def clean(theirs):
    theirs.unload()


@torch.no_grad()
def velocity(model):
    vectors = golden_vectors()
    return model(
        vectors["in.x.sq"][:, :, 0], vectors["in.t.sq"], vectors["in.qwen_hidden.a"],
        vectors["in.t5_ids.a"],
    )  # fmt: skip


def saved(network, folder, **options):
    """The file that a run with these options writes."""
    exporter = Exporter(SaveOptions(output_dir=str(folder), **options), network)
    return exporter.write(folder / "a.safetensors", {})


def plain(names=("lora_A.weight", "lora_B.weight"), paths=PATHS, **more):
    """A file for the tiny model. more: factor -> its value for the rows of a weight"""
    weights, tensors = tiny_transformer().state_dict(), {}
    generator = torch.Generator().manual_seed(3)
    for path in paths:
        out, width = weights[f"{path}.weight"].shape
        for name, shape in zip(names, ((2, width), (out, 2))):
            tensors[f"diffusion_model.{path}.{name}"] = torch.randn(*shape, generator=generator)
        for name, value in more.items():
            tensors[f"diffusion_model.{path}.{name}"] = value(out)
    return tensors


def merged(tensors):
    """The tiny model with a file merged into it."""
    model = tiny_transformer()
    modules = weighted_modules(model)
    file: DecodedFile = decode_tensors(tensors, KeyDecoder(modules, tools=True), "a file")
    for path in file.modules:
        merge_module(modules[path], changes_of(file, path, modules[path], KINDS), 1.0)
    return model


def test_the_models_agree_before_anything_is_loaded(theirs):
    assert rel_l2(theirs.velocity(), velocity(tiny_transformer())) < 1e-5


@pytest.mark.parametrize("name", ["lora", "lokr low"])
def test_a_universal_file_does_in_diffusers_what_was_trained(theirs, tmp_path, name):
    """A LoKr by singular values, of so many that nothing is cut away."""
    model = tiny_transformer()
    network = trained(name, 2, model, scale=0.1, train_norm=False, target_modules="*")
    theirs.load(saved(network, tmp_path, export_format="universal", export_rank=1000))
    assert len(theirs.factors()) == 2 * len(network.placements) > 80
    assert rel_l2(velocity(tiny_transformer()), velocity(model)) > 0.1
    assert rel_l2(theirs.velocity(), velocity(model)) < 1e-5


@pytest.mark.parametrize("form", ["diffusers", "universal"])
def test_a_converted_file_does_the_same_in_diffusers(theirs, tmp_path, form):
    model, out = tiny_transformer(), tmp_path / "out.safetensors"
    network = trained("lora", 2, model, scale=0.1, train_norm=False, target_modules="*")
    file = saved(network, tmp_path)
    convert_lora_format.main([str(file), "--format", form, "--output", str(out)])
    theirs.load(out)
    assert len(theirs.factors()) == 2 * len(network.placements) > 80
    assert rel_l2(theirs.velocity(), velocity(model)) < 1e-5


@pytest.mark.parametrize("name", ["lora", "lokr low"])
@pytest.mark.parametrize("train_norm", [False, True])
def test_a_file_for_comfyui_is_refused(theirs, tmp_path, name, train_norm):
    file = saved(trained(name, train_norm=train_norm), tmp_path)
    with pytest.raises(ValueError, match="lora"):
        theirs.load(file)


def test_dora_of_peft_is_read_as_peft_applies_it(theirs):
    tensors = plain(lora_magnitude_vector=lambda rows: torch.linspace(0.5, 2, rows))
    theirs.load(tensors)
    assert rel_l2(theirs.velocity(), velocity(merged(tensors))) < 1e-5
    without = {k: t for k, t in tensors.items() if "magnitude" not in k}
    assert rel_l2(theirs.velocity(), velocity(merged(without))) > 0.1


ALPHA = {"alpha": lambda rows: torch.tensor(1.0)}
FLAT = {"lora_unet_" + path.replace(".", "_"): f"diffusion_model.{path}" for path in PATHS}
FILES = {
    "universal": plain,
    "with alpha": lambda: plain(**ALPHA),
    "down and up": lambda: plain(("lora_down.weight", "lora_up.weight")),
    "linear layer": lambda: plain(("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")),
    "lora.down": lambda: plain(("lora.down.weight", "lora.up.weight")),
    "named by PEFT": lambda: plain(("lora_A.default.weight", "lora_B.default.weight")),
    "without .weight": lambda: plain(("lora_A", "lora_B")),
    "an embedding": lambda: plain(paths=("llm_adapter.embed",)),
    "a norm": lambda: plain() | {"diffusion_model.llm_adapter.norm.w_norm": torch.ones(64)},
    "PEFT's DoRA": lambda: plain(lora_magnitude_vector=torch.ones),
    "DoRA": lambda: plain(dora_scale=lambda rows: torch.ones(rows, 1)),
    "half": lambda: {k: t for k, t in plain().items() if "layer1.lora_B" not in k},
    "flat": lambda: {
        f"{flat}.{key.removeprefix(path + '.')}": tensor
        for flat, path in FLAT.items()
        for key, tensor in plain(("lora_down.weight", "lora_up.weight")).items()
        if key.startswith(path + ".")
    },
    "no prefix": lambda: {k.removeprefix("diffusion_model."): t for k, t in plain().items()},
    "text encoder": lambda: {
        k.replace("diffusion_model", "text_encoders.qwen3_06b.transformer.model"): t
        for k, t in plain().items()
    },
}


@pytest.mark.parametrize("name", FILES)
def test_the_verdict_on_diffusers_is_what_diffusers_does(theirs, name):
    """Refused: it raises. Taken: the values stand in its models. Else they do not."""
    tensors = FILES[name]()
    (found,) = [v for v in verdicts(tensors, {}, ANIMA_FILES) if v.reader.id == "diffusers"]
    effects = {finding.effect for finding in found.findings}
    if Effect.REFUSES in effects:
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            theirs.load(tensors)
        return
    theirs.load(tensors)
    filled = [factor for factor in theirs.factors() if not factor.is_meta]
    by_effect = {f.effect: f.keys for f in found.findings}
    for key in tensors.keys() - {*by_effect.get(Effect.SPOILS, ())}:
        stands = any(torch.equal(tensors[key], factor) for factor in filled)
        assert stands is (key not in by_effect.get(Effect.DROPS, ())), key
    assert (len(theirs.factors()) > len(filled)) is (Effect.SPOILS in effects)
    assert bool(filled) is (found.taken > 0)


ATTENTION, MLP = r"blocks.*self_attn.*", r"blocks.*mlp.*"
EACH = f"({ATTENTION})|({MLP})"


def of_peft(model, **options):
    """PEFT's adapters in a model, by path. Their second factor is random, as after training."""
    peft = pytest.importorskip("peft")
    options = {"target_modules": rf"({ATTENTION}_proj)|({MLP}layer.)", **options}
    peft.inject_adapter_in_model(peft.LoraConfig(lora_alpha=2, r=3, **options), model)
    layers = {p: m for p, m in model.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    return {path.removeprefix("base_model.model."): layer for path, layer in layers.items()}


def ours(**options):
    model = tiny_transformer()
    network = lora_anima.create_network(
        1.0, 3, 2, None, None, model, train_norm=False, exclude_patterns=r"llm.*,.*cross_attn.*", **options
    )
    network.apply_to(None, model)
    return network


@torch.no_grad()
def test_rslora_with_ranks_of_its_own_is_pefts_and_so_is_the_file(tmp_path):
    """A file of alpha and rank as they were asked for would be weaker by the root of the rank."""
    theirs = of_peft(
        tiny_transformer(), use_rslora=True, rank_pattern={MLP: 5}, alpha_pattern={MLP: 4}
    )
    network = ours(
        rslora=True, network_reg_dims=".*mlp.*=5", network_reg_alphas=".*mlp.*=4"
    )
    assert {placement.path for placement in network.placements} == theirs.keys()
    for placement in network.placements:
        layer = theirs[placement.path]
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        up.normal_(std=0.1)
        assert placement.adapter.scale == pytest.approx(layer.scaling["default"], rel=1e-6)
        placement.adapter.lora_down.copy_(down)
        placement.adapter.lora_up.copy_(up)
    network.save_weights(tmp_path / "a.safetensors", None, None)
    read = weight_differences(load_file(tmp_path / "a.safetensors"))
    for path, layer in theirs.items():
        assert rel_l2(read[f"{path}.weight"], layer.get_delta_weight("default")) < 1e-6, path


@torch.no_grad()
def test_pissa_of_the_same_factors_trains_pefts_difference_from_the_original_base(tmp_path):
    base, model = tiny_transformer().state_dict(), tiny_transformer()
    theirs, network = of_peft(model, init_lora_weights="pissa"), ours(pissa=True)
    for placement in network.placements:
        layer, mine = theirs[placement.path], placement.adapter
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert rel_l2(mine.start_up.norm(dim=0), up.norm(dim=0)) < 0.02  # one split, by its lengths
        mine.start_down.copy_(down)
        mine.start_up.copy_(up)
        for factor, change in zip((down, up), mine.factors().values()):
            change.normal_(std=0.02)
            factor.add_(change)
    network.save_weights(tmp_path / "a.safetensors", None, None)
    read = weight_differences(load_file(tmp_path / "a.safetensors"))
    for path, layer in theirs.items():
        trained_weight = layer.base_layer.weight + layer.get_delta_weight("default")
        difference = trained_weight - base[f"{path}.weight"]
        assert rel_l2(read[f"{path}.weight"], difference) < 1e-4, path  # PEFT's is rounded twice
