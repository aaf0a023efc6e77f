"""The random generators of the process, as tensors that a state can keep."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy
import torch
from torch import Tensor


def random_states() -> dict[str, Tensor]:
    """The generators of torch, of this process's CUDA device, of numpy and of Python.

    The trainer's own draws depend on the position alone; these are for optimizers and schedules of
    the user's that draw by themselves.
    """
    _, words, gauss = random.getstate()
    of_numpy = numpy.random.get_state(legacy=False)
    keys, place = of_numpy["state"]["key"], of_numpy["state"]["pos"]
    states = {
        "rng.torch": torch.get_rng_state(),
        "rng.python": torch.tensor(words, dtype=torch.int64),
        "rng.python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "rng.numpy": torch.tensor([*keys.tolist(), place, of_numpy["has_gauss"]]),
        "rng.numpy.gauss": torch.tensor([of_numpy["gauss"]], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["rng.cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Undo what happened to the generators since `random_states`."""
    torch.set_rng_state(states["rng.torch"])
    gauss = states["rng.python.gauss"].tolist()
    random.setstate((3, tuple(states["rng.python"].tolist()), gauss[0] if gauss else None))
    *keys, place, has_gauss = states["rng.numpy"].tolist()
    cached = states["rng.numpy.gauss"].item()
    numpy.random.set_state(("MT19937", numpy.array(keys, numpy.uint32), place, has_gauss, cached))
    if "rng.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng.cuda"])
