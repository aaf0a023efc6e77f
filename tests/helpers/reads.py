"""Counting what makes the host wait for the device, on a machine whose only device is the CPU."""

import sys

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What torch says of operators whose result, or its shape, the host has to know: item, equal, nonzero."""


class CountReads(TorchDispatchMode):
    """Notes every read of a tensor by the host.

    places: of each read "module.function: what", by the nearest caller outside of torch. Not seen is a
    copy into a tensor of the host by copy_, which a CPU's tensors do not tell from another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.copies = CountCopies(self.places)

    @property
    def reads(self) -> int:
        return len(self.places)

    def __enter__(self):
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.index.Tensor:  # waits to count what a mask picks, not for numbers
            waits = any(each is not None and each.dtype is torch.bool for each in args[1])
        else:
            waits = WAITING & set(function.tags)
        if waits:
            self.places.append(f"{caller()}: {function.overloadpacket.__name__}")
        return function(*args, **(kwargs or {}))


class CountCopies(TorchFunctionMode):
    """Notes the copies to the host that a CPU's tensors leave out.

    A device that is named counts; the one that a run computes on comes as a torch.device.
    """

    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_cpu = function is Tensor.to and "cpu" in [
            each for each in (*args[1:], kwargs.get("device")) if isinstance(each, str)
        ]
        if function in COPIES or to_cpu:
            self.places.append(f"{caller()}: {function.__name__}")
        return function(*args, **kwargs)


def caller() -> str:
    """The innermost function outside of torch and of this file."""
    frame = sys._getframe(1)
    while frame:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and module.partition(".")[0] != "torch":
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"
