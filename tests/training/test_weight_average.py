"""The moving average of the weights: its formula, and what it leaves as it was."""

import pytest
import torch

from library.training.weight_average import WeightAverage
from tests.helpers.reads import CountReads


def moved(parameters, step):
    """Another value for every parameter at every step, by itself."""
    for number, parameter in enumerate(parameters):
        generator = torch.Generator().manual_seed(100 * step + number)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))


def parameters_of(dtype):
    return [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 4), (5,))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_average_with_the_decay_that_grows(dtype):
    parameters = parameters_of(dtype)
    average = WeightAverage(parameters, 0.7, start_step=3)
    expected, updates = None, 0
    for step in range(1, 31):
        moved(parameters, step)
        average.update(step)
        if step < 3:
            assert not average.tensors
            continue
        now = [parameter.detach().double() for parameter in parameters]
        stays = min(0.7, (1 + updates) / (10 + updates)) if expected else 0.0
        expected = [stays * e + (1 - stays) * n for e, n in zip(expected or now, now)]
        updates += 1
    for tensor, right in zip(average.tensors, expected, strict=True):
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), right, rtol=1e-5, atol=1e-6)


def test_an_update_reads_nothing_and_what_is_put_in_place_goes_again():
    parameters = parameters_of(torch.bfloat16)
    average = WeightAverage(parameters, 0.9, start_step=0)
    with CountReads() as counter:
        for step in range(1, 4):
            moved(parameters, step)
            average.update(step)
    assert counter.reads == 0
    assert average.fits(average.kept())
    assert not WeightAverage(parameters[:1], 0.9, start_step=0).fits(average.kept())
    addresses = [parameter.data_ptr() for parameter in parameters]
    before = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert all(map(torch.equal, parameters, average.tensors))
        1 / 0  # noqa: B018
    assert [parameter.data_ptr() for parameter in parameters] == addresses
    assert all(map(torch.equal, parameters, before))
