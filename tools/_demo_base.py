"""The demo's base that draws: learned once, kept in tools/demo_base, given out in the true layout.

Of the VAE only what a picture passes is kept; and of the tokenizers what the others are made from, since
a base reads the very ids that it has learned from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from library import anima_models
from library.strategy_anima import AnimaTextEncodingStrategy, AnimaTokenizeStrategy
from tools import _demo_layouts as layouts
from tools import _demo_weights as weights
from tools._demo_dit import learn_dit, make_lesson
from tools._demo_tokenizers import QWEN_SETTINGS, t5_files
from tools._demo_vae import in_true_layout, learn_vae, passed_tensors

FOLDER = Path(__file__).resolve().parent / "demo_base"
DIT, QWEN, VAE = "anima_dit.safetensors", "qwen_3_06b.safetensors", "qwen_image_vae.safetensors"
KEPT_OF_TOKENIZERS = {
    "qwen_tokenizer": ("vocab.json", "merges.txt"),
    "t5_tokenizer": ("spiece.model",),
}
Contents = dict[str, bytes]
"""Name to content of files."""


def model_files() -> Contents:
    """The three model files as they are kept, in the true layout."""
    vae = in_true_layout(load_file(FOLDER / VAE), layouts.vae_shapes(layouts.TINY_VAE_WIDTH))
    return {name: (FOLDER / name).read_bytes() for name in (DIT, QWEN)} | {VAE: content(vae)}


def tokenizer_files() -> dict[str, Contents]:
    """Folder name -> files of the tokenizers that the base has learned with."""
    kept = {
        folder: {name: (FOLDER / name).read_bytes() for name in names}
        for folder, names in KEPT_OF_TOKENIZERS.items()
    }
    return {
        "qwen_tokenizer": kept["qwen_tokenizer"] | QWEN_SETTINGS,
        "t5_tokenizer": t5_files(kept["t5_tokenizer"]["spiece.model"]),
    }


def shapes_of(rows: Mapping[str, int]) -> dict[str, layouts.Shapes]:
    """Names and shapes of each file's tensors. rows: of the tables of both tokenizers' ids"""
    return {
        DIT: layouts.dit_shapes(layouts.tiny_dit(96, 5, rows["t5"])),
        QWEN: layouts.qwen_shapes(layouts.tiny_qwen(rows["qwen"])),
        VAE: layouts.vae_shapes(layouts.TINY_VAE_WIDTH),
    }


def learn(tokenizers: Mapping[str, Contents], rows: Mapping[str, int], seed: int) -> Contents:
    """What is to be kept of a base that has learned; many minutes on a CPU.

    One thread computes, so that a machine makes the same bytes again.
    """
    shapes = shapes_of(rows)
    with one_thread(), tempfile.TemporaryDirectory() as work:
        models = Path(work)
        start(models, shapes, tokenizers, seed)
        vae = anima_models.load_anima_vae(models / VAE)
        learn_vae(vae, seed)
        passed = passed_tensors(vae, shapes[VAE])
        (models / VAE).write_bytes(content(in_true_layout(passed, shapes[VAE])))
        vae = anima_models.load_anima_vae(models / VAE)  # rounded, as who uses the file has it
        tokenize = AnimaTokenizeStrategy(
            anima_models.load_anima_qwen_tokenizer(models / "qwen_tokenizer"),
            anima_models.load_anima_t5_tokenizer(models / "t5_tokenizer"),
        )
        qwen = anima_models.load_anima_qwen_model(models / QWEN, dtype=torch.float32)
        encoding = AnimaTextEncodingStrategy(tokenize, qwen)
        dit = anima_models.load_anima_transformer(models / DIT, dtype=torch.float32)
        learn_dit(dit, make_lesson(vae, tokenize, encoding, seed), seed)
        named = {f"net.{name}": tensor for name, tensor in dit.state_dict().items()}
        kept = {DIT: content(named), QWEN: (models / QWEN).read_bytes(), VAE: content(passed)}
    for folder, names in KEPT_OF_TOKENIZERS.items():
        kept |= {name: tokenizers[folder][name] for name in names}
    return kept


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def start(
    models: Path, shapes: dict[str, layouts.Shapes], tokenizers: Mapping[str, Contents], seed: int
) -> None:
    """Write what learning begins with: random weights, and the tokenizers."""
    scales = {DIT: weights.dit_scale, QWEN: weights.qwen_scale, VAE: weights.vae_scale}
    for name, scale in scales.items():
        list(weights.write_model(models / name, shapes[name], scale, seed))
    for folder, files in tokenizers.items():
        (models / folder).mkdir()
        for name, text in files.items():
            (models / folder / name).write_bytes(text)


def content(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file in bfloat16."""
    return save({name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()})
