"""The GPU benchmark on the CPU with tiny sizes: all its parts, and what goes wrong in them."""

import json
import math

import pytest
import torch

from library.anima_backend.modelling.attention_probe import REAL_ROWS
from library.anima_backend.modelling.kernels import KERNELS
from tools.bench import gpu, gpu_parts, gpu_repeats

CPU = torch.device("cpu")


@pytest.fixture
def plan():
    return gpu_parts.Plan(CPU, tiny=True, quick=True, ends=math.inf)


def test_the_whole_command_on_a_cpu(monkeypatch, tmp_path, capsys):
    page, file = tmp_path / "gpu.md", tmp_path / "gpu.json"
    options = ["--device", "cpu", "--tiny", "--quick", "--page", str(page), "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["gpu", *options])
    monkeypatch.setattr(gpu, "QUICK_SECONDS", math.inf)  # a busy machine leaves nothing out
    threads = torch.get_num_threads()
    gpu.main()
    torch.set_num_threads(threads)
    parts = json.loads(file.read_text())["parts"]
    assert {row["result"] for row in parts["parity"]} == {"ok"}
    kernels = {row["kernel"]: row for row in parts["attention"]}
    counted = f"text of {REAL_ROWS} rows, zeros counted"
    assert set(kernels) == {*KERNELS, "auto: torch", counted}
    assert {name for name, row in kernels.items() if row["result"] == "ok"} == {"torch", counted}
    assert {row["result"] for row in parts["kernels"]} == {"have no form for the CPU"}
    curves = {row["mode"]: row["result"] for row in parts["curves"]}
    quick = {name for name, mode in gpu_parts.ALL_MODES.items() if not mode.precision.compile}
    assert set(curves) == quick
    same = {mode for mode in quick if not mode.startswith(("fp8", "int8", "nf4"))}
    assert {curves[mode] for mode in same} == {"same bits"}
    repeats = {row["mode"]: (row["result"], row["twice"]) for row in parts["repeats"]}
    assert repeats == dict.fromkeys(gpu_repeats.QUICK, ("ok", "same bits"))
    assert {row["result"] for row in parts["steps"]} == {"ok"}
    text = page.read_text()
    assert text.startswith("## ") and all(title in text for title, _ in gpu.PARTS.values())
    assert "Nothing wrong was found." in text and "On this card use" in capsys.readouterr().out


def test_a_failing_case_is_a_row_and_the_others_follow(plan):
    def fail():
        raise ValueError("not here\nmore")

    rows = [gpu_parts.guarded(plan, {"mode": "a"}, work) for work in (fail, dict)]
    assert rows == [{"mode": "a", "result": "failed: ValueError: not here"}, {"mode": "a"}]


def test_when_the_time_is_up_the_rest_is_left_out(plan):
    over = gpu_parts.Plan(CPU, tiny=True, quick=True, ends=0)
    assert {row["result"] for row in gpu_parts.steps(over)} == {"left out: the time is up"}


def test_a_part_that_cannot_begin_is_a_row(plan, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_parts, "GOLDEN", tmp_path)
    (row,) = gpu.run_part("parity", plan)
    assert str(row["result"]).startswith("failed: FileNotFoundError")


def step_row(mode, ms, result="ok"):
    names = {"pixels": "512", "adapter": "LoRA r16", "mode": mode}
    return {**names, "ms": ms, "peak GiB": "9.00", "result": result}


def test_the_verdict_is_the_fastest_that_fits_and_no_step_too_large_is_wrong():
    too_large = {"mode": "none", "result": "failed: OutOfMemoryError: CUDA out of memory"}
    rows = [
        too_large, step_row("cheap", 5.0, "fills the card"), step_row("checkpoint", 9.0),
        step_row("checkpoint_swap_all", 10.0),
    ]  # fmt: skip
    assert gpu.verdict({"steps": rows}) == [
        "- Nothing wrong was found.",
        "- On this card use --gradient_checkpointing for LoRA r16 at 512 px (9.0 ms a step, 9.00 GiB).",
    ]
    assert "OutOfMemoryError" in gpu.verdict({"curves": [too_large]})[0]


def test_every_mode_of_the_steps_has_its_flags():
    assert set(gpu_parts.STEP_MODES) == set(gpu.FLAGS) <= set(gpu_parts.ALL_MODES)
