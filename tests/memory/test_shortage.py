"""What is done where memory is short: the next cheaper modes, and what goes back to the driver."""

from types import SimpleNamespace

import pytest
import torch

from library.memory.modes import describe_modes, enable_modes
from library.memory.shortage import StepDown, driver_spills, next_cheaper, should_give_back
from library.settings.flags.distributed import DistributedOptions
from library.settings.flags.loop import LoopOptions
from library.settings.flags.precision import PrecisionOptions
from tests.helpers.memory_modes import adapted, assert_same_bits, gradients

CHEAP, CHECKPOINT = 'recompute = "cheap"', "gradient_checkpointing"
OFFLOAD = "cpu_offload_checkpointing"
EVERY_2ND = f"{CHECKPOINT}, checkpoint_every_n = 2, {CHEAP}"

PLAIN = PrecisionOptions()


def way_down(blocks=28, **given):
    """The modes of each step down, to the last."""
    loop = LoopOptions(vram_target="8", **given)
    cfg = SimpleNamespace(loop=loop, explicit=frozenset(given), whole=False, may_swap=True, precision=PLAIN)
    found = []
    while loop := next_cheaper(cfg, loop, blocks):
        found.append(describe_modes(loop))
    return found


def test_each_step_down_is_the_next_of_the_ladder_and_the_last_swaps_everything():
    whole = [CHEAP, EVERY_2ND, CHECKPOINT, OFFLOAD, f"{OFFLOAD}, blocks_to_swap = 28"]
    assert way_down() == whole
    assert way_down(blocks=2) == whole[:-1]


def test_where_some_blocks_are_swapped_all_of_them_are_next():
    loop = LoopOptions(vram_target="8", cpu_offload_checkpointing=True, blocks_to_swap=11)
    asked = LoopOptions(vram_target="8")
    cfg = SimpleNamespace(loop=asked, explicit=frozenset(), whole=False, may_swap=True, precision=PLAIN)
    found = next_cheaper(cfg, loop, 28)
    assert describe_modes(found) == f"{OFFLOAD}, blocks_to_swap = 28"
    assert next_cheaper(cfg, found, 28) is None


def test_weights_that_train_are_not_swapped_between_two_steps():
    some = LoopOptions(vram_target="8", cpu_offload_checkpointing=True, blocks_to_swap=11)
    cfg = SimpleNamespace(loop=some, explicit=frozenset(), whole=True, may_swap=True, precision=PLAIN)
    assert next_cheaper(cfg, some, 28) is None


def test_more_blocks_may_be_swapped_between_two_steps():
    model, _ = adapted("lora linears", blocks=5)
    expected = gradients(model)
    for count in (4, 5):
        model.enable_block_swap(count, "cpu")
        assert_same_bits(gradients(model), expected)
    assert len(model.swap.groups) == 5


@pytest.mark.parametrize("target, processes, told", [("8", 2, 1), ("8", 1, 0), (None, 2, 0)])
def test_a_graph_that_never_changes_cannot_step_down_which_is_told(target, processes, told):
    cfg = SimpleNamespace(
        loop=LoopOptions(vram_target=target), explicit=frozenset(), whole=False, may_swap=True,
        precision=PLAIN, distributed=DistributedOptions(ddp_static_graph=True),
    )  # fmt: skip
    step_down = StepDown(cfg, cfg.loop, 0, processes)
    assert len(step_down.notes()) == told
    assert step_down.is_there(0, 28) is (target is not None and not told)


def test_what_the_user_set_stays():
    assert way_down(blocks_to_swap=0) == [CHEAP, EVERY_2ND, CHECKPOINT, OFFLOAD]
    assert way_down(blocks_to_swap=4) == []
    assert way_down(gradient_checkpointing=True, cpu_offload_checkpointing=False) == [
        f"{CHECKPOINT}, blocks_to_swap = 28"
    ]


@pytest.mark.parametrize(
    "allocated, reserved, gives",
    [
        (30, 95, True),  # near the limit, most of it free
        (30, 89, False),  # not near
        (91, 95, False),  # in use
        (85, 90, True),
        (100, 130, True),  # in RAM already
    ],
)
def test_a_large_reserve_near_the_cards_size_is_given_back(allocated, reserved, gives):
    assert should_give_back(allocated, reserved, 100) is gives


@pytest.mark.parametrize(
    "system, release, spills",
    [
        ("win32", "10", True),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", True),
        ("linux", "6.8.0-45-generic", False),
        ("darwin", "23.1.0", False),
    ],
)
def test_only_windows_drivers_use_ram_for_a_full_card(system, release, spills):
    assert driver_spills(system, release) is spills


def test_every_way_down_may_begin_between_two_steps():
    """A model of five blocks that has trained in the cheaper ways before; at the end all are swapped."""
    model, _ = adapted("lora", blocks=5)
    expected = gradients(model)
    loop = LoopOptions(vram_target="8")
    cfg = SimpleNamespace(loop=loop, explicit=frozenset(), whole=False, may_swap=True, precision=PLAIN)
    while loop := next_cheaper(cfg, loop, model.num_blocks):
        enable_modes(loop, model, torch.device("cpu"))
        assert_same_bits(gradients(model), expected)
    assert model.swapped == [0, 1, 2, 3, 4] and model.keep_input is not None
