"""What trials of kernels share: a result that is no number is as far off as can be."""

import math

import pytest
import torch

from library.memory.int8_probe import Products, why_not
from library.memory.quantised import quantised_product
from library.memory.trials import apart_from


def test_the_distance_is_relative_and_infinite_where_it_is_no_number():
    expected = torch.tensor([3.0, 4.0])
    assert apart_from(expected, expected) == 0
    assert apart_from(expected + torch.tensor([0.0, 0.5]), expected) == pytest.approx(0.1)
    for broken in (math.nan, math.inf):
        assert apart_from(torch.tensor([3.0, broken]), expected) == math.inf


def test_a_kernel_that_gives_nan_is_refused():
    def spoilt(function):
        is_int8 = function.func is quantised_product
        return (lambda x: function(x) * math.nan) if is_int8 else function

    reason = why_not(Products(64, {(16, 32): 1}), torch.float32, torch.device("cpu"), spoilt)
    assert reason is not None and "wrongly in int8" in reason
