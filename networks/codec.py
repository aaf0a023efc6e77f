"""File formats of adapters: module path + factor <-> key, and reading and writing the files.

How a factor is spelled, its kind says; the names of modules before it are spelled here. Flattened
names (lora_unet_a_b_c) are decoded by lookup
among the model's module names, since underscores do not invert. Exports are always in ComfyUI's
spelling.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from library.errors import AdapterFileError, Problem
from library.system import tensor_files
from library.system.system_errors import output_errors
from library.system.tensor_files import NUMBERS, TensorFileError
from library.utils import atomic_write
from networks.kinds.kind import Kinds
from networks.kinds.lora import LORA_DOWN, LORA_UP
from networks.kinds.norm import OF_NORMS
from networks.kinds.stored import BIAS, WEIGHT
from networks.kinds.table import KINDS


class KeyStyle(Enum):
    """How keys begin: by the program whose spelling it is."""

    COMFY = "diffusion_model."
    KOHYA = "lora_unet_"
    PEFT = "base_model.model."
    BARE = ""


# Accepted on reading, longest first; the first that leads to a known module wins. PEFT's own prefix
# may stand before any of them.
DOTTED_PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "model.",
    "unet.",
    "net.",
    "",
)
FLAT_PREFIXES = ("lora_transformer_", "lora_unet_net_", "lora_unet_", "lycoris_")
TEXT_ENCODER_PREFIXES = ("text_encoders.", "text_encoder.", "lora_te")
"""Of names of text encoders' modules, in any spelling."""
TEXT_ENCODERS = re.compile(r"^text_encoders\.\w+\.transformer\.model\.")
"""How they begin in ComfyUI's spelling, which is also where they stand in a model that holds its encoder."""

# A fork's first releases stored whole norm weights, not differences: __<family>_norm__.<path>.weight
WHOLE_NORM = re.compile(r"^__[a-z]+_norm__\.")

# How PEFT spells factors that are written otherwise here.
PEFT_SPELLINGS = {LORA_DOWN: "lora_A.weight", LORA_UP: "lora_B.weight"}
UNKNOWN_FACTOR = "no factor of a LoRA, LoKr or norm difference"
GIVE_AN_ADAPTER = (
    "Give the path of a .safetensors adapter file; if it was downloaded, get it again; .pt and .ckpt "
    "files have to be converted first."
)
KEYS_NAMED = 50


@dataclass(frozen=True)
class FileKey:
    """What a key names. whole: the tensor is the module's own weight, not a difference."""

    path: str
    factor: str
    whole: bool = False


def encode(path: str, factor: str, style: KeyStyle = KeyStyle.COMFY, kinds: Kinds = KINDS) -> str:
    """The key of a module's factor, e.g. diffusion_model.blocks.0.mlp.layer1.lora_down.weight."""
    ending = kinds.written[factor]
    if style is KeyStyle.COMFY and TEXT_ENCODERS.match(path):
        return f"{path}.{ending}"
    if style is KeyStyle.PEFT:
        ending = PEFT_SPELLINGS.get(factor, ending)
    if style is KeyStyle.KOHYA:
        path = path.replace(".", "_")
    return f"{style.value}{path}.{ending}"


class KeyDecoder:
    """Keys of any accepted format -> module path and factor, by lookup among a model's modules.

    norms:   the paths among them that are norms
    merging: factors that can only be merged are read as well
    tools:   and those that only tools read
    """

    def __init__(
        self, paths: Iterable[str], *, norms: Iterable[str] = (), merging: bool = False,
        tools: bool = False, kinds: Kinds = KINDS,
    ) -> None:  # fmt: skip
        self.paths, self.norms, self.kinds = set(paths), set(norms), kinds
        merged_only = {} if merging or tools else kinds.merged_only
        self.unread = merged_only | ({} if tools else kinds.tools_only)
        self.flat: dict[str, list[str]] = {}
        for path in sorted(self.paths):
            self.flat.setdefault(path.replace(".", "_"), []).append(path)
            for name in text_encoder_aliases(path):
                self.flat.setdefault(name, []).append(path)

    def decode(self, key: str) -> FileKey | str:
        """What `key` names, or the reason why it names nothing here."""
        split = split_factor(WHOLE_NORM.sub("", key), self.kinds)
        if split is None:
            return self.kinds.refused.get(key.rpartition(".")[2], UNKNOWN_FACTOR)
        name, factor = split
        candidates = self._candidates(name)
        if len(candidates) > 1:
            return f"ambiguous: it could be {' or '.join(candidates)}"
        if candidates:
            return self._checked(candidates[0], factor)
        if WHOLE_NORM.match(key):
            return "the model has no such norm"
        if name.startswith(TEXT_ENCODER_PREFIXES):
            return "of a text encoder, which is frozen here (it trains where text_encoder_lr is above 0)"
        return "the model has no such module, or none that can be adapted"

    def _checked(self, path: str, factor: str) -> FileKey | str:
        """The factor in the words of a norm, or what speaks against it."""
        if path in self.norms:
            return FileKey(path, *OF_NORMS.get(factor, (factor, False)))
        if factor in (WEIGHT, BIAS):
            return f"a whole {factor}; {UNKNOWN_FACTOR}"
        if factor in self.unread:
            return self.unread[factor]
        return FileKey(path, factor)

    def _candidates(self, name: str) -> list[str]:
        if name.startswith(TEXT_ENCODER_PREFIXES) and name not in self.paths:
            return self.flat.get(name, [])
        plain = name.removeprefix(KeyStyle.PEFT.value)
        for prefix in DOTTED_PREFIXES:
            if plain.startswith(prefix) and plain.removeprefix(prefix) in self.paths:
                return [plain.removeprefix(prefix)]
        for prefix in FLAT_PREFIXES:
            if name.startswith(prefix) and (found := self.flat.get(name.removeprefix(prefix))):
                return found
        return []


def text_encoder_aliases(path: str) -> tuple[str, ...]:
    """The other names that ComfyUI reads for a text encoder's module; none for another module."""
    place = TEXT_ENCODERS.match(path)
    if place is None:
        return ()
    name = path[place.end() :]
    return f"text_encoders.transformer.model.{name}", f"lora_te_{name.replace('.', '_')}"


def split_factor(key: str, kinds: Kinds) -> tuple[str, str] | None:
    """(module name, factor) of a key, by the longest known ending; None when there is none."""
    for ending in kinds.longest_first:
        for separator in (".", "_") if ending.startswith("lora.") else (".",):
            if key.endswith(separator + ending):
                return key[: -len(ending) - 1], kinds.endings[ending]
    return None


def is_adapter_key(key: str, kinds: Kinds) -> bool:
    """Whether a key looks like an adapter's, be it of another model or of another program."""
    if WHOLE_NORM.match(key) or key.rpartition(".")[2] in kinds.refused:
        return True
    split = split_factor(key, kinds)
    return split is not None and split[1] not in (WEIGHT, BIAS)


@dataclass(frozen=True)
class DecodedFile:
    """A file's tensors by module path and factor.

    source: what to call the file
    whole:  which are no differences
    kinds:  those of which adapters of Linears are
    """

    source: str
    modules: Mapping[str, Mapping[str, Tensor]]
    keys: Mapping[tuple[str, str], str]
    whole: frozenset[tuple[str, str]]
    kinds: tuple[str, ...]

    @property
    def kind(self) -> str:
        """LoRA, LoKr, norm (differences only), or a mixture named as such."""
        return " and ".join(self.kinds) or "norm"


def decode_tensors(tensors: Mapping[str, Tensor], decoder: KeyDecoder, source: str) -> DecodedFile:
    """Sort a file's tensors by module.

    Raises AdapterFileError with every key that fits nowhere (of very many, the first).
    """
    modules: dict[str, dict[str, Tensor]] = {}
    keys: dict[tuple[str, str], str] = {}
    whole, problems = set(), []
    for key, tensor in tensors.items():
        found = decoder.decode(key)
        if isinstance(found, str):
            problems.append(Problem(f"{found}.", key))
            continue
        place = (found.path, found.factor)
        if place in keys:
            problems.append(Problem(f"names the same tensor as {keys[place]}.", key))
            continue
        keys[place] = key
        modules.setdefault(found.path, {})[found.factor] = tensor
        if found.whole:
            whole.add(place)
    if not keys:
        problems.insert(0, Problem("nothing in this file belongs to the model.", "all keys"))
    if problems:
        more = len(problems) - KEYS_NAMED
        rest = [Problem(f"{more} more keys do not belong either.", "...")] if more > 0 else []
        raise AdapterFileError(problems[:KEYS_NAMED] + rest, source=source)
    return DecodedFile(source, modules, keys, frozenset(whole), kinds_of_file(keys, decoder.kinds))


def kinds_of_file(places: Iterable[tuple[str, str]], kinds: Kinds) -> tuple[str, ...]:
    """The kinds of Linears' adapters that the factors at these (path, factor) are of."""
    found = kinds.among({factor for _, factor in places})
    return tuple(kind.name for kind in found if kind.training)


def read_adapter(file: str | Path, kinds: Kinds = KINDS) -> dict[str, Tensor]:
    """All tensors of an adapter file, in memory (a mapped file stays locked on Windows).

    A file that holds no adapter is refused by its header: it may be a whole checkpoint.
    """
    try:
        header = read_adapter_header(file, kinds)
        odd = [f"{k} ({e.dtype})" for k, e in header.entries.items() if e.dtype not in NUMBERS]
        if odd:
            raise TensorFileError(f"holds tensors of a kind not read here: {', '.join(odd[:5])}")
        return tensor_files.read_tensors(file, header, header.entries)
    except TensorFileError as error:
        raise AdapterFileError(f"{file}: {error}. {GIVE_AN_ADAPTER}") from error


def read_adapter_header(file: str | Path, kinds: Kinds = KINDS) -> tensor_files.TensorHeader:
    """The header of a file that holds an adapter, of any model. Raises TensorFileError."""
    header = tensor_files.read_header(file)
    if not any(is_adapter_key(key, kinds) for key in header.entries):
        first = ", ".join(list(header.entries)[:5])
        raise TensorFileError(f"holds no adapter; its tensors: {first or 'none'}")
    return header


def write_adapter(
    file: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file whole or not at all; sd-scripts' two hashes join the metadata.

    Raises AdapterFileError, naming the keys, when a tensor is not finite; nothing is written then.
    """
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterFileError(
            [Problem("holds NaN or infinity; nothing was written.", key) for key in bad],
            source=str(file),
        )
    entries = {str(name): str(value) for name, value in metadata.items()}
    entries |= tensor_hashes(tensors, entries)
    with output_errors(file), atomic_write(file) as temporary:
        safetensors.torch.save_file(dict(tensors), temporary, metadata=entries)
        sort_metadata(temporary)


def sort_metadata(file: Path) -> None:
    """Order the metadata of a safetensors file by name, in place.

    safetensors orders it by chance, so that equal contents would be files of other bytes.
    """
    with open(file, "rb+") as opened:
        size = file.stat().st_size
        raw = tensor_files.header_bytes(opened, size, size)
        header = json.loads(raw)
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= len(raw), "the same values, written the same way"
        opened.seek(8)
        opened.write(text.ljust(len(raw)))


def tensor_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """sshs_model_hash and sshs_legacy_hash, as sd-scripts computes them before it saves.

    The first is the sha256 of the tensor data alone. The second, AUTOMATIC1111's old 8 digits,
    covers 64 KiB at 1 MiB of the file as it would be with only the ss_* entries in its header.
    """
    own = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    data = safetensors.torch.save(dict(tensors), own)
    start = 8 + len(tensor_files.header_bytes(BytesIO(data), len(data), len(data)))
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(data)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }
