"""The choice of memory modes for a card: the cheapest that fits, with few counts; true sizes as data."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from library.anima_doctor.anima_step import Saving, count
from library.errors import ConfigError
from library.memory.modes import acting_modes, describe_modes
from library.memory.planning import GIB, Card, choose_modes
from library.memory.swapping import BUFFERS
from library.settings.flags.loop import LoopOptions
from library.settings.flags.precision import PrecisionOptions
from tools.bench import ledger

CPU = torch.device("cpu")
CHEAP, EVERY_2ND = 'recompute = "cheap"', "checkpoint_every_n = 2"
PLAIN = PrecisionOptions()
CHECKPOINT, OFFLOAD = "gradient_checkpointing", "cpu_offload_checkpointing"


def needs(loop: LoopOptions) -> float:
    """Made-up GiB, of a model of 28 blocks that weigh 0.1 each."""
    acting = acting_modes(loop)
    every = CHECKPOINT in acting and EVERY_2ND not in acting
    activations = 1.0 if every else 0.6 if OFFLOAD in acting else 10.0
    activations -= 4 * (CHEAP in acting) + 3 * (EVERY_2ND in acting)
    return 4 + activations - 0.1 * max(0, (loop.blocks_to_swap or 0) - BUFFERS)


class Counted:
    """The made-up count; tells what was counted."""

    def __init__(self) -> None:
        self.loops: list[LoopOptions] = []

    def __call__(self, loop: LoopOptions) -> int:
        self.loops.append(loop)
        return int(needs(loop) * GIB)


def chosen(target: str, count=None, precision=PLAIN, **given):
    loop = LoopOptions(vram_target=target, **given)
    explicit = frozenset({"vram_target", "batch_size", *given})
    cfg = SimpleNamespace(loop=loop, explicit=explicit, whole=False, may_swap=True, precision=precision)
    return choose_modes(cfg, CPU, 28, count or Counted())


@pytest.mark.parametrize(
    "target, modes, counts",
    [
        ("24", "no memory option", 1),
        ("12", CHEAP, 2),
        ("8", CHECKPOINT, 4),
        ("6", f"{OFFLOAD}, blocks_to_swap = 3", 7),  # a straight line leads there at once
    ],
)
def test_the_cheapest_that_fits_is_chosen_with_few_counts(target, modes, counts):
    count = Counted()
    choice = chosen(target, count)
    assert describe_modes(choice.loop) == modes
    assert choice.peak == int(needs(choice.loop) * GIB) <= choice.card.room
    assert len(count.loops) == counts == len(set(count.loops))
    assert all(int(needs(loop) * GIB) > choice.card.room for loop, _ in choice.passed)


def test_as_few_blocks_are_swapped_as_can_be_also_where_they_save_unevenly():
    for steep in (0.2, 1, 5):
        for fits in range(4, 29):

            def uneven(loop, steep=steep, fits=fits):
                swapped = loop.blocks_to_swap or 0
                return (
                    9 * GIB - int((swapped >= fits) * GIB * 5) - int(GIB * (swapped / 28) ** steep)
                )

            assert chosen("6", uneven).loop.blocks_to_swap == fits


@pytest.mark.parametrize(
    "target, given, modes",
    [
        ("24", {"gradient_checkpointing": True}, CHECKPOINT),
        ("6", {"blocks_to_swap": 10}, f"{CHECKPOINT}, blocks_to_swap = 10"),
        ("8", {"cpu_offload_checkpointing": False, "recompute": "none"}, CHECKPOINT),
        ("8", {"unsloth_offload_checkpointing": True}, OFFLOAD),
        ("16", {"recompute": "none"}, f"{CHECKPOINT}, {EVERY_2ND}"),
        ("24", {"gradient_checkpointing": True, "checkpoint_every_n": 2}, f"{CHECKPOINT}, {EVERY_2ND}"),
    ],
)  # fmt: skip
def test_options_that_the_user_set_are_kept_be_it_to_the_default(target, given, modes):
    choice = chosen(target, **given)
    assert describe_modes(choice.loop) == modes
    assert {name: getattr(choice.loop, name) for name in given} == given


def test_what_a_compiler_chooses_itself_is_no_way_to_less_memory():
    count = Counted()
    choice = chosen("8", count, replace(PLAIN, compile=True))
    assert [describe_modes(loop) for loop in count.loops] == [
        "no memory option", f"{CHECKPOINT}, {EVERY_2ND}", CHECKPOINT
    ]  # fmt: skip
    assert choice.loop == count.loops[-1]


def test_where_checkpointing_is_switched_off_no_kind_of_it_is_chosen():
    with pytest.raises(ConfigError) as told:
        chosen("8", gradient_checkpointing=False)
    assert '7.40 GiB (recompute = "cheap", blocks_to_swap = 28)' in str(told.value)
    assert "Kept as you set them: gradient_checkpointing." in str(told.value)


def test_what_fits_no_card_is_told_with_what_to_lower_and_what_was_kept():
    with pytest.raises(ConfigError) as told:
        chosen("6", lambda loop: int((needs(loop) + 4) * GIB), checkpoint_every_n=1)
    text = str(told.value)
    for part in ("6.00 GiB", OFFLOAD, "blocks_to_swap = 28", "4.55 GiB of 6.00 GiB", "resolution",
                 "Kept as you set them: checkpoint_every_n."):  # fmt: skip
        assert part in text


def test_auto_asks_the_card_and_there_is_none_on_a_cpu():
    assert Card.of("8", CPU).size == 8 * GIB
    with pytest.raises(ConfigError, match="runs? computes on cpu"):
        Card.of("auto", CPU)


def test_the_choice_is_told_with_its_peak_and_what_was_passed_over():
    (whole,) = chosen("24").describe()
    assert whole.startswith("vram_target = 24: no memory option; 14.00 GiB counted, 20.91 GiB of")
    assert chosen("12").describe()[1:] == ["cheaper but too large: no memory option (14.00 GiB)"]


def test_true_sizes_at_1024_px():
    """LoRA of rank 16 alone."""
    ((_, step),) = ledger.steps(ledger.make_parser().parse_args(["--modes", "none"]))

    def peak(loop):
        return count(replace(step, memory=Saving(replace(loop, vram_target=None)))).peak

    found = {target: chosen(target, peak) for target in ("24", "12", "8", "6")}
    assert {target: describe_modes(choice.loop) for target, choice in found.items()} == {
        "24": "no memory option",
        "12": CHEAP,
        "8": CHECKPOINT,
        "6": OFFLOAD,
    }
    limits = {"24": 14.3, "12": 9.92, "8": 4.65, "6": 4.32}
    assert all(found[target].peak < most * GIB for target, most in limits.items())
