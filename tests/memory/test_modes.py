"""What the trainer asks of a family's model is there on every Python."""

import inspect

import pytest

from library.memory.modes import SavesMemory
from library.training.compiling import Compiles
from tests.helpers.tiny import tiny_transformer


@pytest.mark.parametrize("asked", [SavesMemory, Compiles])
def test_the_model_offers_it_without_its_submodules_being_looked_up(asked):
    """As isinstance looks from Python 3.12 on, where a name among the submodules does not count."""
    model = tiny_transformer()
    for name in (name for name in vars(asked) if not name.startswith("_")):
        inspect.getattr_static(model, name)
    assert isinstance(model, asked)
