"""Tensors that wait in RAM: they leave the device, come back with the same bits, ahead of their use."""

import torch

from library.memory.kept import restored
from library.memory.offloading import RamStore
from tests.helpers.alive import Alive
from tests.helpers.late_lane import LateLane
from tests.helpers.memory_modes import adapted, assert_same_bits, gradients


def test_tensors_leave_and_come_back_one_ahead():
    store = RamStore(LateLane())
    originals = [torch.randn(4) for _ in range(3)]
    with Alive() as alive:
        parked = [store.put(original.clone()) for original in originals]
        assert [each.here is None for each in parked] == [True, True, False]
        assert torch.equal(restored(parked[2]), originals[2])
        assert [each.here is None for each in parked] == [True, False, True]
        assert torch.equal(restored(parked[1]), originals[1])
        assert torch.equal(restored(parked[1]), originals[1])  # a second backward pass
        assert torch.equal(restored(parked[0]), originals[0])
        del parked
        assert alive.size() == 0


def test_late_copies_are_waited_for():
    model, _ = adapted("lora dropouts", blocks=3)
    expected = gradients(model)
    model, _ = adapted("lora dropouts", blocks=3)
    model.enable_gradient_checkpointing(cpu_offload=True)
    lane = LateLane()
    model.keep_input = RamStore(lane).put
    assert_same_bits(gradients(model), expected)
    assert len(lane.ordered) == 2 + 1  # the last block parks nothing; the one before it is still there
