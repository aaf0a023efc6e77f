"""--base_weights: every format, of any kind of adapter, merged by a real start of the trainer."""

import pytest
import torch
from safetensors.torch import save_file

from library.errors import AdapterFileError
from tests.helpers.running import config_files, make_trainer
from tests.helpers.written_adapters import (
    difference,
    dora_of_columns,
    dora_of_lokr,
    dora_of_rows,
    loha,
    lokr_with_alpha_inf,
    plain,
    prefix,
    random,
    start,
    whole,
    write_lokr,
    write_lora,
    write_norms,
)

MERGED = {
    "LoHa": (loha, "blocks.0.mlp.layer1"),
    "DoRA of rows": (dora_of_rows, "blocks.0.mlp.layer1"),
    "DoRA of columns": (dora_of_columns, "blocks.0.mlp.layer2"),
    "DoRA of LoKr": (dora_of_lokr, "llm_adapter.blocks.0.mlp.0"),
    "full LoKr, alpha inf": (lokr_with_alpha_inf, "blocks.0.mlp.layer1"),
    "difference": (difference, "blocks.0.mlp.layer1"),
    "difference of a norm": (difference, "blocks.0.self_attn.q_norm"),
    "whole weight": (whole, "blocks.0.mlp.layer1"),
    "whole norm": (whole, "t_embedding_norm"),
    "patch embedding": (plain, "x_embedder.proj.1"),
    "timestep embedding": (plain, "t_embedder.1.linear_1"),
    "modulation": (plain, "blocks.0.adaln_modulation_mlp.2"),
    "last layer": (plain, "final_layer.linear"),
    "T5 embedding": (plain, "llm_adapter.embed"),
    "LLM adapter's output": (plain, "llm_adapter.out_proj"),
}


def merged_by_trainer(demo, folder, tensors, **settings):
    """The base weights after a start with --base_weights."""
    save_file(tensors, folder / "base.safetensors")
    settings = {"base_weights": [str(folder / "base.safetensors")], **settings}
    trainer = start(demo, folder, {"output_dir": str(folder / "out"), **settings})
    trainer.network.remove()
    return trainer.base.state_dict()


def assert_merged(found, base, expected, strength):
    for name, weight in base.items():
        if name in expected:
            change = found[name].double() - weight.double()
            torch.testing.assert_close(change, strength * expected[name], atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("style", ["comfy", "kohya"])
@pytest.mark.parametrize("form", MERGED)
def test_base_weights_merge_every_form_that_comfyui_applies(demo, run_folder, base, form, style):
    make, path = MERGED[form]
    tensors, change = make(base, path)
    named = {f"{prefix(style, path)}{name}": tensor for name, tensor in tensors.items()}
    settings = {"base_weights_multiplier": [0.5]}
    found = merged_by_trainer(demo, run_folder, named, **settings)
    assert_merged(found, base, {f"{path}.weight": change}, 0.5)


def test_base_weights_may_be_of_another_kind_and_of_several_kinds(demo, run_folder, base):
    lora, lokr = write_lora(base), write_lokr(base, factored=("lokr_w2",))
    write_norms(lora, base, "fork", "weight")
    save_file(lora.tensors, run_folder / "lora.safetensors")
    files = [str(run_folder / name) for name in ("base.safetensors", "lora.safetensors")]
    settings = {"network_module": "networks.lokr_anima", "base_weights": files}
    settings["base_weights_multiplier"] = [0.25]
    found = merged_by_trainer(demo, run_folder, lokr.tensors, **settings)
    expected = {name: change.clone() for name, change in lora.expected.items()}
    for name, change in lokr.expected.items():
        expected[name] += 0.25 * change
    assert_merged(found, base, expected, 1.0)


def test_base_weights_change_a_bias_where_there_is_one(demo, run_folder, base):
    path = "llm_adapter.out_proj"
    change = random(*base[f"{path}.bias"].shape)
    for name in ("diff_b", "bias.diff"):
        tensors = {f"diffusion_model.{path}.{name}": change}
        found = merged_by_trainer(demo, run_folder, tensors)
        assert_merged(found, base, {f"{path}.bias": change.double()}, 1.0)


PATH = "diffusion_model.blocks.0.mlp.layer1"
BAD_BASES = {
    "a text encoder's key": ({"lora_te_layers_0.alpha": (1,)}, ["of a text encoder"]),
    "a bias that is not there": ({f"{PATH}.diff_b": (384,)}, ["layer1", "has no bias"]),
    "another shape": ({f"{PATH}.diff": (3, 3)}, ["layer1", "(3, 3)"]),
    "DoRA alone": ({f"{PATH}.dora_scale": (384, 1)}, ["layer1", "no factors"]),
    "two kinds in one place": (
        {f"{PATH}.diff": (384, 96), f"{PATH}.lokr_w1": (4, 4), f"{PATH}.lokr_w2": (96, 24)},
        ["layer1", "of a LoKr and of a difference"],
    ),
    "up without down": ({f"{PATH}.lora_up.weight": (384, 3)}, ["comes without lora_down"]),
    "half a LoHa": ({f"{PATH}.hada_w1_a": (384, 3)}, ["comes without hada_w1_b"]),
    "PEFT's DoRA": ({f"{PATH}.lora_magnitude_vector": (384,)}, ["PEFT's DoRA"]),
}


@pytest.mark.parametrize("name", BAD_BASES)
def test_base_weights_that_do_not_fit_are_named_before_anything_is_loaded(demo, run_folder, name):
    shapes, words = BAD_BASES[name]
    save_file(
        {key: torch.ones(shape) for key, shape in shapes.items()}, run_folder / "b.safetensors"
    )
    argv = config_files(demo, run_folder, {"base_weights": [str(run_folder / "b.safetensors")]})
    trainer = make_trainer(argv)
    trainer.prepare_process()
    with pytest.raises(AdapterFileError) as caught:
        trainer.check()
    for word in (*words, "b.safetensors"):
        assert word in str(caught.value), str(caught.value)


def test_base_weights_that_overflow_are_named(demo, run_folder, base):
    file = {f"{PATH}.diff": torch.full_like(base["blocks.0.mlp.layer1.weight"], 3e38)}
    with pytest.raises(AdapterFileError, match="would get NaN or infinity in its weight"):
        merged_by_trainer(demo, run_folder, file, base_weights_multiplier=[10.0])
