"""The tensors of a model file: named, read, checked against a network, and made its own.

A file is memory-mapped, so that a checkpoint in the wanted dtype costs no memory beyond it. What is missing,
unexpected or of another kind is an error with names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Mapping, MutableMapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from library.anima_runtime import key_mapping
from library.anima_runtime.coded_weights import Weight, coded, stored_dtypes, whole
from library.anima_runtime.quantised_files import Layout, read_layout
from library.errors import ModelFileError
from library.system import tensor_files
from library.system.tensor_files import CODES, FLOATS, TensorFileError
from library.utils import first_few, is_quiet

logger = logging.getLogger(__name__)

NAMES_SHOWN = 8

Shapes = dict[str, tuple[int, ...]]
AnyShapes = Mapping[str, tuple[int, ...]]


def shapes_and_dtypes(path: str | Path, what: str) -> tuple[Shapes, dict[str, str]]:
    """Shape and dtype name of every tensor of a safetensors file, from its header alone."""
    try:
        entries = tensor_files.read_header(path).entries
    except TensorFileError as error:
        if not os.path.isfile(path):
            raise ModelFileError(f"{path}: {error}; expected {what}.") from error
        message = f"{error}; expected {what}. Download it again."
        raise ModelFileError(message, source=str(path)) from error
    return (
        {key: entry.shape for key, entry in entries.items()},
        {key: entry.dtype for key, entry in entries.items()},
    )


def weights_alone(shapes: Shapes, layout: Layout) -> Shapes:
    return {key: shape for key, shape in shapes.items() if key not in layout.more}


def load_floats(
    path: str | Path, disable_mmap: bool, dtypes: Container[str] = FLOATS
) -> dict[str, Tensor]:
    """Every tensor of some dtypes of a file that shapes_and_dtypes accepts; mapped, or read into memory.

    Mapped files are locked on Windows, and slow on some network drives.
    """
    try:
        header = tensor_files.read_header(path)
        floats = [key for key, entry in header.entries.items() if entry.dtype in dtypes]
        if disable_mmap:
            return tensor_files.read_tensors(path, header, floats)
    except TensorFileError as error:
        raise ModelFileError(f"{error}.", source=str(path)) from error
    try:
        with tensor_files.utf8_name(path) as name, safe_open(name, "pt") as file:
            return {key: file.get_tensor(key) for key in floats}
    except (SafetensorError, OSError, RuntimeError) as error:
        message = f"cannot be mapped ({error}). Read it: --disable_mmap_load_safetensors."
        raise ModelFileError(message, source=str(path)) from error


def load_weights(
    path: str | Path, what: str, keys: Iterable[str], disable_mmap: bool
) -> dict[str, Weight]:
    """The tensors of these keys, those of 8 bits with their scales; said where there are any."""
    layout = read_layout(path, what, keys)
    if layout.weights:
        logger.info("%s is a quantised checkpoint: %s", path, layout.describe())
    return coded(load_floats(path, disable_mmap, FLOATS | CODES), layout)


def refuse_quantised(path: str | Path, what: str, shapes: Shapes) -> None:
    if read_layout(path, what, shapes).weights:
        message = f"is a quantised checkpoint. Use the full file of {what}."
        raise ModelFileError(message, source=str(path))


def wrong_kind(path: str | Path, what: str, shapes: Shapes) -> ModelFileError:
    kind = key_mapping.guess_kind(shapes)
    return ModelFileError(f"is {kind}; expected {what}.", source=str(path))


def listed(names: list[str]) -> str:
    return first_few(names, NAMES_SHOWN)


def check_entries(path: str | Path, wanted: AnyShapes, found: Shapes) -> None:
    """Every wanted tensor, nothing else, and the right shapes; one error names all that is off."""
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    shared = sorted(wanted.keys() & found.keys())
    misshapen = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in shared
        if found[name] != wanted[name]
    ]
    complaints = [
        f"{len(names)} {title}: {listed(names)}"
        for title, names in (
            ("missing tensors", missing),
            ("unexpected tensors", unexpected),
            ("tensors of another shape", misshapen),
        )
        if names
    ]
    if complaints:
        raise ModelFileError(
            f"does not fit the network. {'; '.join(complaints)}.", source=str(path)
        )


def give_tensors(
    network: nn.Module,
    tensors: MutableMapping[str, Weight],
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Make `tensors` the network's own, one by one in dtype on device; the network becomes frozen.

    What belongs to a QuantisedLinear stays as it is stored.

    `tensors` is emptied on the way: what was read into memory and is converted is held once.
    """
    dtypes = stored_dtypes(network)
    bar = tqdm(list(tensors), "loading", unit="tensor", delay=1, leave=False, disable=is_quiet())
    with bar as names:
        own = {name: whole(tensors.pop(name), device, dtypes.get(name, dtype)) for name in names}
    network.load_state_dict(own, assign=True)
    network.requires_grad_(False).eval()


def shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
