"""Model files to frozen modules on a device in a dtype.

A network is built without memory, and the file's tensors become its own. Weights of 8 bits are made whole,
or kept where the run stores such.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams
from library.anima_backend.modelling.vae import CHANNELS, QwenImageVAE
from library.anima_runtime import key_mapping
from library.anima_runtime.coded_weights import Weight, keep_codes, whole
from library.anima_runtime.model_settings import (
    QWEN,
    qwen_config,
    qwen_sizes,
    read_qwen_settings,
    refused_settings,
)
from library.anima_runtime.model_tensors import (
    AnyShapes,
    Shapes,
    check_entries,
    give_tensors,
    listed,
    load_floats,
    load_weights,
    refuse_quantised,
    shapes_and_dtypes,
    shapes_of,
    weights_alone,
    wrong_kind,
)
from library.anima_runtime.quantised_files import read_layout
from library.anima_runtime.text_path import TextEncoderSize, text_differences
from library.device_utils import without_memory
from library.errors import ModelFileError

if TYPE_CHECKING:
    from transformers import Qwen3Model

    from library.settings.flags.precision import PrecisionOptions

T = TypeVar("T")


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
    disable_mmap: bool = False,
    stored: PrecisionOptions | None = None,
) -> Anima:
    """The DiT with its LLM adapter, frozen; its kernels are torch's.

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
