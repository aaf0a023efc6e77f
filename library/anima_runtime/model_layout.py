"""How the files of a run's DiT spell it, read from their headers: a trained one is written alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from library.anima_runtime import key_mapping
from library.anima_runtime.model_facts import ModelFiles
from library.anima_runtime.model_loading import ADAPTER, DIT, replace_adapter, transformer_keys
from library.anima_runtime.quantised_files import read_layout
from library.errors import ModelFileError
from library.system.tensor_files import FLOATS, TensorEntry, TensorFileError, read_header
from library.system.tensor_writing import Planned
from networks.model_layout import ModelLayout

WHOLE = torch.bfloat16
"""In place of a dtype of 8 bits: Anima's own."""


def layout_of(files: ModelFiles) -> ModelLayout:
    """Keys and dtypes of the DiT's file; of an LLM adapter in a file of its own under the same prefix.

    The file fits the network: it was inspected. What the network does not use is kept as it is.
    """
    entries = entries_of(files.transformer)
    prefix = key_mapping.transformer_prefix(entries)
    assert prefix is not None, "the file was inspected"
    more = read_layout(files.transformer, DIT, transformer_keys(entries, prefix)).more
    named = key_mapping.transformer_entries(
        {key: (key, entry) for key, entry in entries.items() if key not in more}, prefix
    )
    if files.llm_adapter:
        own = entries_of(files.llm_adapter)
        more = read_layout(files.llm_adapter, ADAPTER, own).more
        own = {key: entry for key, entry in own.items() if key not in more}
        adapter = {
            name: (f"{prefix}{key_mapping.ADAPTER_PREFIX}{name}", entry)
            for name, entry in key_mapping.adapter_entries(own).items()
        }
        named = replace_adapter(named, adapter)
    return ModelLayout(
        keys={name: key for name, (key, _) in named.items()},
        dtypes={name: FLOATS.get(entry.dtype, WHOLE) for name, (_, entry) in named.items()},
        beside=beside(files.transformer, entries, prefix),
    )


def beside(
    path: str, entries: Mapping[str, TensorEntry], prefix: str
) -> dict[str, tuple[Planned, bytes]]:
    """What is under the prefix and holds nothing that the network needs."""
    found = {}
    with open(path, "rb") as file:
        for key, entry in entries.items():
            if key.startswith(prefix) and key_mapping.TOLERATED.fullmatch(key.removeprefix(prefix)):
                file.seek(entry.begin)
                data = file.read(entry.end - entry.begin)
                found[key] = Planned(entry.dtype, entry.shape), data
    return found


def entries_of(path: str | Path) -> Mapping[str, TensorEntry]:
    try:
        return read_header(path).entries
    except TensorFileError as error:
        raise ModelFileError(f"{error}.", source=str(path)) from error
