"""A model that is loaded when it is used, rests in RAM and is let go."""

import pytest
import torch

from library.device_utils import LoadedOnUse


class Loads:
    """A load function that counts."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return torch.nn.Linear(2, 2)


def test_a_resting_model_is_not_loaded_again_and_an_unloaded_one_is():
    load = Loads()
    model = LoadedOnUse(load, "cpu")
    model.rest()
    model.unload()
    assert load.count == 0
    weight = model.weight
    model.rest()
    assert "model" not in vars(model)
    assert model.weight is weight and load.count == 1
    model.unload()
    assert model.in_features == 2 and load.count == 2


@pytest.mark.gpu
def test_a_resting_model_leaves_the_gpu_and_comes_back():
    model = LoadedOnUse(lambda: torch.nn.Linear(1024, 1024).cuda(), "cuda")
    ones = torch.ones(1, 1024, device="cuda")
    result = model(ones).cpu()  # cuBLAS keeps a workspace from its first product on
    there = torch.cuda.memory_allocated()
    model.rest()
    assert torch.cuda.memory_allocated() <= there - 4 * 1024**2
    assert torch.equal(model(ones).cpu(), result)
