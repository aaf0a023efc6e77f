"""File formats of adapters: module path + factor <-> key, and reading and writing the files.

The only place that knows key spellings. Flattened names (lora_unet_a_b_c) are decoded by lookup
among the model's module names, since underscores do not invert. Exports are always in ComfyUI's
spelling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from library.errors import AdapterFileError, Problem
from library.utils import atomic_write

COMFY, KOHYA, PEFT, BARE = "comfy", "kohya", "peft", "bare"
FORMAT_PREFIXES = {
    COMFY: "diffusion_model.",
    KOHYA: "lora_unet_",
    PEFT: "base_model.model.",
    BARE: "",
}

# Accepted on reading, longest first; the first that leads to a known module wins.
DOTTED_PREFIXES = (
    "base_model.model.diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
    "model.",
    "unet.",
    "net.",
    "",
)
FLAT_PREFIXES = ("lora_transformer_", "lora_unet_net_", "lora_unet_", "lycoris_")

# A fork's first releases stored whole norm weights, not differences: __anima_norm__.<path>.weight
WHOLE_NORM_PREFIX = "__anima_norm__."

LORA_DOWN, LORA_UP, ALPHA, W_NORM, B_NORM = "lora_down", "lora_up", "alpha", "w_norm", "b_norm"
LOKR_FACTORS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
WHOLE_NORM_FACTORS = {"weight": W_NORM, "bias": B_NORM}

# The ending of a key -> factor. The first spelling of a factor is the one that is written.
FACTOR_SPELLINGS = {
    "lora_down.weight": LORA_DOWN,
    "lora_up.weight": LORA_UP,
    "alpha": ALPHA,
    **{name: name for name in LOKR_FACTORS},
    W_NORM: W_NORM,
    B_NORM: B_NORM,
    "lora_A.weight": LORA_DOWN,
    "lora_B.weight": LORA_UP,
    "lora_A.default.weight": LORA_DOWN,
    "lora_B.default.weight": LORA_UP,
    "lora_A": LORA_DOWN,
    "lora_B": LORA_UP,
    "lora.down.weight": LORA_DOWN,
    "lora.up.weight": LORA_UP,
    "lora_linear_layer.down.weight": LORA_DOWN,
    "lora_linear_layer.up.weight": LORA_UP,
}
PEFT_SPELLINGS = {LORA_DOWN: "lora_A.weight", LORA_UP: "lora_B.weight"}
WRITTEN_SPELLINGS = {factor: ending for ending, factor in reversed(FACTOR_SPELLINGS.items())}

# Endings of adapters that exist elsewhere but not here: the reason is better than "unknown key".
FOREIGN_ENDINGS = {
    "dora_scale": "DoRA is not supported",
    "lora_magnitude_vector": "DoRA is not supported",
    "lokr_t2": "a convolution's LoKr",
    "hada_w1_a": "LoHa is not supported",
    "hada_w1_b": "LoHa is not supported",
    "hada_w2_a": "LoHa is not supported",
    "hada_w2_b": "LoHa is not supported",
}


@dataclass(frozen=True)
class FileKey:
    """What a key names. whole: the tensor is the module's own weight, not a difference."""

    path: str
    factor: str
    whole: bool = False


def encode(path: str, factor: str, style: str = COMFY) -> str:
    """The key of a module's factor, e.g. diffusion_model.blocks.0.mlp.layer1.lora_down.weight."""
    ending = WRITTEN_SPELLINGS[factor]
    if style == PEFT:
        ending = PEFT_SPELLINGS.get(factor, ending)
    if style == KOHYA:
        path = path.replace(".", "_")
    return f"{FORMAT_PREFIXES[style]}{path}.{ending}"


class KeyDecoder:
    """Keys of any accepted format -> module path and factor, by lookup among a model's modules."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = set(paths)
        self.flat: dict[str, list[str]] = {}
        for path in sorted(self.paths):
            self.flat.setdefault(path.replace(".", "_"), []).append(path)

    def decode(self, key: str) -> FileKey | str:
        """What `key` names, or the reason why it names nothing here."""
        if key.startswith(WHOLE_NORM_PREFIX):
            return self._whole_norm(key.removeprefix(WHOLE_NORM_PREFIX))
        split = split_factor(key)
        if split is None:
            ending = key.rpartition(".")[2]
            return FOREIGN_ENDINGS.get(ending, "no factor of a LoRA, LoKr or norm difference")
        name, factor = split
        candidates = self._candidates(name)
        if len(candidates) > 1:
            return f"ambiguous: it could be {' or '.join(candidates)}"
        return FileKey(candidates[0], factor) if candidates else "the model has no such module"

    def _candidates(self, name: str) -> list[str]:
        for prefix in DOTTED_PREFIXES:
            if name.startswith(prefix) and name.removeprefix(prefix) in self.paths:
                return [name.removeprefix(prefix)]
        for prefix in FLAT_PREFIXES:
            if name.startswith(prefix) and (found := self.flat.get(name.removeprefix(prefix))):
                return found
        return []

    def _whole_norm(self, name: str) -> FileKey | str:
        path, _, parameter = name.rpartition(".")
        if path in self.paths and parameter in WHOLE_NORM_FACTORS:
            return FileKey(path, WHOLE_NORM_FACTORS[parameter], whole=True)
        return "the model has no such norm"


def split_factor(key: str) -> tuple[str, str] | None:
    """(module name, factor) of a key, by the longest known ending; None when there is none."""
    for ending in sorted(FACTOR_SPELLINGS, key=len, reverse=True):
        for separator in (".", "_") if ending.startswith("lora.") else (".",):
            if key.endswith(separator + ending):
                return key[: -len(ending) - 1], FACTOR_SPELLINGS[ending]
    return None


@dataclass(frozen=True)
class DecodedFile:
    """A file's tensors by module path and factor; `whole`: which are no differences."""

    modules: Mapping[str, Mapping[str, Tensor]]
    keys: Mapping[tuple[str, str], str]
    whole: frozenset[tuple[str, str]]

    @property
    def kind(self) -> str:
        """LoRA, LoKr, norm (differences only), or a mixture named as such."""
        factors = {factor for _, factor in self.keys}
        kinds = [
            kind
            for kind, names in (("LoRA", {LORA_DOWN, LORA_UP}), ("LoKr", set(LOKR_FACTORS)))
            if factors & names
        ]
        return " and ".join(kinds) or "norm"


def decode_tensors(tensors: Mapping[str, Tensor], paths: Iterable[str], source: str) -> DecodedFile:
    """Sort a file's tensors by module. Raises AdapterFileError with every key that fits nowhere."""
    decoder = KeyDecoder(paths)
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
    if problems:
        raise AdapterFileError(problems, source=source)
    return DecodedFile(modules, keys, frozenset(whole))


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in memory (a mapped file stays locked on Windows)."""
    path = Path(file)
    if not path.is_file():
        raise AdapterFileError(
            f"{path}: no such file. Give the path of a .safetensors adapter file."
        )
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise AdapterFileError(
            f"{path}: not a whole safetensors file ({error}). If it was downloaded, get it again; "
            f".pt and .ckpt files have to be converted first."
        ) from error


def write_tensors(
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
    with atomic_write(file) as temporary:
        safetensors.torch.save_file(dict(tensors), temporary, metadata=entries)
        sort_metadata(temporary)


def sort_metadata(file: Path) -> None:
    """Order the metadata of a safetensors file by name, in place.

    safetensors orders it by chance, so that equal contents would be files of other bytes.
    """
    with open(file, "rb+") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the same values, written the same way"
        opened.seek(8)
        opened.write(text.ljust(length))


def tensor_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """sshs_model_hash and sshs_legacy_hash, as sd-scripts computes them before it saves.

    The first is the sha256 of the tensor data alone. The second, AUTOMATIC1111's old 8 digits,
    covers 64 KiB at 1 MiB of the file as it would be with only the ss_* entries in its header.
    """
    own = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    data = safetensors.torch.save(dict(tensors), own)
    start = 8 + int.from_bytes(data[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(data)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }
