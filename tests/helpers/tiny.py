"""Real models made small: the reference files of tests/golden, loaded by the project's own loaders."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from library.anima_models import load_anima_qwen_model, load_anima_transformer, load_anima_vae
from tests.helpers.paths import GOLDEN


def golden(name: str) -> Path:
    """A file of tests/golden."""
    return GOLDEN / name


@cache
def golden_vectors() -> dict[str, Tensor]:
    """Inputs (in.*) and ComfyUI's outputs (out.*, tap.*, train.*); not to be changed in place."""
    return load_file(golden("vectors.safetensors"))


def tiny_transformer(dtype: torch.dtype = torch.float32):
    return load_anima_transformer(golden("anima_tiny_dit.safetensors"), dtype=dtype)


def tiny_vae(dtype: torch.dtype = torch.float32):
    return load_anima_vae(golden("qwen_image_vae_tiny.safetensors"), dtype=dtype)


def tiny_qwen(dtype: torch.dtype = torch.float32):
    return load_anima_qwen_model(golden("qwen3_tiny.safetensors"), dtype=dtype)


def saved(tensors: dict[str, Tensor], folder: Path, name: str = "file.safetensors") -> Path:
    """The file of some tensors."""
    path = folder / name
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def rel_l2(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_matches_golden(actual: Tensor, expected: Tensor) -> None:
    """The tolerance the reference tensors are made for, in float32."""
    assert actual.shape == expected.shape
    assert rel_l2(actual, expected) < 1e-4
    assert (actual - expected).abs().max() < 5e-4


def loss_of(model):
    vectors = golden_vectors()
    out = model(
        vectors["in.x.sq"][:, :, 0], vectors["in.t.sq"], vectors["in.qwen_hidden.a"],
        vectors["in.t5_ids.a"],
    )  # fmt: skip
    return out.float().square().mean()
