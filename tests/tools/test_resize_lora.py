"""tools/resize_lora.py: the best delta of a rank, the error that is told, and what stays as it is."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import AdapterFileError, ConfigError
from library.system.tensor_files import read_header
from networks.codec import write_adapter
from tests.helpers import documented
from tests.helpers.tiny import golden, tiny_transformer
from tests.helpers.workshop import apart, applied, assert_same_effect, deltas, of_every_kind
from tools.resize_lora import main

KINDS = ["lora", "lokr_full", "lokr_low"]


def run(*words):
    main([str(word) for word in words])


def adapter(kind):
    return golden(f"adapter_{kind}.safetensors")


def lora(path, *, rank=8, dtype=torch.float32):
    """A file of two modules of scale 2 / rank, whose singular values halve from one to the next."""
    tensors = {}
    for block in range(2):
        up, down = (torch.linalg.qr(torch.randn(size, rank))[0] for size in (64, 40))
        factors = {"lora_up.weight": up, "lora_down.weight": (down * 0.5 ** torch.arange(rank)).T}
        for name, tensor in factors.items():
            key = f"diffusion_model.blocks.{block}.mlp.layer1.{name}"
            tensors[key] = tensor.to(dtype).contiguous()
        tensors[f"diffusion_model.blocks.{block}.mlp.layer1.alpha"] = torch.tensor(2.0)
    write_adapter(path, tensors, {"ss_network_dim": str(rank), "ss_network_alpha": "2"})
    return path


def scales(file):
    found = load_file(file)
    return {
        key: float(found[key]) / len(found[key.replace("alpha", "lora_down.weight")])
        for key in found
        if key.endswith(".alpha")
    }


@pytest.mark.parametrize("rule, rank", [(("--rank", 3), 3), (("--error", 0.3), 2), (("--energy", 0.99), 4)])  # fmt: skip
def test_a_lora_is_cut_to_its_largest_singular_values_at_its_scale(tmp_path, capsys, rule, rank):
    file, out = lora(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    run(file, "--output", out, *rule)
    found = load_file(out)
    assert {found[key].shape[0] for key in found if "lora_down" in key} == {rank}
    assert found.keys() == load_file(file).keys() and scales(out) == scales(file)
    for name, delta in deltas_of_any(file).items():
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        best = left[:, :rank] * values[:rank] @ right[:rank]
        torch.testing.assert_close(deltas_of_any(out)[name], best, atol=1e-6, rtol=1e-5)
    lost = apart(deltas_of_any(file), deltas_of_any(out))
    assert told_error(capsys.readouterr().out) == pytest.approx(lost, rel=0.06)
    metadata = read_header(out).metadata
    assert metadata["ss_network_dim"] == str(rank)
    assert metadata["ss_network_alpha"] == str(2 / 8 * rank)


def deltas_of_any(file):
    """Dense deltas of a file of LoRAs, float64, without a base."""
    found = load_file(file)
    return {
        key: float(found[key]) / len(found[key.replace("alpha", "lora_down.weight")])
        * found[key.replace("alpha", "lora_up.weight")].double()
        @ found[key.replace("alpha", "lora_down.weight")].double()
        for key in found if key.endswith(".alpha")
    }  # fmt: skip


def told_error(text):
    """Of all modules, as a share."""
    line = next(line for line in text.splitlines() if line.startswith(("all ", "blocks.*")))
    return float(re.findall(r"([\d.e-]+) %", line)[0]) / 100


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_small_enough_stays_byte_for_byte(tmp_path, kind):
    out = tmp_path / "out.safetensors"
    run(adapter(kind), "--output", out, "--rank", 1000)
    before, after = load_file(adapter(kind)), load_file(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "kind, to_lora",
    [("lora", False), ("lokr_full", False), ("lokr_full", True), ("lokr_low", False)],
)
def test_the_error_that_is_told_is_that_of_the_file(tmp_path, capsys, kind, to_lora):
    out = tmp_path / "out.safetensors"
    more = ["--to_lora"] if to_lora else []
    run(adapter(kind), "--output", out, "--rank", 1 if kind == "lokr_low" else 2, *more)
    lines = capsys.readouterr().out.splitlines()
    found = float(re.findall(r"([\d.]+) %", next(x for x in lines if x.startswith("all ")))[0])
    matrices = [
        {name: delta for name, delta in deltas(file).items() if delta.dim() == 2}
        for file in (adapter(kind), out)
    ]
    assert 100 * apart(*matrices) == pytest.approx(found, abs=0.6)
    keys = "".join(load_file(out))
    assert ("lokr" in keys) is ("lokr" in kind and not to_lora)


def test_ranks_that_add_nothing_are_taken_off_without_effect(tmp_path):
    tensors = load_file(adapter("lora"))
    padded = {}
    for key, tensor in tensors.items():
        wide = "lora_up" in key, "lora_down" in key
        padded[key] = torch.cat([tensor, tensor], dim=1 if wide[0] else 0) if any(wide) else tensor
    save_file({k: t.contiguous() for k, t in padded.items()}, tmp_path / "twice.safetensors")
    out = tmp_path / "out.safetensors"
    run(tmp_path / "twice.safetensors", "--output", out, "--error", 1e-5)
    assert {len(t) for key, t in load_file(out).items() if "lora_down" in key} == {3}
    assert_same_effect(applied(tmp_path / "twice.safetensors"), applied(out))


def test_every_kind_is_made_a_lora_or_left_with_the_reason(tmp_path, capsys):
    file, out = tmp_path / "all.safetensors", tmp_path / "out.safetensors"
    odd = {"diffusion_model.double_blocks.0.lora_down.weight": torch.ones(2, 2)}
    save_file(of_every_kind(tiny_transformer()) | odd, file)
    run(file, "--output", out, "--error", 0, "--to_lora")
    told = capsys.readouterr().out
    for words in ("norm: has no rank", "LoRA with DoRA: depends on the base", "whole weight: dep",
                  "1 tensors that belong to no known module", "difference: has no rank"):  # fmt: skip
        assert words in told
    for new, old in ((file, out), (out, file)):
        assert apart(deltas(new), deltas(old)) < 1e-6
    keys = "".join(load_file(out))
    assert not {"lokr", "hada", ".diff."} & set(re.findall("lokr|hada|[.]diff[.]", keys))
    assert next(iter(odd)) in keys


def test_metadata_tell_of_the_kind_that_it_has_become(tmp_path):
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    told = {"ss_network_module": "networks.lokr_anima", "ss_network_dim": "100000",
            "ss_network_args": '{"lokr_factor": "4", "train_norm": "True"}'}  # fmt: skip
    write_adapter(file, load_file(adapter("lokr_full")), told)
    run(file, "--output", out, "--rank", 2, "--to_lora")
    found = read_header(out).metadata
    assert found["ss_network_module"] == "networks.lora_anima" and found["ss_network_dim"] == "2"
    assert found["ss_network_args"] == '{"train_norm": "True"}'


def test_the_dtype_is_the_files_or_the_one_that_is_asked_for(tmp_path):
    file = lora(tmp_path / "in.safetensors", dtype=torch.bfloat16)
    for words, dtype in (([], "BF16"), (["--save_precision", "fp16"], "F16")):
        run(file, "--output", tmp_path / "out.safetensors", "--rank", 2, "--overwrite", *words)
        entries = read_header(tmp_path / "out.safetensors").entries
        assert {e.dtype for key, e in entries.items() if "alpha" not in key} == {dtype}
        assert {e.dtype for key, e in entries.items() if "alpha" in key} == {"F32"}


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    run(adapter("lora"), "--output", out, "--rank", 1, "--dry_run")
    told = capsys.readouterr().out
    assert "nothing written" in told and "LoRA 1" in told and not list(tmp_path.iterdir())


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    out = tmp_path / "no" / "out.safetensors"
    with pytest.raises(ConfigError) as told:
        run(adapter("lora"), "--output", out, "--rank", 0, "--energy", 2, "--error", "nan")
    for words in ("1 or more", "above 0 and at most 1", "below 1", "no such folder"):
        assert words in str(told.value)
    with pytest.raises(ConfigError, match="say how small"):
        run(adapter("lora"), "--output", tmp_path / "o.safetensors")


def test_modules_that_cannot_be_read_are_told_together_and_nothing_is_written(tmp_path):
    base = "diffusion_model.blocks.0.mlp.layer"
    long = {"a": (2**15, 1), "b": (1, 2**15)}
    tensors = {
        f"{base}1.lora_up.weight": torch.ones(4, 2),
        f"{base}2.lora_up.weight": torch.ones(4, 2),
        f"{base}2.lora_down.weight": torch.full((2, 4), torch.nan),
        **{
            f"diffusion_model.blocks.1.mlp.layer1.hada_{name}_{end}": torch.ones(shape)
            for name in ("w1", "w2")
            for end, shape in long.items()
        },
    }
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(AdapterFileError) as told:
        run(tmp_path / "bad.safetensors", "--output", tmp_path / "o.safetensors", "--rank", 1)
    for words in ("without lora_down", "NaN or infinity", "no model has one so large"):
        assert words in str(told.value)
    assert len(list(tmp_path.iterdir())) == 1


COMMAND = "python tools/resize_lora.py my_lora.safetensors --output smaller.safetensors --rank 8"


@documented.runs(COMMAND)
def test_the_command_writes_a_smaller_file(tmp_path, command):
    lora(tmp_path / "my_lora.safetensors", rank=16)
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: smaller.safetensors" in done.stdout, done.stderr
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("smaller", "my_lora")]
    assert sizes[0] < 0.7 * sizes[1]
