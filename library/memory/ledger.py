"""The ledger of a step: every storage from birth to death, and every kernel with what it moves.

It watches the operators below autograd, so it sees what really runs: on real tensors, and on the meta
device, where nothing is computed and a step of any size is counted in seconds. There tensors on the
CPU are those that a run has in the host's memory.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

CUDA_GRANULE = 512
"""CUDA's allocator rounds every storage up to a multiple of this many bytes."""

aten = torch.ops.aten
CREATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
ALIAS = {"_unsafe_view", "_reshape_alias", "lift_fresh", "set_"}
GEMM = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_scaled_mm", "_int_mm"}
GEMM |= {"addmm_", "baddbmm_", "low_gelu"}
BESIDE = {"low_gelu": 1}
"""Products that end with more than their result: which argument they write it to."""
ATTENTION = "_scaled_dot_product_"
ATTENTION_BACKWARD = 3
"""Kernels of an attention's backward on CUDA: row sums, the gradients, and the cast of q's."""
OVERWRITTEN = {"copy_", "fill_", "zero_"}  # their first argument is written and not read

IN_PLACE = "in place"

Form = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


@cache
def kind_of(func: OpOverload) -> str:
    """view: no kernel; create: memory only; else the kind of kernel: gemm, attention or glue."""
    name = func._schema.name.partition("::")[2]
    if func.namespace == "prim" or func.is_view or name in ALIAS:
        return "view"
    if name in CREATE:
        return "create"
    if name in GEMM:
        return "gemm"
    return "attention" if name.startswith(ATTENTION) else "glue"


@dataclass
class Pool:
    """Bytes in one memory: now, and the most there were."""

    now: int = 0
    peak: int = 0

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass
class Kernels:
    """What was launched on the device, by kind: gemm, attention, and glue for all the rest.

    moved:  bytes that glue reads and writes, and that products write beside their result
    linked: bytes between the device and the host
    """

    launched: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    linked: int = 0


class Ledger(TorchDispatchMode):
    """Within: counts what is on `device`, and beside it what is in the host's memory.

    granule: sizes are rounded up to a multiple of it
    """

    def __init__(self, device: torch.device, granule: int = CUDA_GRANULE) -> None:
        super().__init__()
        self.device, self.granule = device, granule
        self.pools = {device.type: Pool(), "cpu": Pool()}
        self.kernels = Kernels()
        self._alive: dict[int, str] = {}  # the place of each storage
        self._made: dict[object, Form | list[Form | None] | str] = {}

    @property
    def on_device(self) -> Pool:
        return self.pools[self.device.type]

    @property
    def in_host(self) -> Pool:
        return self.pools["cpu"]

    def enter(self, tensors: Iterable[Tensor]) -> int:
        """Note what is there already; returns the bytes on the device not noted before."""
        before = self.on_device.now
        for tensor in tensors:
            self._birth(tensor, tensor.device.type)
        return self.on_device.now - before

    def enter_in_host(self, tensors: Iterable[Tensor]) -> None:
        """Note what stands for tensors in the host's memory, wherever it is itself."""
        for tensor in tensors:
            self._birth(tensor, "cpu")

    def launch(self, reads: Sequence[Tensor], writes: Sequence[Tensor], kind: str = "glue") -> None:
        """Note one kernel. Copies between device and host are no kernels but go over the link."""
        places = set(map(self._place, (*reads, *writes)))
        if self.device.type not in places:
            return
        if len(places) > 1 and len(reads) == len(writes) == 1:
            self.kernels.linked += size_of(writes[0])
            return
        self.kernels.launched[kind] += 1
        if kind == "glue":
            self.kernels.moved += sum(map(size_of, (*reads, *writes)))

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:  # fmt: skip
        kwargs, kind, name = kwargs or {}, kind_of(func), func._schema.name.partition("::")[2]
        if kind == "view":
            return func(*args, **kwargs)
        out: object = _from_meta(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs) if kind == "create" else self._repeated(func, args, kwargs)
        results = list(tensors_in([out]))
        if not func._schema.is_mutable:
            for tensor in results:
                self._birth(tensor, tensor.device.type)
        if kind != "create":
            inputs = [*args, *kwargs.values()]
            skipped = name in OVERWRITTEN
            self.launch(list(tensors_in(inputs[1:] if skipped else inputs)), results, kind)
        if name in BESIDE:
            self.kernels.moved += sum(map(size_of, tensors_in([args[BESIDE[name]]])))
        if kind == "attention" and name.endswith("backward"):
            self.kernels.launched[kind] += ATTENTION_BACKWARD - 1
        return out

    def _repeated(
        self, func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> object:
        """func(*args, **kwargs); on the meta device what it gave for the like before, made anew.

        Blocks repeat, and torch works the form of every result out in Python.
        """
        if self.device.type != "meta":
            return func(*args, **kwargs)
        key = func, tuple(map(_form, args)), tuple((n, _form(v)) for n, v in kwargs.items())
        if made := self._made.get(key):
            return _again(made, args)
        out = func(*args, **kwargs)
        if func._schema.is_mutable:
            if out is args[0] and _form(out) == key[1][0] and _writes_first(func):
                self._made[key] = IN_PLACE
        elif isinstance(out, Tensor) and out.is_meta:
            self._made[key] = _form_of(out)
        elif isinstance(out, tuple) and all(t is None or _is_meta(t) for t in out):
            self._made[key] = [t if t is None else _form_of(t) for t in out]
        return out

    def _place(self, tensor: Tensor) -> str:
        return self._alive.get(tensor.untyped_storage()._cdata, tensor.device.type)

    def _birth(self, tensor: Tensor, place: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self.granule) * self.granule
        pool = self.pools.get(place)
        if key in self._alive or pool is None:
            return
        self._alive[key] = place
        pool.add(size)
        weakref.finalize(storage, self._death, key, pool, size).atexit = False

    def _death(self, key: int, pool: Pool, size: int) -> None:
        del self._alive[key]
        pool.now -= size


def _is_meta(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_meta


@cache
def _writes_first(func: OpOverload) -> bool:
    """Whether an operator changes its first argument and no other."""
    written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
    return written[0] and not any(written[1:])


def _again(made: Form | list[Form | None] | str, args: tuple[object, ...]) -> object:
    """A result of that form, or of several; the first argument of an operator that changes it."""
    if isinstance(made, str):
        return args[0]
    if isinstance(made, list):
        return tuple(form and _again(form, args) for form in made)
    shape, stride, dtype, device = made
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def _form_of(tensor: Tensor) -> Form:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _form(value: object) -> object:
    """What decides of an argument which form a result has: as a key."""
    if isinstance(value, Tensor):
        return _form_of(value)
    return tuple(map(_form, value)) if isinstance(value, list) else value


def _from_meta(
    func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Tensor | None:
    """The result of a copy from the meta device to the host, which torch itself refuses; else None."""
    if func is aten.copy_.default:
        target, source = args[0], args[1]
        assert isinstance(target, Tensor) and isinstance(source, Tensor)
        return target if source.is_meta and not target.is_meta else None
    source, device = args[0] if args else None, kwargs.get("device")
    if func is aten._to_copy.default and device is not None:
        assert isinstance(source, Tensor) and isinstance(device, torch.device)
        dtype = kwargs.get("dtype") or source.dtype
        assert isinstance(dtype, torch.dtype)
        if source.is_meta and device.type != "meta":
            return torch.empty_strided(source.shape, source.stride(), dtype=dtype, device=device)
    return None


def tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    """The different tensors among values and in lists among them."""
    seen: set[int] = set()
    for value in values:
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, Tensor) and id(each) not in seen:
                seen.add(id(each))
                yield each


def size_of(tensor: Tensor) -> int:
    """Bytes that a kernel reads of a tensor: expanded dimensions once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride()):
        if stride:
            size *= length
    return size
