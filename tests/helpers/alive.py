"""The memory that lives: every storage that operations made and nothing has freed yet."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive(TorchDispatchMode):
    """Notes, while it is entered, what memory the operations return; not that of `others`."""

    def __init__(self, others: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.others = {StorageWeakRef(tensor.untyped_storage()) for tensor in others}
        self.known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                memory = StorageWeakRef(tensor.untyped_storage())
                if memory not in self.others:
                    size = tensor.untyped_storage().nbytes()
                    self.known.setdefault(memory.cdata, (memory, size))
        return result

    def size(self) -> int:
        """Bytes that are alive."""
        return sum(size for memory, size in self.known.values() if not memory.expired())
