"""Files to start from: what every accepted format becomes at a real start of the trainer.

What the trainer exports is read back by ComfyUI's rules.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import AdapterFileError
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.written_adapters import (
    DOTTED,
    DOWN_UP,
    FLAT,
    RANK,
    Written,
    assert_same,
    difference,
    live_differences,
    start,
    write_lokr,
    write_lora,
    write_norms,
)


def check_start(demo, folder, written, kind, **settings):
    """Start from the file as it is and at its own ranks; what is live, and exported, is the file."""
    file, exported = folder / "start.safetensors", folder / "again.safetensors"
    save_file(written.tensors, file)
    settings = {
        "network_module": f"networks.{kind}_anima",
        "network_weights": str(file),
        "network_dim": RANK,
        **settings,
    }
    for more in ({}, {"dim_from_weights": True, "network_dim": None}):
        network = start(demo, folder, {**settings, **more}).network
        network.save_weights(exported, None, None)
        assert_same(live_differences(network), written.expected)
        assert_same(weight_differences(load_file(exported)), written.expected)


@pytest.mark.parametrize("style", [*DOTTED, *FLAT])
def test_training_starts_from_lora_under_every_prefix(demo, run_folder, base, style):
    written = write_lora(base, style)
    write_norms(written, base, style)
    check_start(demo, run_folder, written, "lora")


@pytest.mark.parametrize("names", DOWN_UP)
def test_training_starts_from_every_spelling_of_down_and_up(demo, run_folder, base, names):
    check_start(demo, run_folder, write_lora(base, names=DOWN_UP[names]), "lora")


def test_training_starts_from_underscored_lora_down(demo, run_folder, base):
    written = write_lora(base, names=("lora.down.weight", "lora.up.weight"))
    renamed = {key.replace(".lora.", "_lora."): t for key, t in written.tensors.items()}
    check_start(demo, run_folder, Written(renamed, written.expected), "lora")


ALPHAS = {
    "absent": None,
    "zero": 0.0,
    "of shape [1]": [1.5],
    "whole": 6,
    "bf16": torch.tensor(2.0, dtype=torch.bfloat16),
    "fp16": torch.tensor(2.0, dtype=torch.float16),
}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_stored_alpha_is_applied_and_written_again(demo, run_folder, base, alpha):
    check_start(demo, run_folder, write_lora(base, alpha=ALPHAS[alpha]), "lora", network_alpha=7)


LOKR = {
    "full": {"factored": ()},
    "low-rank w2": {"factored": ("lokr_w2",)},
    "both low-rank": {"factored": ("lokr_w1", "lokr_w2")},
    "low-rank w1": {"factored": ("lokr_w1",)},
    "no alpha": {"factored": ("lokr_w2",), "alpha": None},
    "alpha 0": {"factored": ("lokr_w2",), "alpha": 0.0},
    "full, alpha 100000": {"alpha": 100_000.0},
    "full, alpha inf": {"alpha": torch.tensor(1e5, dtype=torch.float16)},
    "lycoris": {"factored": ("lokr_w2",), "style": "lycoris"},
    "kohya": {"factored": ("lokr_w2",), "style": "kohya"},
    "with .weight": {"factored": ("lokr_w2",), "suffix": ".weight"},
}


@pytest.mark.parametrize("form", LOKR)
def test_training_starts_from_every_form_of_lokr(demo, run_folder, base, form):
    written = write_lokr(base, **LOKR[form])
    write_norms(written, base, LOKR[form].get("style", "comfy"))
    options = ["lokr_factor=4"]
    if not LOKR[form].get("factored"):
        options.append("lokr_full_matrix=true")
    if "lokr_w1" in LOKR[form].get("factored", ()):  # which no setting here makes of so small a w1
        check_from_file(demo, run_folder, written, "lokr")
    else:
        check_start(demo, run_folder, written, "lokr", network_args=options)


def check_from_file(demo, folder, written, kind):
    save_file(written.tensors, folder / "start.safetensors")
    settings = {
        "network_module": f"networks.{kind}_anima",
        "network_weights": str(folder / "start.safetensors"),
        "dim_from_weights": True,
        "network_dim": None,
    }
    network = start(demo, folder, settings).network
    assert_same(live_differences(network), written.expected)
    network.save_weights(folder / "again.safetensors", None, None)
    assert_same(weight_differences(load_file(folder / "again.safetensors")), written.expected)


@pytest.mark.parametrize(
    ("style", "how"),
    [("fork", "weight"), ("comfy", "weight"), ("comfy", "set_weight"), ("comfy", "diff"),
     ("bare", "w_norm"), ("kohya", "w_norm"), ("kohya", "diff")],
)  # fmt: skip
def test_training_starts_from_every_form_of_norms(demo, run_folder, base, style, how):
    written = write_lora(base, "comfy" if style == "fork" else style)
    write_norms(written, base, style, how)
    check_start(demo, run_folder, written, "lora")


def test_ranks_of_the_file_may_differ_from_layer_to_layer(demo, run_folder, base):
    written, other = write_lora(base, rank=2), write_lora(base, rank=5)
    for key, tensor in other.tensors.items():
        if "llm_adapter" in key:
            written.tensors[key] = tensor
    for name in [name for name in other.expected if "llm_adapter" in name]:
        written.expected[name] = other.expected[name]
    check_from_file(demo, run_folder, written, "lora")
    with pytest.raises(AdapterFileError, match="dim_from_weights"):
        settings = {"network_weights": str(run_folder / "start.safetensors"), "network_dim": 2}
        start(demo, run_folder, settings)


BAD_STARTS = {
    "full difference": (difference, "--base_weights can merge it"),
}


@pytest.mark.parametrize("form", BAD_STARTS)
def test_what_can_only_be_merged_is_no_start_and_says_so(demo, run_folder, base, form):
    make, words = BAD_STARTS[form]
    written = write_lora(base)
    tensors, _ = make(base, "blocks.1.mlp.layer1")
    more = {f"diffusion_model.blocks.1.mlp.layer1.{name}": t for name, t in tensors.items()}
    save_file({**written.tensors, **more}, run_folder / "s.safetensors")
    for own_rank in (False, True):
        settings = {"network_dim": None if own_rank else RANK, "dim_from_weights": own_rank}
        with pytest.raises(AdapterFileError, match=words):
            start(
                demo, run_folder, {**settings, "network_weights": str(run_folder / "s.safetensors")}
            )


def test_fresh_targets_are_named_once_at_a_real_start(demo, run_folder, base, caplog):
    save_file(write_lora(base).tensors, run_folder / "s.safetensors")
    settings = {"network_weights": str(run_folder / "s.safetensors"), "network_dim": RANK}
    caplog.set_level("INFO")
    start(demo, run_folder, settings)
    assert len([line for line in caplog.messages if "start fresh" in line]) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_file_that_is_not_finite_is_no_start_and_no_base(demo, run_folder, base, bad):
    written = write_lora(base)
    next(iter(written.tensors.values()))[0, 0] = bad
    save_file(written.tensors, run_folder / "s.safetensors")
    file = str(run_folder / "s.safetensors")
    for settings in ({"network_weights": file, "network_dim": RANK}, {"base_weights": [file]}):
        with pytest.raises(AdapterFileError, match="holds NaN or infinity"):
            start(demo, run_folder, settings)


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_an_alpha_that_is_not_finite_is_named(demo, run_folder, base, kind):
    alpha = torch.tensor(1e5, dtype=torch.float16)
    lokr = write_lokr(base, factored=("lokr_w2",), alpha=alpha)
    written = write_lora(base, alpha=alpha) if kind == "lora" else lokr
    save_file(written.tensors, run_folder / "s.safetensors")
    settings = {"network_module": f"networks.{kind}_anima", "network_args": None}
    if kind == "lokr":
        settings["network_args"] = ["lokr_factor=4"]
    file = str(run_folder / "s.safetensors")
    for more in ({"network_weights": file, "network_dim": RANK}, {"base_weights": [file]}):
        with pytest.raises(AdapterFileError, match="alpha is inf"):
            start(demo, run_folder, {**settings, **more})


def test_arguments_that_the_file_answers_are_named_once(demo, run_folder, base, caplog):
    save_file(write_lokr(base).tensors, run_folder / "s.safetensors")
    settings = {
        "network_module": "networks.lokr_anima",
        "network_weights": str(run_folder / "s.safetensors"),
        "dim_from_weights": True,
        "network_args": ["lokr_factor=2", "target_modules=q_proj", "train_norm=false"],
        "network_alpha": 3,
    }
    network = start(demo, run_folder, settings).network
    lines = [line for line in caplog.messages if "no effect" in line]
    assert any("network_alpha" in line for line in lines)
    assert sum("target_modules, lokr_factor" in line for line in lines) == 1 and len(lines) == 3
    assert "target_modules" not in network.network_args
