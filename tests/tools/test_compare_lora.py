"""tools/compare_lora.py: what it tells of files whose differences are known."""

import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_workshop.comparison import look_at
from library.anima_workshop.comparison_findings import findings_of
from library.errors import ConfigError, UserError
from library.reporting.page import blocks_of
from tests.helpers import documented
from tests.helpers.tiny import golden
from tests.helpers.written_adapters import LINEARS, write_lora
from tools.compare_lora import main

COMMAND = "python tools/compare_lora.py long.safetensors short.safetensors --base anima-base-v1.0.safetensors --html compare.html"
BASE = golden("anima_tiny_dit.safetensors")
LORA, LOKR = (str(golden(f"adapter_{name}.safetensors")) for name in ("lora", "lokr_full"))
TRAINED = {"ss_steps": "1200", "ss_unet_lr": "0.0001", "ss_optimizer": "AdamW", "ss_seed": "1"}


@pytest.fixture(scope="module")
def weights():
    return {key.removeprefix("net."): tensor for key, tensor in load_file(BASE).items()}


def told(folder, first, second, **said):
    """The findings on two files by id; said: metadata of the second that is not that of the first."""
    files = folder / "first.safetensors", folder / "second.safetensors"
    save_file(first, files[0], TRAINED)
    save_file(second, files[1], {**TRAINED, **{f"ss_{k}": v for k, v in said.items()}})
    return {finding.id: finding for finding in findings_of(look_at(files))}


def changed(tensors, ending, factor):
    return {key: factor * t if key.endswith(ending) else t.clone() for key, t in tensors.items()}


def test_a_smaller_alpha_is_the_reason(weights, tmp_path):
    lora = write_lora(weights, alpha=3.0).tensors
    found = told(tmp_path, lora, changed(lora, "alpha", 0.25))
    assert "B is 0.25 times as strong as A" in found["ratio"].text.english
    assert "At strength 4 B is as strong as A; at 4 it" in found["ratio"].advice.english
    assert "Mostly this: alpha / rank is 0.25 in B, 1 in A." in found["cause"].text.english
    assert (
        "0.25 by the scale x 1 by modules that only one has x 1 by" in found["cause"].text.english
    )
    assert "alpha / rank 为 0.25，A 为 1" in found["cause"].text.chinese


def test_fewer_steps_and_a_lower_rate_are_told_beside_smaller_factors(weights, tmp_path):
    lora = write_lora(weights).tensors
    found = told(
        tmp_path, lora, changed(lora, "lora_up.weight", 0.3), steps="300", unet_lr="0.0002"
    )
    assert "Mostly this: the factors of B have grown less." in found["cause"].text.english
    training = found["training"].text
    assert "steps 300 : 1200 (0.25 times), which fits" in training.english
    assert (
        "learning rate 0.0002 : 0.0001 (2 times), which would do the opposite" in training.english
    )
    assert "步数 300 : 1200（0.25 倍），与因子大小一致" in training.chinese
    alike = told(tmp_path, lora, lora, steps="300")
    assert "steps 300 : 1200 (0.25 times); " in alike["training"].text.english
    silent = told(tmp_path, lora, lora, steps="many", optimizer="Prodigy")
    assert "steps: it does not say" in silent["training"].text.english
    assert "other optimizers" in silent["training"].text.english


def test_an_alpha_that_was_folded_in_counts_as_factors_and_this_is_told(weights, tmp_path):
    lora = write_lora(weights, alpha=1.5).tensors
    bare = {
        k: t for k, t in changed(lora, "lora_up.weight", 0.5).items() if not k.endswith("alpha")
    }
    found = told(tmp_path, lora, bare)
    assert "1 times = 2 by the scale x 1 by modules" in found["cause"].text.english
    assert found["cause"].advice.english.startswith("B has no alpha")
    assert told(tmp_path, lora, lora)["cause"].advice is None


def test_missing_modules_are_the_reason(weights, tmp_path):
    lora = write_lora(weights).tensors
    part = {key: tensor for key, tensor in lora.items() if LINEARS[1] in key}
    found = told(tmp_path, lora, part)
    assert "Mostly this: B has 1 modules, A 3." in found["cause"].text.english
    assert "2 only in A" in found["coverage"].text.english
    assert len(found["coverage"].where) == 2


def test_files_of_nothing_in_common_say_so(weights, tmp_path):
    lora = write_lora(weights).tensors
    first, second = ({k: t for k, t in lora.items() if LINEARS[n] in k} for n in (0, 1))
    found = told(tmp_path, first, second)
    assert "no module in common" in found["nothing_common"].text.english
    assert "no strength makes them alike" in found["ratio"].advice.english
    zero = told(tmp_path, first, changed(first, "alpha", 0.0))
    assert "B changes nothing" in zero["ratio.zero"].text.english


def test_what_needs_the_base_is_named(weights, tmp_path):
    lora = write_lora(weights).tensors
    key = f"diffusion_model.{LINEARS[0]}.dora_scale"
    found = told(tmp_path, lora, {**lora, key: torch.ones(len(weights[f"{LINEARS[0]}.weight"]), 1)})
    assert found["left_out"].where[0].startswith(f"{LINEARS[0]}: B ")
    assert "--base" in found["left_out"].advice.english


def test_table_json_and_page_tell_the_same(tmp_path, capsys):
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    files = [LORA, LOKR, "--base", str(BASE)]
    main([*files, "--json", str(report), "--html", str(page)])
    table = capsys.readouterr().out
    data = json.loads(report.read_text(encoding="utf-8"))
    norms = data["total"]["norms"]
    assert data["format"] == "adapter_comparison/v1" and len(data["modules"]) == 64
    assert f"{norms[0]:.4g}" in table and f"{norms[1]:.4g}" in table
    squares = [sum(m["norms"][i] ** 2 for m in data["modules"].values()) for i in (0, 1)]
    assert [norm**2 for norm in norms] == pytest.approx(squares)
    for groups in ("parts", "blocks"):
        squares = [sum(g["norms"][i] ** 2 for g in data[groups].values()) for i in (0, 1)]
        assert [norm**2 for norm in norms] == pytest.approx(squares)
    ((_, shown),) = blocks_of(page.read_text(encoding="utf-8"))
    assert [value for _, value in shown["figures"]][:2] == norms
    main([*files, "--json", "-"])
    assert json.loads(capsys.readouterr().out) == data


@documented.runs(COMMAND)
def test_the_command_writes_a_page(tmp_path, command):
    for source, name in ((LORA, "long"), (LOKR, "short"), (BASE, "anima-base-v1.0")):
        shutil.copy(source, tmp_path / f"{name}.safetensors")
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: compare.html" in done.stdout, done.stderr
    assert (tmp_path / "compare.html").exists()


def test_settings_that_differ_come_first(tmp_path, weights, capsys):
    lora = write_lora(weights).tensors
    told(tmp_path, lora, lora, network_dim="8", steps="300", odd="\x1b[31mred")
    main([str(tmp_path / f"{name}.safetensors") for name in ("first", "second")])
    out = capsys.readouterr().out
    rows = out.partition("Settings")[2].partition("==\n")[2].partition("\n\n")[0].splitlines()
    names = [row.split("  ")[1] for row in rows[1:]]
    assert names == ["rank", "steps", "odd", "learning rate of the DiT", "optimizer", "seed"]
    assert "\x1b" not in out and "\\x1b[31mred" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{lora}"], ["expected 2 to 26 files, got 1"]),
        (["{lora}", "{lokr}", "--html", "{lora}"], ["one of the files that are read"]),
        (["{lora}", "{lokr}", "--json", "{folder}/no/x.json"], ["no such folder"]),
        (["{lora}", "none.safetensors", "{base}"], ["no such file", "holds no adapter", "Give the path of"]),
        (["{lora}", "{lokr}", "--base", "{lora}"], ["{lora}"]),
    ],
)
def test_what_is_wrong_is_told_at_once(arguments, words, tmp_path):
    names = {"lora": LORA, "lokr": LOKR, "base": str(BASE), "folder": str(tmp_path)}
    with pytest.raises(UserError) as raised:
        main([argument.format(**names) for argument in arguments])
    assert all(word.format(**names) in str(raised.value) for word in words)


def test_a_report_that_is_there_stays(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        main([LORA, LORA, "--html", str(page)])
    assert page.read_text() == "mine"
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", ascii_only)
    main([LORA, LORA, "--html", str(page), "--overwrite"])
    ascii_only.flush()
    assert b"about as strong as A: 1 times" in ascii_only.buffer.getvalue()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
