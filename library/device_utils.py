"""Names of dtypes, moving tensors without waiting, and models that take memory only while used."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

PRECISIONS = {
    "no": torch.float32,
    "float": torch.float32,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class HoldsTrained(Protocol):
    """What is read of a run's precision."""

    @property
    def full_bf16(self) -> bool: ...


def precision_dtype(name: str) -> torch.dtype:
    """The dtype of a precision name as sd-scripts spells it: no, float, fp32, fp16, bf16."""
    return PRECISIONS[name]


def trained_dtype(options: HoldsTrained) -> torch.dtype:
    """In which what trains is held and updated."""
    return torch.bfloat16 if options.full_bf16 else torch.float32


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` on `device` without making the host wait: from pinned memory where the device is a GPU."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def all_alike(rows: torch.Tensor) -> bool:
    """Whether a tensor's rows, along its first axis, have the same bits. Waits for the device."""
    return bool((rows == rows[:1]).all())


def clean_memory_on_device(device: torch.device | str) -> None:
    """Collect garbage and return cached blocks of the device to the driver."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


class _Unfilled(TorchFunctionMode):
    """Within: what torch.nn.init would fill stays as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Within: modules are made on the meta device.

    Their initial values are left out: there is nothing to fill, it takes longer than the rest, and the
    first of them would load torch's compiler, for seconds.
    """
    with torch.device("meta"), _Unfilled():
        yield


class LoadedOnUse:
    """A model that is loaded when something is first asked of it: a complete cache costs no loading.

    load: makes the model on `device`. After `rest` or `unload`, use brings it back.
    """

    def __init__(self, load: Callable[[], torch.nn.Module], device: torch.device | str) -> None:
        self._load = load
        self._device = device
        self._resting: torch.nn.Module | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            self.model = self._load() if self._resting is None else self._resting.to(self._device)
            self._resting = None
            return self.model
        if name.startswith("_"):  # pickle and copy ask for such before there is anything to ask
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def rest(self) -> None:
        """Move the model to the host's memory, if it is loaded."""
        if "model" in vars(self):
            self._resting = self.model.cpu()
            del self.model
            clean_memory_on_device(self._device)

    def unload(self) -> None:
        """Forget the model, if it is loaded."""
        vars(self).pop("model", None)
        self._resting = None
        clean_memory_on_device(self._device)
