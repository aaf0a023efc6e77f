"""Encoder outputs that sd-scripts, or the fork before this program, has stored beside pictures.

Its .npz files carry no fingerprint, so what can be checked is: names, shapes, sizes, finite values.
Nothing in them is unpickled. Names as sd-scripts': W and H of the picture in the file name, latent
height and width in the keys; the fork pads neither and has no sizes in its keys.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from library.data.stored import UnfitFile

NPZ_ERRORS = (  # what numpy and zipfile raise for files that are no whole .npz
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, MemoryError,
    NotImplementedError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class StoredText:
    """A text file's content without padding. hidden: (S, D); t5_ids: (T,)."""

    path: Path
    hidden: Tensor
    t5_ids: tuple[int, ...]


def find_latents(picture: Path, size: tuple[int, int]) -> Path | None:
    """The file with a picture's latents. size: the picture's (width, height)."""
    for form in ("{:04d}x{:04d}", "{}x{}"):
        path = picture.with_name(f"{picture.stem}_{form.format(*size)}_anima.npz")
        if os.path.isfile(path):  # a name that is too long to exist is not there
            return path
    return None


def find_text(picture: Path) -> Path | None:
    """The file with the outputs of the one caption a picture had."""
    path = picture.with_name(f"{picture.stem}_anima_te.npz")
    return path if os.path.isfile(path) else None


def read_latents(
    picture: Path, size: tuple[int, int], shape: tuple[int, int, int], flipped: bool
) -> Tensor | None:
    """(C, H, W) float32 of a picture, None when there is no file.

    size: the picture's (width, height); shape: the latents' (C, H, W). Raises UnfitFile saying what
    does not fit.
    """
    path = find_latents(picture, size)
    return None if path is None else check_latents(path, size, shape, flipped)


def check_latents(
    path: Path, size: tuple[int, int], shape: tuple[int, int, int], flipped: bool
) -> Tensor:
    kind = "latents_flipped" if flipped else "latents"
    suffix = f"_{shape[1]}x{shape[2]}"
    wanted = {kind, f"{kind}{suffix}", "original_size", f"original_size{suffix}"}
    found = read_arrays(path, wanted)
    ending = suffix if f"{kind}{suffix}" in found else ""
    latents, original = found.get(f"{kind}{ending}"), found.get(f"original_size{ending}")
    if latents is None:
        raise UnfitFile(f"{path}: has no {kind}{suffix}, nor {kind}.")
    if latents.shape != shape:
        raise UnfitFile(f"{path}: {kind}{ending} is {latents.shape}, expected {shape}.")
    if original is not None and tuple(original.tolist()) != size:
        raise UnfitFile(f"{path}: made from a picture of {original.tolist()}, not {list(size)}.")
    return finite(path, f"{kind}{ending}", latents)


def read_text_outputs(picture: Path) -> StoredText | None:
    """The outputs of the one caption a picture had, None when there is no file. Raises UnfitFile."""
    path = find_text(picture)
    if path is None:
        return None
    names = ("prompt_embeds", "attn_mask", "t5_input_ids", "t5_attn_mask")
    found = read_arrays(path, set(names))
    if missing := [name for name in names if name not in found]:
        raise UnfitFile(f"{path}: has no {', '.join(missing)}.")
    hidden, mask, ids, t5_mask = (found[name] for name in names)
    shaped = hidden.ndim == 2 and mask.shape == hidden.shape[:1] and ids.shape == t5_mask.shape
    if (
        not shaped
        or ids.ndim != 1
        or any(each.dtype.kind not in "iub" for each in (mask, ids, t5_mask))
    ):
        kinds = ", ".join(f"{name} {found[name].dtype}{found[name].shape}" for name in names)
        raise UnfitFile(f"{path}: does not fit together: {kinds}.")
    real, t5_real = int(mask.sum()), int(t5_mask.sum())
    if not (mask[:real].all() and t5_mask[:t5_real].all()):
        raise UnfitFile(f"{path}: a mask is not 1 at the start and 0 behind.")
    rows = finite(path, "prompt_embeds", hidden[:real])
    return StoredText(path, rows, tuple(ids[:t5_real].tolist()))


def read_arrays(path: Path, wanted: set[str]) -> Mapping[str, np.ndarray]:
    """Those of the wanted arrays that the file has. Raises UnfitFile when it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in wanted & set(stored.files)}
    except NPZ_ERRORS as error:
        raise UnfitFile(f"{path}: cannot be read ({error}).") from error


def finite(path: Path, name: str, values: np.ndarray) -> Tensor:
    """float32, or UnfitFile: NaN is never trained on."""
    if values.dtype not in (np.float16, np.float32):
        raise UnfitFile(f"{path}: {name} is {values.dtype}, expected float32.")
    if not np.isfinite(values).all():
        raise UnfitFile(f"{path}: {name} has NaN or infinite values.")
    return torch.from_numpy(values.astype(np.float32))
