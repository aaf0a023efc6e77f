"""What a function's result depends on beside its inputs, noted to run it again: autocast, randomness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


class Circumstances:
    """Autocast as it is now for the devices of some tensors and, if asked, their random state."""

    def __init__(self, tensors: list[Tensor], *, random: bool) -> None:
        self.kinds = {"cpu", *(tensor.device.type for tensor in tensors)} - {"meta"}
        self.autocast = self.autocast_now()
        cards = {tensor.device for tensor in tensors if tensor.is_cuda}
        # what is recorded as a CUDA graph draws nothing, and its recorder lets nobody ask; who computes
        # on the CPU does not ask either, since that alone begins to use a card
        random = random and not (cards and torch.cuda.is_current_stream_capturing())
        self.cards = cards if random else set()
        self.random = self.random_now() if random else []

    def autocast_now(self) -> dict[str, tuple[bool, torch.dtype]]:
        return {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in self.kinds
            if torch.amp.is_autocast_available(kind)
        }

    def random_now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(card) for card in self.cards)]

    def set_random(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for card, state in zip(self.cards, states[1:], strict=True):
            torch.cuda.set_rng_state(state, card)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within: as it was then. After: as it was before."""
        now = self.random_now() if self.random else []
        try:
            if self.random:
                self.set_random(self.random)
            with ExitStack() as stack:
                if self.autocast != self.autocast_now():
                    for kind, (enabled, dtype) in self.autocast.items():
                        stack.enter_context(torch.autocast(kind, dtype, enabled=enabled))
                yield
        finally:
            if self.random:
                self.set_random(now)
