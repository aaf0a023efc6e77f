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

COMFY, KOHYA, PEFT, BARE = "comfy", "kohya", "peft", "bare"
FORMAT_PREFIXES = {
    COMFY: "diffusion_model.",
    KOHYA: "lora_unet_",
    PEFT: "base_model.model.",
    BARE: "",
}

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

# A fork's first releases stored whole norm weights, not differences: __anima_norm__.<path>.weight
WHOLE_NORM_PREFIX = "__anima_norm__."

LORA_DOWN, LORA_UP, ALPHA, W_NORM, B_NORM = "lora_down", "lora_up", "alpha", "w_norm", "b_norm"
LOKR_FACTORS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
LOHA_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
DORA_SCALE, DIFF, DIFF_B, SET_WEIGHT = "dora_scale", "diff", "diff_b", "set_weight"
WEIGHT, BIAS = "weight", "bias"

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
    **{f"{name}.weight": name for name in LOKR_FACTORS},
    **{name: name for name in (*LOHA_FACTORS, DORA_SCALE, DIFF, DIFF_B, SET_WEIGHT)},
    "bias.diff": DIFF_B,
    WEIGHT: WEIGHT,
    BIAS: BIAS,
}
PEFT_SPELLINGS = {LORA_DOWN: "lora_A.weight", LORA_UP: "lora_B.weight"}
WRITTEN_SPELLINGS = {factor: ending for ending, factor in reversed(FACTOR_SPELLINGS.items())}
LONGEST_FIRST = sorted(FACTOR_SPELLINGS, key=len, reverse=True)

# What other factors are for a norm: its own factor, and whether they hold the whole parameter.
OF_NORMS = {
    DIFF: (W_NORM, False),
    DIFF_B: (B_NORM, False),
    SET_WEIGHT: (W_NORM, True),
    WEIGHT: (W_NORM, True),
    BIAS: (B_NORM, True),
}

# Factors that are read only to be merged into a base: why they are no start for training.
_MERGE = "not trained here; --base_weights can merge it"
MERGED_ONLY = {
    **dict.fromkeys(LOHA_FACTORS, f"LoHa, {_MERGE}"),
    DORA_SCALE: f"DoRA, {_MERGE}",
    **dict.fromkeys((DIFF, DIFF_B, SET_WEIGHT), f"a difference of full rank, {_MERGE}"),
}

# Endings of adapters that exist elsewhere but not here: the reason is better than "unknown key".
FOREIGN_ENDINGS = {
    "lora_magnitude_vector": "PEFT's DoRA is not supported",
    "lokr_t2": "a convolution's LoKr",
    "hada_t1": "a convolution's LoHa",
    "hada_t2": "a convolution's LoHa",
}
UNKNOWN_FACTOR = "no factor of a LoRA, LoKr or norm difference"
KEYS_NAMED = 50


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
    """Keys of any accepted format -> module path and factor, by lookup among a model's modules.

    norms:   the paths among them that are norms
    merging: factors that can only be merged are read as well
    """

    def __init__(
        self, paths: Iterable[str], *, norms: Iterable[str] = (), merging: bool = False
    ) -> None:
        self.paths, self.norms, self.merging = set(paths), set(norms), merging
        self.flat: dict[str, list[str]] = {}
        for path in sorted(self.paths):
            self.flat.setdefault(path.replace(".", "_"), []).append(path)

    def decode(self, key: str) -> FileKey | str:
        """What `key` names, or the reason why it names nothing here."""
        split = split_factor(key.removeprefix(WHOLE_NORM_PREFIX))
        if split is None:
            return FOREIGN_ENDINGS.get(key.rpartition(".")[2], UNKNOWN_FACTOR)
        name, factor = split
        candidates = self._candidates(name)
        if len(candidates) > 1:
            return f"ambiguous: it could be {' or '.join(candidates)}"
        if candidates:
            return self._checked(candidates[0], factor)
        if key.startswith(WHOLE_NORM_PREFIX):
            return "the model has no such norm"
        if name.startswith(TEXT_ENCODER_PREFIXES):
            return "of a text encoder, which is frozen here"
        return "the model has no such module, or none that can be adapted"

    def _checked(self, path: str, factor: str) -> FileKey | str:
        """The factor in the words of a norm, or what speaks against it."""
        if path in self.norms:
            return FileKey(path, *OF_NORMS.get(factor, (factor, False)))
        if factor in (WEIGHT, BIAS):
            return f"a whole {factor}; {UNKNOWN_FACTOR}"
        if factor in MERGED_ONLY and not self.merging:
            return MERGED_ONLY[factor]
        return FileKey(path, factor)

    def _candidates(self, name: str) -> list[str]:
        plain = name.removeprefix(FORMAT_PREFIXES[PEFT])
        for prefix in DOTTED_PREFIXES:
            if plain.startswith(prefix) and plain.removeprefix(prefix) in self.paths:
                return [plain.removeprefix(prefix)]
        for prefix in FLAT_PREFIXES:
            if name.startswith(prefix) and (found := self.flat.get(name.removeprefix(prefix))):
                return found
        return []


def split_factor(key: str) -> tuple[str, str] | None:
    """(module name, factor) of a key, by the longest known ending; None when there is none."""
    for ending in LONGEST_FIRST:
        for separator in (".", "_") if ending.startswith("lora.") else (".",):
            if key.endswith(separator + ending):
                return key[: -len(ending) - 1], FACTOR_SPELLINGS[ending]
    return None


def is_adapter_key(key: str) -> bool:
    """Whether a key looks like an adapter's, be it of another model or of another program."""
    if key.startswith(WHOLE_NORM_PREFIX) or key.rpartition(".")[2] in FOREIGN_ENDINGS:
        return True
    split = split_factor(key)
    return split is not None and split[1] not in (WEIGHT, BIAS)


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


def decode_tensors(
    tensors: Mapping[str, Tensor], paths: Iterable[str], source: str, *,
    norms: Iterable[str] = (), merging: bool = False,
) -> DecodedFile:  # fmt: skip
    """Sort a file's tensors by module; norms and merging as for KeyDecoder.

    Raises AdapterFileError with every key that fits nowhere (of very many, the first).
    """
    decoder = KeyDecoder(paths, norms=norms, merging=merging)
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
    return DecodedFile(modules, keys, frozenset(whole))


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """All tensors of an adapter file, in memory (a mapped file stays locked on Windows).

    A file that holds no adapter is refused by its header: it may be a whole checkpoint.
    """
    try:
        header = tensor_files.read_header(file)
        if not any(map(is_adapter_key, header.entries)):
            first = ", ".join(list(header.entries)[:5])
            raise TensorFileError(f"holds no adapter; its tensors: {first or 'none'}")
        odd = [f"{k} ({e.dtype})" for k, e in header.entries.items() if e.dtype not in NUMBERS]
        if odd:
            raise TensorFileError(f"holds tensors of a kind not read here: {', '.join(odd[:5])}")
        return tensor_files.read_tensors(file, header, header.entries)
    except TensorFileError as error:
        raise AdapterFileError(
            f"{file}: {error}. Give the path of a .safetensors adapter file; if it was downloaded, "
            f"get it again; .pt and .ckpt files have to be converted first."
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
