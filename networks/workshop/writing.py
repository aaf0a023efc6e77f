"""Adapter files written a tensor at a time, whole or not at all, with metadata that says what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from library.errors import AdapterFileError, Problem, as_utf8
from library.system.system_errors import output_errors
from library.system.tensor_writing import Planned, TensorWriter, tensor_writer
from library.utils import atomic_write
from networks.kinds.stored import is_finite

HASHES = ("sshs_", "modelspec.hash")
MADE_FROM = "ss_made_from"
"""The tool and its files, as JSON."""


class AdapterWriter:
    """Puts the planned tensors of an adapter file. Raises AdapterFileError for one that is not finite."""

    def __init__(self, writer: TensorWriter, path: Path) -> None:
        self.writer, self.path = writer, path

    def put(self, key: str, tensor: Tensor) -> None:
        if not is_finite(tensor):
            message = "would hold NaN or infinity; nothing was written."
            raise AdapterFileError(Problem(message, key), source=str(self.path))
        self.writer.put(key, tensor)


@contextmanager
def adapter_writer(
    path: Path, plan: Mapping[str, Planned], metadata: Mapping[str, str]
) -> Iterator[AdapterWriter]:
    """Within: put every planned tensor. After: the file is there, with sd-scripts' hashes."""
    with (
        output_errors(path),
        atomic_write(path) as temporary,
        tensor_writer(temporary, plan, metadata, hashed=True) as writer,
    ):
        yield AdapterWriter(writer, path)


def derived(
    metadata: Mapping[str, str], tool: str, files: Sequence[Path], **changes: object
) -> dict[str, str]:
    """The metadata of a file that `tool` makes of these: the first one's, less its hashes.

    changes: ss_* entries by their names without ss_; None removes one
    """
    kept = {name: text for name, text in metadata.items() if not name.startswith(HASHES)}
    made_from = {"tool": tool, "files": [as_utf8(file.name) for file in files]}
    kept[MADE_FROM] = json.dumps(made_from, ensure_ascii=False)
    for name, value in changes.items():
        kept.pop(f"ss_{name}", None)
        if value is not None:
            kept[f"ss_{name}"] = str(value)
    return kept
