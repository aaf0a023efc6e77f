"""The factors of a whole model as its matrices are: one copy of all of them for each pass.

Factors are float32 and are used in the dtype of what they are applied to. Cast one by one, in each call and
each recomputation, they cost hundreds of kernels a step; here all are copied at once when the model is
called. Optimizers may change factors past every counter, so that no cheaper moment is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

NOTHING_MADE = (-1, torch.empty(0))


class Copies:
    """The factors in another dtype, while a model's forward runs.

    Each is for one use, after which it is autograd's, or goes. What autograd has taken stays as it was until
    its backward pass; a recomputation casts its own, so that nothing waits for it.
    """

    def __init__(self, factors: Iterable[Tensor], dtype: torch.dtype) -> None:
        self.factors = list(factors)
        self.dtype = dtype
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
        factors = [factor for factor in self.factors if factor.dtype != self.dtype]
        if not factors:
            return
        # each with memory of its own: what is kept of one does not keep the others
        copies = [torch.empty_like(factor, dtype=self.dtype) for factor in factors]
        torch._foreach_copy_(copies, [factor.detach() for factor in factors])
        self.made = {id(f): (f._version, copy) for f, copy in zip(factors, copies)}

    def of(self, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """The factor in this dtype: its copy, unless that was used or the factor has changed since."""
        version, copy = self.made.pop(id(factor), NOTHING_MADE)
        if version == factor._version and copy.dtype == dtype and copy.device == factor.device:
            return copy
        return factor.detach().to(dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Copies:
        return Copies(deepcopy(self.factors, memo), self.dtype)


NO_COPIES = Copies((), torch.float32)
"""Where no model stands around: each factor is cast when it is used."""
