"""The counter of reads sees every way in which the host waits for a tensor, and nothing else."""

import numpy as np
import pytest
import torch

from tests.helpers.reads import CountReads

READS = {
    "item": lambda t: t[0].item(),
    "float": lambda t: float(t[0]),
    "bool": lambda t: bool(t[0]),
    "a condition": lambda t: 1 if t[0] > 0 else 0,
    "the larger of two": lambda t: max(t[0], t[1]),
    "format": lambda t: f"{t[0]}",
    "cpu": lambda t: t.cpu(),
    "to": lambda t: t.to("cpu"),
    "to, by keyword": lambda t: t.to(device="cpu"),
    "numpy": lambda t: t.numpy(),
    "asarray": lambda t: np.asarray(t),
    "tolist": lambda t: t.tolist(),
    "nonzero": lambda t: torch.nonzero(t),
    "masked_select": lambda t: torch.masked_select(t, t > 0),
    "index by a mask": lambda t: t[t > 0],
    "unique": lambda t: torch.unique(t),
    "equal": lambda t: torch.equal(t, t + 1),
    "allclose": lambda t: torch.allclose(t, t),
    "repeat_interleave": lambda t: torch.repeat_interleave(t, t.long()),
}
NO_READS = {
    "arithmetic": lambda t: (t + 1).mul_(2).sum(),
    "dtype": lambda t: t.to(torch.bfloat16),
    "the run's own device": lambda t: t.to(torch.device("cpu")),
    "index by numbers": lambda t: t[torch.tensor([0])],
    "where": lambda t: torch.where(t > 0, t, -t),
    "filling by a mask": lambda t: t.clone().masked_fill_(t > 0, 0),
    "shape": lambda t: (t.shape, len(t), t.dtype, t.device),
}


@pytest.mark.parametrize("way", READS)
def test_every_way_to_read_a_tensor_is_counted_with_its_place(way):
    with CountReads() as counter:
        READS[way](torch.ones(3))
    assert counter.reads == 1 and counter.places[0].startswith(f"{__name__}.<lambda>: ")


@pytest.mark.parametrize("way", NO_READS)
def test_what_stays_on_the_device_is_not_counted(way):
    with CountReads() as counter:
        NO_READS[way](torch.ones(3))
    assert counter.places == []


def test_reads_in_the_backward_pass_are_counted():
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    value = torch.ones(3, requires_grad=True)
    with CountReads() as counter:
        Reading.apply(value).sum().backward()
    assert counter.reads == 1
