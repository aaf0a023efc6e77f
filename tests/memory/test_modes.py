"""What the trainer asks of a family's model is there on every Python."""

import inspect

import pytest
import torch

from library.anima_backend.modelling import dit
from library.memory.lanes import AtOnce
from library.memory.modes import SavesMemory, enable_modes
from library.settings.flags.loop import LoopOptions
from library.training.compiling import Compiles
from tests.helpers.tiny import tiny_transformer


@pytest.mark.parametrize("asked", [SavesMemory, Compiles])
def test_the_model_offers_it_without_its_submodules_being_looked_up(asked):
    """As isinstance looks from Python 3.12 on, where a name among the submodules does not count."""
    model = tiny_transformer()
    for name in (name for name in vars(asked) if not name.startswith("_")):
        inspect.getattr_static(model, name)
    assert isinstance(model, asked)


def test_inputs_leave_from_where_the_model_computes_though_it_lay_in_ram(monkeypatch):
    """Of weights that are swapped the model is loaded to RAM; copies from a card want a lane of the card's."""
    model, order = tiny_transformer(), []

    def lane_of(device):
        order.append("swapped" if model.swap is not None else "in RAM")
        return AtOnce()

    monkeypatch.setattr(dit, "lane_of", lane_of)
    loop = LoopOptions(blocks_to_swap=1, cpu_offload_checkpointing=True)
    enable_modes(loop, model, torch.device("cpu"))
    assert order == ["swapped"]


@pytest.mark.gpu
def test_on_a_card_inputs_leave_beside_the_computation():
    loop = LoopOptions(blocks_to_swap=1, cpu_offload_checkpointing=True)
    enable_modes(loop, model := tiny_transformer(), torch.device("cuda"))
    assert model.keep_input.__self__.lane.is_beside
