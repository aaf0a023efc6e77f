"""What the names in an adapter file say: of which part of the model, by which kind of adapter.

No model is asked, so a name that no model has looks like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from library.system.tensor_files import TensorFileError, read_header
from networks.codec import TEXT_ENCODER_PREFIXES, KeyStyle, split_factor
from networks.kinds.stored import ALPHA, DORA_SCALE, MAGNITUDE
from networks.kinds.table import KINDS


@dataclass(frozen=True)
class FamilyFiles:
    """What programs know a family's files by.

    name:         how ss_base_model_version begins; modelspec.architecture has it somewhere
    front:        path of the part of the model that reads the text encoder's output
    embeddings:   paths of modules with a weight that are no Linears and no norms
    text_encoder: its path in the names of text encoders' adapters
    """

    name: str
    front: str
    embeddings: tuple[str, ...]
    text_encoder: str


class Place(Enum):
    """Where a name leads, by how it begins."""

    DOTTED = "diffusion_model.a.b"
    FLAT = "lora_unet_a_b"
    TEXT_ENCODER = "a text encoder's, however it is spelled"
    ELSEWHERE = "anything else"


@dataclass(frozen=True)
class Entry:
    """A key taken apart.

    name:   what stands before the factor, with its prefix; the whole key where there is no factor
    path:   the name without its prefix: dotted, or with underscores
    ending: the factor as it is spelled; the last word where it is no factor known here
    factor: the factor by its name in the table of kinds; "" where it is none
    """

    key: str
    name: str
    place: Place
    path: str
    ending: str
    factor: str

    @property
    def is_factor(self) -> bool:
        """Whether it says something alone."""
        return self.factor not in ("", ALPHA, DORA_SCALE, MAGNITUDE)


@dataclass(frozen=True)
class Contents:
    """All of a file that can be known without its tensors."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    family: FamilyFiles

    @cached_property
    def endings(self) -> Mapping[str, set[str]]:
        """How each module's factors are spelled, by its name."""
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            found.setdefault(entry.name, set()).add(entry.ending)
        return found

    @cached_property
    def factors(self) -> Mapping[str, set[str]]:
        """Each module's factors, by its name."""
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            found.setdefault(entry.name, set()).add(entry.factor)
        return found

    @cached_property
    def has_flat_names(self) -> bool:
        return any(
            entry.name.startswith((KeyStyle.KOHYA.value, "lora_te_")) for entry in self.entries
        )


def has_text_encoder(file: str) -> bool:
    """Whether an adapter file has anything for a text encoder; what cannot be read is told elsewhere."""
    try:
        keys = read_header(file).entries
    except TensorFileError:
        return False
    return any(key.startswith(TEXT_ENCODER_PREFIXES) for key in keys)


def entries_of(keys: Iterable[str]) -> Iterator[Entry]:
    """Any keys at all, taken apart."""
    for key in keys:
        split = split_factor(key, KINDS)
        name, factor = split or (key.rpartition(".")[0] or key, "")
        place, path = _place_of(name)
        yield Entry(key, name, place, path, key[len(name) + 1 :], factor)


NO_PROGRAM_READS = "lora_unet_net_"  # nor leads to a module, though it begins as flat names do


def _place_of(name: str) -> tuple[Place, str]:
    if name.startswith(NO_PROGRAM_READS):
        return Place.ELSEWHERE, name
    for style, place in ((KeyStyle.COMFY, Place.DOTTED), (KeyStyle.KOHYA, Place.FLAT)):
        if name.startswith(style.value):
            return place, name.removeprefix(style.value)
    if name.startswith(TEXT_ENCODER_PREFIXES):
        return Place.TEXT_ENCODER, name
    return Place.ELSEWHERE, name
