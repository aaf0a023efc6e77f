"""Tensors of a file that is being made, put away until all of them are known.

A file begins with the shapes of all its tensors, and those of a result are known at the end only; so
that no result has to be in memory, the tensors wait in a nameless file beside the place of the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from library.system.system_errors import output_errors
from library.system.tensor_files import READABLE
from library.system.tensor_writing import Planned
from networks.workshop.writing import adapter_writer


class Spool:
    """Within: put tensors, then write them. folder: on the disk that they wait on. Raises OutputError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan: dict[str, Planned] = {}
        self.starts: dict[str, int] = {}

    def __enter__(self) -> Spool:  # noqa: PYI034  Python 3.10 has no Self
        with output_errors(self.folder):
            self.file = tempfile.TemporaryFile(dir=self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.file.close()

    def put(self, key: str, tensor: Tensor) -> None:
        assert key not in self.plan, key
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        with output_errors(self.folder):
            self.starts[key] = self.file.seek(0, 2)
            self.file.write(data.numpy().data)
        self.plan[key] = Planned.of(tensor)

    def get(self, key: str) -> Tensor:
        planned = self.plan[key]
        data = torch.empty(planned.size, dtype=torch.uint8)
        self.file.seek(self.starts[key])
        read = self.file.readinto(data.numpy().data)
        assert read == planned.size, key
        return data.view(READABLE[planned.dtype]).view(planned.shape)

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """The adapter file of all that was put, whole or not at all; see adapter_writer."""
        with adapter_writer(path, self.plan, metadata) as writer:
            for key in self.plan:
                writer.put(key, self.get(key))
