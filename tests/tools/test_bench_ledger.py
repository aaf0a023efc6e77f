"""The ledger as a command, and what it counts at true size: figures that no machine changes."""

import json
from dataclasses import replace

import pytest
import torch

from library.anima_backend.modelling.params import PUBLISHED, DiTParams
from library.anima_doctor.anima_step import count, make_step
from library.errors import ConfigError
from library.memory.step_count import count_step
from library.settings.flags.loop import LoopOptions
from tests.helpers.tiny import golden
from tools.bench import ledger, owners, ways


def test_the_true_size_is_that_of_the_official_file():
    shapes = {}
    for name, shape in json.loads(golden("layouts.json").read_text())["dit"].items():
        before, brace, rest = name.partition("{")
        count, _, after = rest.partition("}")
        for number in range(int(count or 1)):
            shapes[f"{before}{number}{after}" if brace else name] = tuple(shape)
    assert DiTParams.from_state_shapes(shapes) == PUBLISHED


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path, monkeypatch, capsys):
    file = tmp_path / "ledger.json"
    monkeypatch.setattr(
        "sys.argv",
        ["ledger", "--blocks", "2", "--modes", "none", "every_1+swap_1", "--adapters", "lokr_full+norms",
         "--pixels", "256", "--json", str(file)],
    )  # fmt: skip
    ledger.main()
    title, names, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith(json.loads(file.read_text())["machine"] + "; torch ")
    assert len(lines) == 2 and len({len(line) for line in (names, *lines)}) == 1
    plain, checkpointed = json.loads(file.read_text())["rows"]
    assert (plain["adapter"], plain["mode"], plain["pixels"]) == ("lokr_full+norms", "none", 256)
    assert checkpointed["mode"] == "checkpoint+swap_1"
    assert plain["kept"] > checkpointed["kept"] and plain["kernels"] < checkpointed["kernels"]


def test_ways_of_saving_memory_go_together_by_their_names():
    way = ways.way_of("every_2nd+cheap+swap_5+fp8")
    loop = LoopOptions(
        gradient_checkpointing=True, checkpoint_every_n=2, recompute="cheap", blocks_to_swap=5
    )
    assert way.loop == loop
    assert way.precision.stored_form == "fp8" and ways.way_of("checkpoint") == ways.MODES["checkpoint"]
    for text in ("every_2+cheap+swap_5+fp8", "offload+every_4+swap_all", "cheap+int8_compute", "swap_all+nf4"):
        assert ways.name_of(ways.way_of(text)) == text
    for text, told in {"swap_5+swap_6": "5 and 6", "swap_0": "no mode swap_0; there are none, cheap"}.items():
        with pytest.raises(ConfigError, match=told):
            ways.way_of(text)


def test_what_is_there_at_the_peak_is_told_with_what_made_it():
    options = ledger.make_parser().parse_args(["--modes", "checkpoint", "--blocks", "2"])
    ((_, step),) = ledger.steps(options)
    found, made = count(step), []

    def make(device, granule):
        made.append(owners.PeakLedger(device, granule))
        return made[-1]

    count_step(make_step(step, torch.device("meta")), make_ledger=make)
    told = made[0].owners()
    assert sum(size for _, _, size in told) == found.peak - found.states
    inputs = [n for o, n, _ in told if o.maker == "one_kernel.forward < glue.gated"]
    assert inputs == [1]  # the second block's; the first one's comes from patches
    *largest, rest = ledger.owners_at_peak(step, 2)
    assert len(largest) == 2 and rest.endswith(f"in {len(told) - 2} smaller kinds")


@pytest.mark.parametrize("name", ["lora+all", "lohe", "norms"])
def test_an_unknown_adapter_is_told(name):
    with pytest.raises(ConfigError, match="expected one of lora"):
        ledger.network_of(name, 16, {})


def true_row(adapter: str, mode: str) -> ledger.Row:
    options = ledger.make_parser().parse_args(["--adapters", adapter, "--modes", mode])
    ((name, step),) = ledger.steps(options)
    return ledger.count_row(name, step)


def test_a_true_step_needs_at_most_what_it_did():
    """Plain LoRA at 1024 px: upper limits, to be lowered with whatever saves something."""
    found = true_row("lora", "none").figures()
    assert found["weights"] == pytest.approx(3.644, abs=0.001)
    assert found["states"] == pytest.approx(0.171, abs=0.001)
    limits = {
        "peak": 14.3,
        "kept": 10.35,
        "block kept": 23.7,
        "block moved": 59.3,
        "block kernels": 82,
    }
    assert {name: found[name] for name in limits if found[name] > limits[name]} == {}


PEAKS = {"cheap": 9.92, "checkpoint": 4.65, "checkpoint_swap_all": 1.28, "fp8_checkpoint": 2.88}
"""GiB of plain LoRA at 1024 px, without the LLM adapter, which rests: upper limits as well."""


@pytest.mark.parametrize("mode", PEAKS)
def test_a_true_step_fits_where_memory_is_saved(mode):
    options = ledger.make_parser().parse_args(["--modes", mode])
    ((_, step),) = ledger.steps(options)
    assert count(step).peak <= PEAKS[mode] * ledger.GIB


def test_a_true_checkpointed_step_needs_at_most_what_it_did():
    """With every default: norms and the LLM adapter."""
    found = true_row("lora+norms+text", "checkpoint").figures()
    limits = {"peak": 5.01, "kept": 0.76, "block kept": 1.0, "block kernels": 145, "block moved": 108}
    assert {name: found[name] for name in limits if found[name] > limits[name]} == {}


def test_half_the_pixels_are_a_quarter_of_the_units():
    """Units are of tokens and channels: a block has as many of them at any size."""
    step = next(
        ledger.steps(ledger.make_parser().parse_args(["--blocks", "2", "--modes", "none"]))
    )[1]
    small = ledger.count_row("lora", replace(step, size=(64, 64))).figures()
    large = ledger.count_row("lora", step).figures()
    for name in ("block kept", "block moved"):
        assert small[name] == pytest.approx(large[name], rel=0.1)
    assert small["block MiB moved"] <= 250
