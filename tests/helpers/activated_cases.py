"""A Linear with a LoRA and the GELU after it, on a device that has the kernel for both."""

import torch
from torch import nn
from torch.nn import functional as F

from library.memory.activation import activated
from library.memory.recomputation import cheaply, recompute
from networks.kinds.adapter import NO_DROPOUT, Dropout
from networks.kinds.linear import AdaptedLinear
from networks.kinds.lora import LoRA, LoRAArguments

INPUTS, OUTPUTS = 48, 200


def lora(rank: int, dropout: Dropout = NO_DROPOUT):
    return lambda base: LoRA(base.in_features, base.out_features, rank, 3.0, dropout)


def pissa(base: nn.Linear) -> LoRA:
    return LoRAArguments(pissa=True).make(base, 4, 2.0, NO_DROPOUT)


CASES = {
    "rank 3": lora(3),
    "rank 40, which is not kept": lora(40),
    "masks": lora(8, Dropout(neuron=0.3, rank=0.2, module=0.1)),
    "pissa": pissa,
}
WAYS = {"": lambda f, x: f(x), "cheaply": cheaply, "recompute": recompute}


def results(make, device: str, dtype: torch.dtype, way: str = "", *, fused: bool) -> list[torch.Tensor]:
    """What comes out, and gradients of the input and of both factors; the same draws each time."""
    torch.manual_seed(0)
    base = nn.Linear(INPUTS, OUTPUTS, bias=False).half().to(dtype).requires_grad_(False)
    x, direction = torch.randn(2, 37, INPUTS).half(), torch.randn(2, 37, OUTPUTS).half()
    adapter = make(base.float() if make is pissa else base)
    for factor in adapter.factors().values():
        nn.init.normal_(factor, std=0.5)
    one = AdaptedLinear.adopt(base.to(device, dtype), adapter.to(device))
    if dtype == torch.float64:
        adapter.double()
    adapter.fused = fused
    x = x.to(device, dtype).requires_grad_()
    torch.manual_seed(1)
    found = WAYS[way](lambda x: activated(one, x, F.gelu) * 1, x)
    factors = list(adapter.factors().values())
    return [found, *torch.autograd.grad(found, [x, *factors], direction.to(found))]


def distances(device: str, dtype: str) -> dict[str, float]:
    """From float64, relative; of results that are computed again 1.0 where they are other bits."""
    found = {}
    for name, make in CASES.items():
        ours = results(make, device, getattr(torch, dtype), fused=True)
        exact = results(make, device, torch.float64, fused=False)
        found[name] = max(
            ((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)
        )
        for way in ("cheaply", "recompute"):
            again = results(make, device, getattr(torch, dtype), way, fused=True)
            found[f"{name}, {way}"] = 1.0 - all(map(torch.equal, ours, again))
    return found
