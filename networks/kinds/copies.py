"""The factors of a whole model as its matrices are: one copy of all of them for each pass.

Factors are float32 and are used in the dtype of what they are applied to. Cast one by one, in each call and
each recomputation, they cost hundreds of kernels a step; here all are copied at once when the model is
called, and those of a part of it when that is computed again. Optimizers may change factors past every counter,
so that no cheaper moment is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from library.memory.recomputation import runs_again
from library.memory.side_by_side import joined, places_for

NOTHING_MADE = (-1, torch.empty(0))


class Copies:
    """The factors in another dtype, while a model's forward runs.

    Each is for one use, after which it is autograd's, or goes. What autograd has taken stays as it was until
    its backward pass; a recomputation makes its own, so that nothing waits for it.

    side_by_side: factors with as many columns that are used together, whose copies share their memory
    parts:        factors of each module that may be computed again alone
    """

    def __init__(
        self, factors: Iterable[Tensor], dtype: torch.dtype,
        side_by_side: Iterable[Sequence[Tensor]] = (), parts: Iterable[Sequence[Tensor]] = (),
    ) -> None:  # fmt: skip
        self.factors = list(factors)
        self.dtype = dtype
        self.side_by_side = [list(each) for each in side_by_side]
        self.parts = [list(each) for each in parts]
        self.part_of = {id(factor): part for part in self.parts for factor in part}
        self.made: dict[int, tuple[int, Tensor]] = {}  # id -> version of the factor, its copy

    def stand_before(self, model: nn.Module) -> list[RemovableHandle]:
        """Copy all factors before each forward of `model`, and let go of them after it."""
        return [
            model.register_forward_pre_hook(self.make),
            model.register_forward_hook(self.forget, always_call=True),
        ]

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Within: copies of the factors as they are now, made by what runs within."""
        before = self.made
        self.make(None, None)
        try:
            yield
        finally:
            self.made = before

    def forget(self, model: nn.Module, inputs: Any, output: Any) -> None:
        self.made = {}

    def make(self, model: nn.Module | None, inputs: Any) -> None:
        self.made = self.copied(self.factors, self.side_by_side)

    def make_again(self, factor: Tensor) -> None:
        """Of all factors of the part whose first this is; what another part has left goes."""
        part = self.part_of.get(id(factor), [])
        own = set(map(id, part))
        self.made = self.copied(part, [each for each in self.side_by_side if id(each[0]) in own])

    def copied(
        self, factors: Iterable[Tensor], side_by_side: Iterable[Sequence[Tensor]]
    ) -> dict[int, tuple[int, Tensor]]:
        """As `made`, of those that are in another dtype."""
        factors = [factor for factor in factors if factor.dtype != self.dtype]
        if not factors:
            return {}
        places: dict[int, Tensor] = {}
        for group in side_by_side:
            places |= zip(map(id, group), places_for(group, self.dtype))
        # the others with memory of their own: what is kept of one does not keep the rest
        copies = [
            places[id(f)] if id(f) in places else torch.empty_like(f, dtype=self.dtype)
            for f in factors
        ]
        torch._foreach_copy_(copies, [factor.detach() for factor in factors])
        return {id(f): (f._version, copy) for f, copy in zip(factors, copies)}

    def of(self, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """The factor in this dtype: its copy, unless that was used or the factor has changed since."""
        copy = self.taken(factor, dtype)
        return factor.detach().to(dtype) if copy is None else copy

    def together(self, factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Factors (n, columns) in this dtype as one, (sum of n, columns)."""
        copies = [self.taken(factor, dtype) for factor in factors]
        made = [f.detach() if copy is None else copy for f, copy in zip(factors, copies)]
        whole = joined(made) if made[0].dtype == dtype else None
        if whole is not None:
            return whole
        places = places_for(factors, dtype)
        torch._foreach_copy_(list(places), made)
        whole = joined(places)
        assert whole is not None, "places for them lie side by side"
        return whole

    def taken(self, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Its copy, which from now on is the caller's; None where there is none."""
        if id(factor) not in self.made and factor.dtype != self.dtype and runs_again():
            self.make_again(factor)
        version, copy = self.made.pop(id(factor), NOTHING_MADE)
        is_it = version == factor._version and copy.dtype == dtype and copy.device == factor.device
        return copy if is_it else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Copies:
        groups = (deepcopy(each, memo) for each in (self.side_by_side, self.parts))
        return Copies(deepcopy(self.factors, memo), self.dtype, *groups)


def parts_of(model: nn.Module, factors: Iterable[Tensor]) -> Iterator[Sequence[Tensor]]:
    """The factors of each module in a model's own lists of them."""
    known = set(map(id, factors))
    for modules in model.children():
        for module in modules if isinstance(modules, nn.ModuleList) else ():
            if found := [each for each in module.parameters() if id(each) in known]:
                yield found


NO_COPIES = Copies((), torch.float32)
"""Where no model stands around: each factor is cast when it is used."""
