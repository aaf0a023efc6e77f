"""tools/merge_lora.py: a merged base does what the base and its adapters do, a joined file what its parts do."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_models import load_anima_transformer
from library.anima_workshop.base import open_base
from library.anima_workshop.base_merging import BaseMerging
from library.anima_workshop.layout import open_anima_adapter
from library.anima_workshop.storing import storing
from library.errors import AdapterFileError, ConfigError, OutputError
from library.system.tensor_files import read_header
from networks.codec import write_adapter
from networks.merging import merge_file
from networks.workshop.sources import Source, Sources
from tests.helpers import coded_files, documented
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import golden, rel_l2, tiny_transformer
from tests.helpers.workshop import (
    applied,
    assert_same_effect,
    of_every_kind,
    outputs,
)
from tools.merge_lora import main

BASE = golden("anima_tiny_dit.safetensors")
LORA, LOKR, LOW = (golden(f"adapter_{name}.safetensors") for name in ("lora", "lokr_full", "lokr_low"))
STRENGTHS = (0.7, -0.4)


def merge(out, *words):
    main([str(word) for word in ("--output", out, *words)])
    return load_file(out)


def with_both(model):
    """The model with LORA and LOKR at STRENGTHS."""
    for file, strength in zip((LORA, LOKR), STRENGTHS):
        merge_file(model, str(file), strength)
    return model


@pytest.fixture(scope="module")
def expected():
    """The weights with both, and the outputs."""
    model = with_both(tiny_transformer())
    return model.state_dict(), outputs(model)


def rewritten(path, change, metadata=None):
    """The base with each (key, tensor) as `change` has it."""
    save_file(dict(change(key, t) for key, t in load_file(BASE).items()), path, metadata)
    return path


@pytest.mark.parametrize("prefix", ["net.", "model.diffusion_model.", ""])
def test_a_merged_base_is_the_base_with_its_adapters(tmp_path, expected, prefix):
    notes = {"ss_note": "字", "modelspec.hash_sha256": "0x1"}
    base = rewritten(tmp_path / "base.safetensors", lambda k, t: (prefix + k[4:], t), notes)
    more = {f"{prefix}pos_embedder.seq": torch.arange(3)}  # which the loader leaves out
    if prefix:  # an all-in-one checkpoint
        more["vae.x"] = torch.ones(3, dtype=torch.bool)
    save_file({**load_file(base), **more}, base, notes)
    out = tmp_path / "out.safetensors"
    made = merge(out, LORA, LOKR, "--strength", *STRENGTHS, "--base", base, "--check", "all")
    before = load_file(base)
    assert made.keys() == before.keys()
    assert {k: t.dtype for k, t in made.items()} == {k: t.dtype for k, t in before.items()}
    weights, results = expected
    for key, tensor in made.items():
        wanted = weights.get(key.removeprefix(prefix), before[key])
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=2e-6)
    adapted = {*open_anima_adapter(LORA), *open_anima_adapter(LOKR)}
    others = [k for k in made if k.removeprefix(prefix).removesuffix(".weight") not in adapted]
    assert len(others) > 20 and all(torch.equal(made[key], before[key]) for key in others)
    assert_same_effect(outputs(load_anima_transformer(out, dtype=torch.float32)), results)
    metadata = read_header(out).metadata
    assert metadata["ss_note"] == "字" and "modelspec.hash_sha256" not in metadata
    assert json.loads(metadata["ss_made_from"])["files"] == [[LORA.name, 0.7], [LOKR.name, -0.4]]


def test_what_bf16_keeps_of_the_adapters_is_told(tmp_path, expected, capsys):
    base = rewritten(tmp_path / "base.safetensors", lambda k, t: (k, t.bfloat16()))
    out = tmp_path / "out.safetensors"
    made = merge(out, LORA, "--strength", 0.01, "--base", base, "--check", "all")
    before, model = load_file(base), load_anima_transformer(base, dtype=torch.float32)
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    merge_file(model, str(LORA), 0.01)
    changed = survived = 0
    off = size = 0.0
    for name, weight in model.state_dict().items():
        stored = made[f"net.{name}"]
        torch.testing.assert_close(stored, weight.bfloat16(), rtol=2**-8, atol=0)
        is_changed = weight != own[name]
        changed += int(is_changed.sum())
        survived += int((stored != before[f"net.{name}"]).sum())
        if is_changed.any():
            off += float((stored.double() - weight.double()).square().sum())
            size += float((weight.double() - own[name].double()).square().sum())
    words = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all ")]
    share, told = (float(text) / 100 for text in words[0].replace("%", "").split()[2:])
    assert abs(share - survived / changed) < 0.01 and 0.05 < share < 0.95
    assert abs(told / math.sqrt(off / size) - 1) < 0.06


@pytest.mark.parametrize("form", coded_files.FORMS)
def test_a_base_of_8_bits_stays_one_or_becomes_whole(tmp_path, form):
    old = {"net.scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    more = old if form == "scaled_fp8" else {}
    base, _ = coded_files.written(tmp_path, coded_files.FORMS[form], **more)
    wanted = with_both(load_anima_transformer(base, dtype=torch.float32)).state_dict()
    out, before = tmp_path / "out.safetensors", load_file(base)
    words = (LORA, LOKR, "--strength", *STRENGTHS, "--base", base, "--check", "all")
    made = merge(out, *words)
    assert {k: (t.dtype, t.shape) for k, t in made.items()} == {
        k: (t.dtype, t.shape) for k, t in before.items()
    }
    layer = "net.blocks.0.mlp.layer1"
    assert not torch.equal(made[f"{layer}.weight"].float(), before[f"{layer}.weight"].float())
    kept = [key for key in before if key.endswith(("comfy_quant", "input_scale", "scale_input"))]
    assert all(torch.equal(made[key], before[key]) for key in kept)
    found = load_anima_transformer(out, dtype=torch.float32).state_dict()
    near = 0.02 if "int8" in form else 0.08 if "e5m2" in form else 0.04
    assert all(rel_l2(found[name], weight) < near for name, weight in wanted.items())
    whole = merge(tmp_path / "whole.safetensors", *words, "--save_precision", "float")
    assert whole.keys() == {f"net.{name}" for name in wanted}
    for name, weight in wanted.items():
        torch.testing.assert_close(whole[f"net.{name}"], weight, rtol=0, atol=2e-6)


def test_linears_of_the_blocks_are_stored_in_fp8_and_their_marks_may_stand_in_the_metadata(
    tmp_path, expected
):
    out = tmp_path / "out.safetensors"
    words = ("--strength", *STRENGTHS, "--save_precision", "fp8", "--check", "all")
    made = merge(out, LORA, LOKR, "--base", BASE, *words)
    codes = [key for key, tensor in made.items() if tensor.dtype == torch.float8_e4m3fn]
    assert len(codes) == 2 * 10 and all(key.startswith("net.blocks.") for key in codes)
    layer = codes[0].removesuffix(".weight")
    assert json.loads(bytes(made[f"{layer}.comfy_quant"].tolist())) == coded_files.FP8
    found = load_anima_transformer(out, dtype=torch.float32).state_dict()
    for name, weight in expected[0].items():
        assert rel_l2(found[name], weight) < (0.04 if f"net.{name}" in codes else 1e-6)
    plain = {key: tensor for key, tensor in made.items() if not key.endswith(".comfy_quant")}
    layers = {key.removesuffix(".weight"): coded_files.FP8 for key in codes}
    listed = {"_quantization_metadata": json.dumps({"layers": layers, "format_version": "1.0"})}
    save_file(plain, tmp_path / "listed.safetensors", listed)
    back = merge(tmp_path / "back.safetensors", LORA, "--base", tmp_path / "listed.safetensors",
                 "--save_precision", "bf16")  # fmt: skip
    assert {tensor.dtype for tensor in back.values()} == {torch.bfloat16}
    assert "_quantization_metadata" not in read_header(tmp_path / "back.safetensors").metadata
    merge(tmp_path / "same.safetensors", LORA, "--base", tmp_path / "listed.safetensors")
    assert read_header(tmp_path / "same.safetensors").metadata["_quantization_metadata"]


def test_every_kind_is_merged_as_comfyui_applies_it_and_a_spoilt_file_is_seen(tmp_path):
    torch.manual_seed(5)
    adapter = tmp_path / "mixed.safetensors"
    save_file(of_every_kind(tiny_transformer()), adapter)
    out = tmp_path / "out.safetensors"
    made = merge(out, adapter, LORA, "--base", BASE, "--check", "all")
    model = load_anima_transformer(out, dtype=torch.float32)
    assert_same_effect(outputs(model), applied(adapter, LORA), 1e-5)
    base = open_base(BASE)
    sources = Sources([Source(open_anima_adapter(f, BASE)) for f in (adapter, LORA)])
    merging = BaseMerging(base, sources, storing(base, None))
    merging.check(open_base(out), None)
    for key in ("net.blocks.1.mlp.layer2.weight", "net.x_embedder.proj.1.weight"):
        wrong = made[key].clone()
        wrong[0, 0] += 1e-3
        save_file({**made, key: wrong}, tmp_path / "wrong.safetensors")
        with pytest.raises(OutputError, match=f"{key} .*reads back as something else"):
            merging.check(open_base(tmp_path / "wrong.safetensors"), None)


def differences(*parts):
    """What files add at their strengths, by ComfyUI's rules."""
    total = {}
    for file, strength in parts:
        for name, change in weight_differences(load_file(file)).items():
            total[name] = total.get(name, 0) + strength * change
    return total


def test_loras_are_joined_exactly_and_files_of_other_modules_beside(tmp_path, capsys):
    some = {k: v for k, v in load_file(LORA).items() if "llm_adapter" not in k and "layer1" not in k}
    norms = {k: v for k, v in load_file(LOKR).items() if k.endswith("w_norm")}
    write_adapter(tmp_path / "some.safetensors", some, {"ss_steps": "3", "ss_network_dim": "9"})
    write_adapter(tmp_path / "norms.safetensors", norms, {"ss_steps": "3"})
    files = [LORA, tmp_path / "some.safetensors", tmp_path / "norms.safetensors"]
    parts = list(zip([*files, files[2]], (1.0, 0.3, 2.0, -0.5)))
    out = tmp_path / "out.safetensors"
    made = merge(out, *(f for f, _ in parts), "--strength", *(s for _, s in parts))
    found, wanted = weight_differences(made), differences(*parts)
    assert found.keys() == wanted.keys()
    assert all(rel_l2(found[name], wanted[name]) < 1e-6 for name in wanted)
    rank = len(load_file(LORA)["diffusion_model.blocks.0.mlp.layer2.lora_down.weight"])
    assert len(made["diffusion_model.blocks.0.mlp.layer2.lora_down.weight"]) == 2 * rank
    assert len(made["diffusion_model.blocks.0.mlp.layer1.lora_down.weight"]) == rank
    told = capsys.readouterr().out
    assert "Exact in every module." in told and "24 modules: norm" in told
    metadata = read_header(out).metadata
    assert metadata["ss_network_dim"] == str(2 * rank) and "ss_steps" not in metadata
    assert json.loads(metadata["ss_made_from"])["files"][1] == ["some.safetensors", 0.3]


def test_lokrs_are_joined_where_they_share_a_matrix_and_else_by_svd(tmp_path, capsys):
    twice, out = tmp_path / "twice.safetensors", tmp_path / "out.safetensors"
    other = {k: 2 * v if "lokr_w2" in k else v for k, v in load_file(LOKR).items()}
    save_file(other, twice)
    made = merge(out, LOKR, twice, "--strength", 1, 0.25)
    assert {k.rpartition(".")[2] for k in made} == {"lokr_w1", "lokr_w2", "alpha", "w_norm"}
    found, wanted = weight_differences(made), differences((LOKR, 1.0), (twice, 0.25))
    assert all(rel_l2(found[name], wanted[name]) < 1e-6 for name in wanted)
    with pytest.raises(AdapterFileError, match="use --rank, --energy or --error") as told:
        merge(tmp_path / "no.safetensors", LOKR, LORA, LOW)
    assert len(told.value.problems) == 1 and "40 modules" in told.value.problems[0].where
    capsys.readouterr()
    found = weight_differences(merge(tmp_path / "rank.safetensors", LOKR, LORA, "--rank", 6))
    wanted = differences((LOKR, 1.0), (LORA, 1.0))
    for name, change in wanted.items():
        if change.dim() == 2:
            values = torch.linalg.svdvals(change)
            best = float(values[6:].norm() / values.norm())
            assert abs(rel_l2(found[name], change) - best) < 1e-5
    off = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    size = sum(float(change.square().sum()) for change in wanted.values())
    assert f"all: error {(off / size) ** 0.5:.3%};" in capsys.readouterr().out


def test_kinds_of_one_file_alone_stay_at_their_strength(tmp_path):
    torch.manual_seed(5)
    needing = ("dora_scale", "set_weight", "lora_A.weight", "lora_B.weight")
    tensors = of_every_kind(tiny_transformer())
    plain = {key: value for key, value in tensors.items() if not key.endswith(needing)}
    shape = load_file(BASE)["net.final_layer.linear.weight"].shape
    one = {"diffusion_model.final_layer.linear.diff": torch.randn(*shape)}
    for file, content in (("all", tensors), ("plain", plain), ("one", one)):
        save_file(content, tmp_path / f"{file}.safetensors")
    files = [tmp_path / f"{file}.safetensors" for file in ("plain", "one")]
    out = tmp_path / "out.safetensors"
    merge(out, *files, files[1], "--strength", 0.5, 1, -3)
    model = tiny_transformer()
    for file, strength in ((files[0], 0.5), (files[1], -2.0)):
        merge_file(model, str(file), strength)
    assert_same_effect(applied(out), outputs(model), 1e-5)
    with pytest.raises(AdapterFileError, match="2 modules.* depends on the base model's weight"):
        merge(tmp_path / "no.safetensors", tmp_path / "all.safetensors", LORA, "--strength", 2, 1)


def test_what_has_no_place_and_what_is_asked_wrongly_is_told_at_once(tmp_path):
    te = "lora_te_layers_0_mlp_up_proj"
    strange = {
        **load_file(LORA),
        f"{te}.lora_down.weight": torch.ones(2, 1024), f"{te}.lora_up.weight": torch.ones(3072, 2),
        "diffusion_model.no.such.lora_up.weight": torch.ones(2, 2),
    }  # fmt: skip
    file, out = tmp_path / "strange.safetensors", tmp_path / "out.safetensors"
    save_file(strange, file)
    with pytest.raises(AdapterFileError) as told:
        merge(out, file, "--base", BASE)
    assert "--drop unknown" in str(told.value) and "--drop text_encoder" in str(told.value)
    made = merge(out, file, "--base", BASE, "--drop", "unknown", "text_encoder")
    assert torch.equal(made["net.blocks.0.mlp.layer1.weight"],
                       merge(tmp_path / "lora.safetensors", LORA, "--base", BASE)
                       ["net.blocks.0.mlp.layer1.weight"])  # fmt: skip
    joined = merge(tmp_path / "both.safetensors", file, LORA, "--drop", "unknown")
    assert any(key.startswith("text_encoders.") for key in joined)
    with pytest.raises(ConfigError) as told:
        merge(out, LORA, "--strength", 1, "inf", "--save_precision", "fp8", "--check", "all")
    assert len(told.value.problems) == 6
    with pytest.raises(ConfigError, match="no effect with --base"):
        merge(tmp_path / "no.safetensors", LORA, "--base", BASE, "--rank", 3)
    before = sorted(tmp_path.iterdir())
    for words in (["--base", str(BASE)], [str(LORA)]):
        main([str(LORA), *words, "--output", str(tmp_path / "no.safetensors"), "--dry_run"])
    assert sorted(tmp_path.iterdir()) == before


def test_adapters_of_another_width_are_refused_with_all_their_modules(tmp_path):
    wide = {
        f"diffusion_model.blocks.{n}.mlp.layer1.{part}.weight": torch.ones(shape)
        for n in (0, 1)
        for part, shape in (("lora_down", (2, 8)), ("lora_up", (9, 2)))
    }
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(AdapterFileError) as told:
        merge(tmp_path / "out.safetensors", tmp_path / "wide.safetensors", "--base", BASE)
    assert [p.where for p in told.value.problems] == ["blocks.0.mlp.layer1", "blocks.1.mlp.layer1"]
    with pytest.raises(AdapterFileError, match="2 modules.*the files are for models of other widths"):
        merge(tmp_path / "out.safetensors", tmp_path / "wide.safetensors", LORA, "--rank", 2)
    assert len(list(tmp_path.iterdir())) == 1


INTO_BASE = (
    "python tools/merge_lora.py my_lora.safetensors --base anima_dit.safetensors "
    "--output merged.safetensors"
)
INTO_ONE = (
    "python tools/merge_lora.py my_lora.safetensors my_lokr.safetensors --strength 1 0.5 --rank 32 "
    "--output both.safetensors"
)


@documented.runs(INTO_BASE)
def test_the_command_merges_into_a_base(tmp_path, command):
    shutil.copy(LORA, tmp_path / "my_lora.safetensors")
    shutil.copy(BASE, tmp_path / "anima_dit.safetensors")
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: merged.safetensors" in done.stdout, done.stderr
    assert open_base(tmp_path / "merged.safetensors").prefix == "net."


@documented.runs(INTO_ONE)
def test_the_command_joins_two_files(tmp_path, command):
    shutil.copy(LORA, tmp_path / "my_lora.safetensors")
    shutil.copy(LOKR, tmp_path / "my_lokr.safetensors")
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: both.safetensors" in done.stdout, done.stderr
    assert not open_anima_adapter(tmp_path / "both.safetensors").left
