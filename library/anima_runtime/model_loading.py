"""Model files to frozen modules on a device in a dtype.

A network is built without memory, the file is memory-mapped, and its tensors become the network's own:
a checkpoint in the wanted dtype costs no memory beyond the mapped file. What is missing, unexpected or
of another kind is an error with names. Weights of 8 bits are made whole, or kept where the run stores such.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Container, Iterable, Mapping, MutableMapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams
from library.anima_backend.modelling.vae import CHANNELS, QwenImageVAE
from library.anima_runtime import key_mapping
from library.anima_runtime.coded_weights import Weight, coded, keep_codes, stored_dtypes, whole
from library.anima_runtime.model_settings import (
    QWEN,
    qwen_config,
    qwen_sizes,
    read_qwen_settings,
    refused_settings,
)
from library.anima_runtime.quantised_files import Layout, read_layout
from library.anima_runtime.text_path import TextEncoderSize, text_differences
from library.device_utils import without_memory
from library.errors import ModelFileError
from library.system import tensor_files
from library.system.tensor_files import CODES, FLOATS, TensorFileError
from library.utils import first_few, is_quiet

if TYPE_CHECKING:
    from transformers import Qwen3Model

    from library.settings.flags.precision import PrecisionOptions

logger = logging.getLogger(__name__)

NAMES_SHOWN = 8

Shapes = dict[str, tuple[int, ...]]
AnyShapes = Mapping[str, tuple[int, ...]]
T = TypeVar("T")


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


@lru_cache(maxsize=4)
def shapes_of_dit(params: DiTParams) -> AnyShapes:
    """Of every parameter and buffer of a DiT of these sizes."""
    with without_memory():
        return MappingProxyType(shapes_of(Anima(params)))


def parameter_count(params: DiTParams) -> int:
    return sum(map(math.prod, shapes_of_dit(params).values()))


DIT = "Anima's DiT, e.g. anima-base-v1.0.safetensors"
ADAPTER = "an LLM adapter"


def inspect_transformer(
    path: str | Path,
    llm_adapter_path: str | Path | None = None,
    text_encoder: TextEncoderSize | None = None,
) -> tuple[DiTParams, str]:
    """The sizes and the key prefix of a DiT file, from headers alone; raises if it does not fit.

    text_encoder: that it is to be trained with, if it is known
    """
    shapes, _ = shapes_and_dtypes(path, DIT)
    prefix = key_mapping.transformer_prefix(shapes)
    if prefix is None:
        raise wrong_kind(path, DIT, shapes)
    layout = read_layout(path, DIT, transformer_keys(shapes, prefix))
    found = key_mapping.transformer_entries(weights_alone(shapes, layout), prefix)
    if llm_adapter_path:
        found = replace_adapter(found, adapter_shapes(llm_adapter_path))
    if differences := list(text_differences(found, text_encoder)):
        message = f"reads text otherwise than Anima: {'; '.join(differences)}. Expected {DIT}."
        raise ModelFileError(message, source=str(path))
    try:
        params = DiTParams.from_state_shapes(found)
    except KeyError as error:
        raise ModelFileError(f"lacks {error.args[0]}.", source=str(path)) from error
    except (IndexError, ValueError) as error:
        message = f"has tensors of shapes that no Anima DiT has ({error}); expected {DIT}."
        raise ModelFileError(message, source=str(path)) from error
    if params.channels != CHANNELS:
        message = f"reads latents of {params.channels} channels; Anima's have {CHANNELS}."
        raise ModelFileError(message, source=str(path))
    check_entries(path, shapes_of_dit(params), found)
    return params, prefix


def transformer_keys(keys: Iterable[str], prefix: str) -> Iterable[str]:
    """The keys of a file that are read, or are reported since no module has them."""
    return key_mapping.transformer_entries({key: key for key in keys}, prefix).values()


def weights_alone(shapes: Shapes, layout: Layout) -> Shapes:
    return {key: shape for key, shape in shapes.items() if key not in layout.more}


def adapter_shapes(path: str | Path) -> Shapes:
    shapes, _ = shapes_and_dtypes(path, ADAPTER)
    keys = key_mapping.adapter_entries({key: key for key in shapes})
    if not keys:
        raise wrong_kind(path, ADAPTER, shapes)
    layout = read_layout(path, ADAPTER, keys.values())
    return key_mapping.adapter_entries(weights_alone(shapes, layout))


def replace_adapter(entries: Mapping, adapter: Mapping) -> dict:
    """`entries` with everything under llm_adapter. taken from `adapter` instead."""
    kept = {k: v for k, v in entries.items() if not k.startswith(key_mapping.ADAPTER_PREFIX)}
    return {**kept, **{key_mapping.ADAPTER_PREFIX + k: v for k, v in adapter.items()}}


def load_transformer(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    llm_adapter_path: str | Path | None = None,
    attention_backend: str = "torch",
    fused: bool = False,
    disable_mmap: bool = False,
    stored: PrecisionOptions | None = None,
) -> Anima:
    """The DiT with its LLM adapter, frozen.

    fused: kernels between matrix products are, which has to be tried before
    stored: how the run stores weights of 8 bits; where the file has the same, its codes are kept
    """
    params, prefix = inspect_transformer(path, llm_adapter_path)
    shapes, _ = shapes_and_dtypes(path, DIT)
    keys = transformer_keys(shapes, prefix)
    tensors = key_mapping.transformer_entries(load_weights(path, DIT, keys, disable_mmap), prefix)
    if llm_adapter_path:
        shapes, _ = shapes_and_dtypes(llm_adapter_path, ADAPTER)
        keys = key_mapping.adapter_entries({key: key for key in shapes}).values()
        own = load_weights(llm_adapter_path, ADAPTER, keys, disable_mmap)
        tensors = replace_adapter(tensors, key_mapping.adapter_entries(own))
    with without_memory():
        network = Anima(params)
    keep_codes(network, tensors, dtype, stored)
    give_tensors(network, tensors, device, dtype)
    network.set_attention_backend(attention_backend)
    network.use_one_kernel(fused)
    return network


VAE = "the Qwen-Image VAE, e.g. qwen_image_vae.safetensors"
WAN_MARK, DIFFUSERS_MARK = "decoder.head.0.gamma", "decoder.norm_out.gamma"


def inspect_vae(path: str | Path) -> bool:
    """Whether a VAE file has the original Wan 2.1 layout, from its header; raises for other files."""
    shapes, _ = shapes_and_dtypes(vae_file(path), VAE)
    if WAN_MARK not in shapes and DIFFUSERS_MARK not in shapes:
        raise wrong_kind(path, VAE, shapes)
    refuse_quantised(vae_file(path), VAE, shapes)
    return WAN_MARK in shapes


def load_vae(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    disable_mmap: bool = False,
) -> QwenImageVAE:
    """The VAE from a file in the Wan 2.1 or the diffusers layout, or from a diffusers folder."""
    from diffusers.models import AutoencoderKLQwenImage

    is_original, file = inspect_vae(path), vae_file(path)
    shapes, _ = shapes_and_dtypes(file, VAE)
    found = vae_entries(path, shapes) if is_original else shapes
    try:
        with without_memory():
            network = AutoencoderKLQwenImage(base_dim=found[DIFFUSERS_MARK][0])
    except (IndexError, ValueError, RuntimeError, ArithmeticError) as error:
        message = f"has tensors of shapes that no VAE has; expected {VAE}."
        raise ModelFileError(message, source=str(path)) from error
    check_entries(path, shapes_of(network), found)
    tensors: dict[str, Weight] = {**load_floats(file, disable_mmap)}
    if is_original:
        tensors = vae_entries(path, tensors)
    give_tensors(network, tensors, device, dtype)
    return QwenImageVAE(network).requires_grad_(False).eval()


def vae_entries(path: str | Path, entries: Mapping[str, T]) -> dict[str, T]:
    """The entries of a Wan 2.1 file by diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    try:
        named = convert_wan_vae_to_diffusers(dict(entries))
    except (IndexError, KeyError, ValueError) as error:  # a number where it expects another
        raise ModelFileError(f"has names that no VAE has ({error}).", source=str(path)) from error
    if len(named) < len(entries):
        raise ModelFileError("holds tensors in both layouts of the VAE.", source=str(path))
    return named


def vae_file(path: str | Path) -> Path:
    """`path`, or the weight file of a diffusers folder."""
    inside = Path(path) / "diffusion_pytorch_model.safetensors"
    return inside if os.path.isfile(inside) else Path(path)


def inspect_qwen(path: str | Path) -> Shapes:
    """Name and shape of every tensor Qwen3Model needs, from the headers; raises for other files.

    No model library is imported: what else a folder's config.json says is tried when it is loaded.
    """
    shapes: Shapes = {}
    for file in qwen_files(path):
        found, _ = shapes_and_dtypes(file, QWEN)
        found = weights_alone(found, read_layout(file, QWEN, found))
        if shared := sorted(shapes.keys() & found.keys()):
            message = f"{listed(shared)}: in more than one file of this folder. Keep one set."
            raise ModelFileError(message, source=str(path))
        shapes.update(found)
    named = key_mapping.qwen_entries(shapes)
    if "layers.0.self_attn.q_norm.weight" not in named:
        raise wrong_kind(path, QWEN, shapes)
    try:
        sizes = qwen_sizes(named)
    except KeyError as error:
        raise ModelFileError(f"lacks {error.args[0]}.", source=str(path)) from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        message = f"has tensors of shapes that no Qwen3 has ({error}); expected {QWEN}."
        raise ModelFileError(message, source=str(path)) from error
    read_qwen_settings(path, sizes)
    return named


def load_qwen(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    disable_mmap: bool = False,
) -> Qwen3Model:
    """The frozen text encoder, from a Hugging Face folder or from the single file."""
    from transformers import Qwen3Model
    from transformers.utils.logging import disable_progress_bar

    named = inspect_qwen(path)
    config = qwen_config(path, named)
    try:
        with without_memory():
            wanted = shapes_of(Qwen3Model(config))
    except Exception as error:  # of settings that only the network itself looks at
        raise refused_settings(path, error) from error
    check_entries(path, wanted, named)
    weights: dict[str, Weight] = {}
    for file in qwen_files(path):
        shapes, _ = shapes_and_dtypes(file, QWEN)
        weights.update(key_mapping.qwen_entries(load_weights(file, QWEN, shapes, disable_mmap)))
    tensors = {name: whole(weights.pop(name), "cpu", dtype) for name in list(weights)}
    disable_progress_bar()
    model = Qwen3Model.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    placed = nn.Module.to(model, device)  # as model.to, which transformers gives no types
    return placed.requires_grad_(False).eval()


def qwen_files(path: str | Path) -> list[Path]:
    """The weight files of a folder, or the single file itself."""
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelFileError(f"{path}: the folder holds no .safetensors file; expected {QWEN}.")
    return files
