"""tools/convert_lora_format.py: the same effect in every format, and nothing left out in silence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import AdapterFileError, ConfigError
from library.system.tensor_files import read_header
from networks.codec import write_adapter
from tests.helpers import documented
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import golden, rel_l2, tiny_transformer
from tests.helpers.workshop import (
    apart,
    applied,
    assert_same_effect,
    deltas,
    of_every_kind,
)
from tools.convert_lora_format import main

BASE = golden("anima_tiny_dit.safetensors")
LORA, LOKR, LOKR_LOW = (golden(f"adapter_{n}.safetensors") for n in ("lora", "lokr_full", "lokr_low"))
PREFIXES = {
    "comfy": "diffusion_model.",
    "kohya": "lora_unet_",
    "universal": "diffusion_model.",
    "peft": "base_model.model.",
    "diffusers": ("transformer.", "text_conditioner."),
}


@pytest.fixture
def convert(tmp_path):
    """Convert a file with these options; the path of what was written."""

    def call(file, form, *options, name="out"):
        out = tmp_path / f"{name}.safetensors"
        main([str(word) for word in (file, "--format", form, "--output", out, *options)])
        return out

    return call


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A module of every kind, and its metadata."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("mixed") / "mixed.safetensors"
    args = json.dumps({"train_norm": "True", "lokr_factor": "8", "self_attn_lr": "1e-4"})
    entries = {"ss_network_module": "networks.lokr_anima", "ss_network_args": args, "ss_steps": "7",
               "ss_adapted_parts": "{}", "modelspec.hash_sha256": "0xabc"}  # fmt: skip
    write_adapter(path, of_every_kind(tiny_transformer()), entries)
    return path


@pytest.mark.parametrize("form", PREFIXES)
def test_a_lora_does_the_same_in_every_format(convert, form, capsys):
    out = convert(LORA, form)
    keys = load_file(out).keys()
    assert all(key.startswith(PREFIXES[form]) for key in keys)
    is_bare = form in ("universal", "peft", "diffusers")
    assert {key.rpartition("lora_")[2] for key in keys if "lora_" in key[12:]} == (
        {"A.weight", "B.weight"} if is_bare else {"down.weight", "up.weight"}
    )
    assert any(key.endswith(".alpha") for key in keys) is not is_bare
    back = convert(out, "comfy", name="back")
    assert_same_effect(applied(back), applied(LORA))
    weights = weight_differences(load_file(back)), weight_differences(load_file(LORA))
    assert weights[0].keys() == weights[1].keys()
    assert all(rel_l2(weights[0][name], weights[1][name]) < 1e-6 for name in weights[1])
    assert "Exact in every module." in capsys.readouterr().out


@pytest.mark.parametrize("file", [LOKR, LOKR_LOW], ids=["full", "low"])
def test_a_lokr_keeps_its_factors_where_the_format_has_them(convert, file):
    kohya = convert(file, "kohya")
    assert all(key.startswith("lora_unet_") for key in load_file(kohya))
    back, before = load_file(convert(kohya, "comfy", name="back")), load_file(file)
    assert back.keys() == before.keys()
    assert all(torch.equal(back[key], before[key]) for key in before)


def test_a_lokr_of_all_its_ranks_does_the_same_and_fewer_are_off_as_told(convert, tmp_path, capsys):
    matrices = {k: v for k, v in load_file(LOKR).items() if not k.endswith("w_norm")}
    save_file(matrices, tmp_path / "matrices.safetensors")
    whole = convert(LOKR, "universal", "--error", "0", "--drop", "norms")
    assert_same_effect(applied(whole), applied(tmp_path / "matrices.safetensors"), 1e-5)
    assert "left out: differences of norms, 24 keys" in capsys.readouterr().out
    less = convert(LOKR, "comfy", "--rank", 4, name="less")
    found, expected = (weight_differences(load_file(file)) for file in (less, LOKR))
    off = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    size = sum(float(change.square().sum()) for change in expected.values())
    assert f"all: error {(off / size) ** 0.5:.3%};" in capsys.readouterr().out
    for name, change in expected.items():
        if change.dim() == 1:
            assert torch.equal(found[name], change)
            continue
        values = torch.linalg.svdvals(change)
        assert abs(rel_l2(found[name], change) - float(values[4:].norm() / values.norm())) < 1e-5


def test_all_that_a_format_cannot_hold_is_told_at_once(convert, mixed, tmp_path):
    strange = {**load_file(mixed), "diffusion_model.no.such.lora_up.weight": torch.ones(2, 2)}
    save_file(strange, tmp_path / "strange.safetensors")
    with pytest.raises(AdapterFileError) as told:
        convert(tmp_path / "strange.safetensors", "universal")
    for words in ("1 keys", "--drop unknown", "--drop norms", "--drop biases", "--rank", "--base",
                  "LoHa and LoKr and LoRA with DoRA and difference and whole weight"):  # fmt: skip
        assert words in str(told.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_every_kind_becomes_a_lora_or_stays_what_it_is(convert, mixed):
    expected = applied(mixed)
    assert_same_effect(applied(convert(mixed, "kohya", name="kohya")), expected)
    loras = convert(mixed, "comfy", "--error", "0", "--base", BASE, name="loras")
    endings = {key.rpartition(".")[2] for key in load_file(loras)}
    assert endings == {"weight", "alpha", "w_norm", "diff_b", "dora_scale"}
    assert_same_effect(applied(loras), expected, 1e-5)
    bare = convert(mixed, "universal", "--error", "0", "--base", BASE, "--drop", "norms", "biases")
    assert {key.rpartition(".lora_")[2] for key in load_file(bare)} == {"A.weight", "B.weight"}
    wholes = {k: v for k, v in load_file(mixed).items() if not k.endswith(("w_norm", "diff_b"))}
    save_file(wholes, bare.parent / "wholes.safetensors")
    assert_same_effect(applied(bare), applied(bare.parent / "wholes.safetensors"), 1e-5)


def test_pefts_magnitude_becomes_the_one_that_comfyui_reads(convert, tmp_path):
    torch.manual_seed(6)
    weight = next(t for k, t in load_file(BASE).items() if k.endswith("blocks.1.mlp.layer2.weight"))
    name = "base_model.model.blocks.1.mlp.layer2."
    tensors = {
        f"{name}lora_A.weight": torch.randn(3, weight.shape[1]),
        f"{name}lora_B.weight": 0.1 * torch.randn(len(weight), 3),
        f"{name}lora_magnitude_vector": 1 + torch.rand(len(weight)),
    }
    save_file(tensors, tmp_path / "peft.safetensors")
    with pytest.raises(AdapterFileError, match="Give it with --base. Or use --drop dora"):
        convert(tmp_path / "peft.safetensors", "comfy")
    out = convert(tmp_path / "peft.safetensors", "comfy", "--base", BASE)
    assert {key.rpartition(".")[2] for key in load_file(out)} == {"weight", "alpha", "dora_scale"}
    assert apart(deltas(tmp_path / "peft.safetensors"), deltas(out)) < 1e-6


def test_whole_norms_become_the_differences_that_comfyui_reads(convert, tmp_path):
    base = load_file(BASE)
    name = next(key for key in base if key.endswith("t_embedding_norm.weight"))
    whole = {"__anima_norm__.t_embedding_norm.weight": base[name] + 0.5}
    save_file(whole, tmp_path / "fork.safetensors")
    with pytest.raises(AdapterFileError, match="Give it with --base"):
        convert(tmp_path / "fork.safetensors", "comfy")
    found = load_file(convert(tmp_path / "fork.safetensors", "comfy", "--base", BASE))
    torch.testing.assert_close(found["diffusion_model.t_embedding_norm.w_norm"], torch.full_like(base[name], 0.5))


@pytest.mark.parametrize("file, form", [(LORA, "kohya"), (LORA, "universal"), (LOKR_LOW, "comfy")])
def test_the_error_of_rounding_is_told(convert, file, form, capsys):
    out = convert(file, form, "--save_precision", "bf16", *(["--rank", 2] if file == LORA else []))
    told = capsys.readouterr().out
    assert ("no effect" in told) is (file == LORA)
    comfy = convert(out, "comfy", name="comfy")
    assert {t.dtype for k, t in load_file(out).items() if "alpha" not in k} == {torch.bfloat16}
    found, expected = (weight_differences(load_file(each)) for each in (comfy, file))
    off = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    size = sum(float(change.square().sum()) for change in expected.values())
    assert f"all: error {(off / size) ** 0.5:.3%};" in told and 1e-4 < (off / size) ** 0.5 < 1e-2


def test_the_metadata_says_what_the_file_has_become(convert, mixed):
    out = convert(mixed, "universal", "--rank", 3, "--base", BASE, "--drop", "norms", "biases")
    found = read_header(out).metadata
    assert found["ss_network_module"] == "networks.lora_anima" and found["ss_steps"] == "7"
    assert found["ss_network_dim"] == found["ss_network_alpha"] == "3"
    args = json.loads(found["ss_network_args"])
    assert args == {"train_norm": "False", "self_attn_lr": "1e-4"}
    assert json.loads(found["ss_adapted_parts"])["blocks.*.mlp.layer2"] == 1
    assert json.loads(found["ss_made_from"])["tool"] == "convert_lora_format"
    assert found["modelspec.architecture"] == "anima/lora" and "modelspec.hash_sha256" not in found
    assert found["sshs_model_hash"] != read_header(mixed).metadata["sshs_model_hash"]
    kept = read_header(convert(mixed, "kohya", name="kohya")).metadata
    assert kept["ss_network_module"] == "networks.lokr_anima" and "ss_network_dim" not in kept
    some = read_header(convert(mixed, "comfy", "--rank", 3, "--base", BASE, name="some")).metadata
    assert some["ss_network_module"] == "networks.lora_anima"


def test_nothing_is_written_by_a_dry_run_or_over_a_file_that_is_there(convert, tmp_path, capsys):
    convert(LORA, "comfy", "--dry_run")
    assert "nothing written" in capsys.readouterr().out and not list(tmp_path.iterdir())
    before = convert(LORA, "comfy").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        convert(LORA, "kohya")
    with pytest.raises(AdapterFileError):
        convert(LOKR, "universal", "--overwrite")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]
    convert(LORA, "kohya", "--overwrite")
    with pytest.raises(ConfigError) as told:
        convert(LORA, "kohya", "--rank", 0, "--energy", 2, "--error", 1, name="no/out")
    assert len(told.value.problems) == 4


def test_modules_that_do_not_fit_are_all_named(convert, tmp_path):
    name = "diffusion_model.blocks.{}.mlp.layer1.{}"
    tensors = {
        name.format(0, "lora_down.weight"): torch.ones(2, 8),
        name.format(1, "lora_up.weight"): torch.ones(8, 2),
        name.format(2, "lora_down.weight"): torch.full((2, 8), torch.nan),
        name.format(2, "lora_up.weight"): torch.ones(8, 2),
        name.format(3, "lora_down.weight"): torch.ones(2, 8),
        name.format(3, "lora_up.weight"): torch.ones(8, 3),
    }
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(AdapterFileError) as told:
        convert(tmp_path / "broken.safetensors", "universal")
    assert [p.where for p in told.value.problems] == [f"blocks.{n}.mlp.layer1" for n in range(4)]
    norms = {"diffusion_model.t_embedding_norm.w_norm": torch.ones(96)}
    save_file(norms, tmp_path / "broken.safetensors")
    with pytest.raises(AdapterFileError, match="nothing of the file is left"):
        convert(tmp_path / "broken.safetensors", "universal", "--drop", "norms")
    assert len(list(tmp_path.iterdir())) == 1


COMMAND = (
    "python tools/convert_lora_format.py my_lokr.safetensors --format universal --rank 32 --drop norms "
    "--output my_lokr_universal.safetensors"
)


@documented.runs(COMMAND)
def test_the_command_writes_a_file_for_all_programs(tmp_path, command):
    shutil.copy(LOKR, tmp_path / "my_lokr.safetensors")
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: my_lokr_universal.safetensors" in done.stdout, done.stderr
    assert (tmp_path / "my_lokr_universal.safetensors").exists()
