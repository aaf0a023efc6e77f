"""Metadata of files that are made of others: what their own files said, as far as it is still true."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from library.anima_runtime.family import ANIMA_METADATA, MODULES
from library.errors import as_utf8
from library.saving.metadata_table import adapted_parts
from networks.kinds.table import KINDS
from networks.workshop.converting import Made
from networks.workshop.sources import Sources
from networks.workshop.writing import HASHES, MADE_FROM, derived

PARTS = "ss_adapted_parts"


def metadata_of(
    metadata: Mapping[str, str], tool: str, files: Sequence[Path], rows: Sequence[Made]
) -> dict[str, str]:
    """Of a file with these modules, made by `tool` of files; metadata: what theirs said alike."""
    kinds = {row.after for row in rows} & KINDS.trained.keys()
    changes: dict[str, object] = {}
    if any(row.before != row.after for row in rows):
        own = [module for module, kind in MODULES.items() if kind in kinds]
        changes["network_module"] = own[0] if len(own) == 1 else None
    if ranks := Counter(row.rank for row in rows if row.rank):
        # the most common one, which is what one number can say of them
        changes["network_dim"] = changes["network_alpha"] = ranks.most_common(1)[0][0]
    if "ss_network_args" in metadata:
        changes["network_args"] = arguments(metadata["ss_network_args"], kinds, rows)
    if PARTS in metadata:
        changes["adapted_parts"] = json.dumps(adapted_parts(row.path for row in rows))
    return derived({**ANIMA_METADATA, **metadata}, tool, files, **changes)


def arguments(text: str, kinds: set[str], rows: Sequence[Made]) -> str | None:
    """network_args less those of kinds that are not in the file; None where they cannot be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    for kind, training in KINDS.trained.items():
        if kind not in kinds:
            own = {field.name for field in fields(training.arguments)} | set(training.arguments.ALIASES)
            found = {name: value for name, value in found.items() if name not in own}
    if "train_norm" in found and not any(row.after == "norm" for row in rows):
        found["train_norm"] = "False"
    return json.dumps(found)


def alike(sources: Sources) -> dict[str, str]:
    """What the metadata of all files says alike."""
    first, *others = (source.file.metadata for source in sources.files)
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def with_strengths(metadata: Mapping[str, str], tool: str, sources: Sources) -> dict[str, str]:
    """With the files that it is merged of, and their strengths."""
    strengths = [[as_utf8(s.file.path.name), s.strength] for s in sources.files]
    made_from = json.dumps({"tool": tool, "files": strengths}, ensure_ascii=False)
    return {**metadata, MADE_FROM: made_from}


def of_merged_base(metadata: Mapping[str, str], tool: str, sources: Sources) -> dict[str, str]:
    """A base model's, less hashes that are no more true."""
    kept = {name: text for name, text in metadata.items() if not name.startswith(HASHES)}
    return with_strengths(kept, tool, sources)
