"""Checked: an adapter file with all that was measured and recomputed of it, before anything is judged."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from library.anima_runtime.family import ANIMA_FILES
from library.anima_workshop.base import BaseFile, open_base
from library.anima_workshop.layout import QWEN, open_anima_adapter
from library.errors import AdapterFileError
from library.reporting.strength import place_of
from networks.readers import Verdict, verdicts
from networks.workshop.adapter_file import AdapterFile
from networks.workshop.survey import Measured, Survey, survey

CHUNK = 2**22
SCALED = ("LoRA", "LoKr", "LoHa")
"""Kinds with an alpha."""
WITH_DORA = " with DoRA"


@dataclass(frozen=True)
class Checked:
    """base: None if none was given; digest: sha256 of the tensors' data, which sshs_model_hash says"""

    file: AdapterFile
    base: BaseFile | None
    survey: Survey
    verdicts: Sequence[Verdict]
    digest: str

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.file.metadata

    @cached_property
    def modules(self) -> dict[str, Measured]:
        return {module.path: module for module in self.survey.modules}

    @cached_property
    def parts(self) -> dict[str, str]:
        """Path -> what it is called in every block."""
        return {path: part_of(path) for path in self.modules}

    @cached_property
    def linears(self) -> list[Measured]:
        """All but norms."""
        return [m for m in self.survey.modules if m.path not in self.file.modules.norms]

    @cached_property
    def norms(self) -> list[Measured]:
        return [m for m in self.survey.modules if m.path in self.file.modules.norms]

    @cached_property
    def scaled(self) -> list[Measured]:
        """The modules of kinds with an alpha."""
        return [module for module in self.linears if plain_kind(module) in SCALED]

    @cached_property
    def kinds(self) -> Counter[str]:
        return Counter(module.kind or "of no kind" for module in self.survey.modules)

    @cached_property
    def ranks(self) -> Counter[int]:
        return Counter(module.rank for module in self.scaled if module.rank)

    @cached_property
    def arguments(self) -> dict[str, object] | None:
        """ss_network_args; None where its text is no JSON object, {} where there is none."""
        return json_object(self.metadata.get("ss_network_args", "{}"))


def json_object(text: str) -> dict[str, object] | None:
    """None for what is none; "None" is what sd-scripts writes for nothing."""
    if text == "None":
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def plain_kind(module: Measured) -> str:
    return module.kind.removesuffix(WITH_DORA)


def part_of(path: str) -> str:
    """E.g. blocks.*.mlp.layer1 for one of the blocks' modules; the path itself where it is in no block."""
    block, layer = place_of(path)
    front, _, number = block.rpartition(".")
    return f"{front}.*.{layer}" if number.isdecimal() else path


def is_of_text_encoder(path: str) -> bool:
    return path.startswith(QWEN)


def look_at(path: str | Path, base: str | Path | None = None) -> Checked:
    """Reads the whole file once, a module at a time. Raises AdapterFileError, ModelFileError."""
    opened = open_base(base) if base else None
    file = open_anima_adapter(path, base)
    return Checked(
        file=file,
        base=opened,
        survey=survey(file, opened.of_module if opened else None),
        verdicts=verdicts(file.header.entries, file.metadata, ANIMA_FILES),
        digest=digest_of(file),
    )


def digest_of(file: AdapterFile) -> str:
    """sha256 of all that stands behind the header. Raises AdapterFileError."""
    start = min((entry.begin for entry in file.header.entries.values()), default=0)
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb") as opened:
            opened.seek(start)
            while data := opened.read(CHUNK):
                digest.update(data)
    except OSError as error:
        raise AdapterFileError(f"cannot be read any more ({error}).", source=str(file.path)) from error
    return digest.hexdigest()
