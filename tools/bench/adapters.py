"""Time one adapted layer, forward and backward, against the bare Linear, LyCORIS and peft.

python -m tools.bench.adapters [--device cuda --tokens 4096] [--layers 2048x2048] [--json adapters.json]

The first arm is the bare Linear: a ratio of 1.1 means that the adapter costs a tenth of its layer.
The project's factors are copied once a call, as before each pass of a model; others cast theirs
under autocast. LyCORIS builds the changed weight by default and with bypass applies the factors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from library.errors import ConfigError
from library.system.program import run_main
from networks.kinds.adapter import NO_DROPOUT
from networks.kinds.kind import KindArguments
from networks.kinds.linear import AdaptedLinear, copies_for
from networks.kinds.loha import LoHaArguments
from networks.kinds.lokr import LoKrArguments
from networks.kinds.lora import LoRAArguments
from networks.kinds.oft import OFTArguments
from tools.bench import peers
from tools.bench.measuring import (
    Figures,
    Work,
    add_precision,
    clock_of_work,
    compare,
    made,
    make_parser,
    report,
    settle,
    time_arms,
    whole_number,
)

OWN: dict[str, KindArguments] = {
    "lora": LoRAArguments(),
    "pissa": LoRAArguments(pissa=True),
    "loha": LoHaArguments(),
    "oft": OFTArguments(),
    "boft": OFTArguments(boft=True),
    "lokr_full f8": LoKrArguments(lokr_factor=8, lokr_full_matrix=True),
    "lokr_full f16": LoKrArguments(lokr_factor=16, lokr_full_matrix=True),
    "lokr f8": LoKrArguments(lokr_factor=8),
}
LYCORIS: dict[str, tuple[str, dict[str, object]]] = {
    "LyCORIS lora": ("lora", {}),
    "LyCORIS lora, bypass": ("lora", {"bypass_mode": True}),
    "LyCORIS lokr_full f8": ("lokr", {"factor": 8, "full_matrix": True}),
    "LyCORIS lokr_full f8, bypass": (
        "lokr", {"factor": 8, "full_matrix": True, "bypass_mode": True},
    ),
}  # fmt: skip


def size_of(text: str) -> tuple[int, int]:
    """(in, out) of "INxOUT"."""
    numbers = text.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ConfigError(f"--layers {text}: expected input x output, as 2048x8192.")
    return int(numbers[0]), int(numbers[1])


def pass_through(forward: Callable[[Tensor], Tensor], x: Tensor, trained: list[Tensor]) -> Work:
    """Forward and backward to the input and to what is trained."""
    outgoing = torch.randn_like(forward(x))
    wanted = [x, *trained]

    def work() -> None:
        torch.autograd.grad(forward(x), wanted, outgoing)

    return work


def own(base: nn.Linear, x: Tensor, arguments: KindArguments, rank: int) -> Work:
    adapter = arguments.make(base, rank, rank, NO_DROPOUT)
    with torch.device(x.device):
        layer = AdaptedLinear.adopt(base, adapter.to(x.device))
    copies_for([adapter], x.dtype).stand_before(layer)
    return pass_through(layer, x, list(adapter.parameters()))


def of_lycoris(base: nn.Linear, x: Tensor, name: str, rank: int) -> Work:
    kind, more = LYCORIS[name]
    trained = peers.attach_lycoris([base], kind, rank, **more)
    return pass_through(mixed(base, x), x, list(trained))


def of_peft(base: nn.Linear, x: Tensor, rank: int) -> Work:
    layer = nn.Sequential()
    layer.add_module("to_q", base)  # as it is called in diffusers' blocks
    return pass_through(mixed(layer, x), x, list(peers.attach_peft(layer, rank)))


def mixed(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer under autocast to the dtype of `x`."""
    enabled = x.dtype != torch.float32

    def forward(given: Tensor) -> Tensor:
        with torch.autocast(given.device.type, dtype=x.dtype, enabled=enabled):
            output: Tensor = layer(given)
        return output

    return forward


def measure(options: argparse.Namespace, size: tuple[int, int]) -> list[Figures]:
    inputs, outputs = size
    x = torch.randn(1, options.tokens, inputs, device=options.device).to(options.dtype)
    x.requires_grad_(True)

    def base() -> nn.Linear:
        linear = nn.Linear(inputs, outputs, bias=False, device=options.device)
        return linear.to(options.dtype).requires_grad_(False)

    makers: dict[str, Callable[[], Work]] = {"Linear": lambda: pass_through(base(), x, [])}
    for name, arguments in OWN.items():
        makers[name] = partial(own, base(), x, arguments, options.rank)
    makers["peft lora"] = partial(of_peft, base(), x, options.rank)
    for name in LYCORIS:
        makers[name] = partial(of_lycoris, base(), x, name, options.rank)
    times = time_arms(made(makers), options.rounds, options.device, clock_of_work(options.device))
    return [{"layer": f"{inputs}x{outputs}", **row} for row in compare(times)]


def main() -> None:
    assert __doc__
    parser = make_parser(__doc__, rounds=15)
    add = parser.add_argument
    add("--layers", nargs="+", default=["2048x2048", "2048x8192"], help="input x output")
    add("--tokens", type=whole_number, default=1024)
    add("--rank", type=whole_number, default=16)
    add_precision(parser)
    options = settle(parser)
    rows = [row for size in map(size_of, options.layers) for row in measure(options, size)]
    report(options, rows, f"{options.tokens} tokens, rank {options.rank}, {options.precision}")


if __name__ == "__main__":
    run_main(main)
