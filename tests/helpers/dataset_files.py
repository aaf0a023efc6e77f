"""Small picture folders and dataset files, made for tests."""

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.caching.contents import MEMORY
from library.caching.latents_cache import Share
from library.caching.text_cache import TextCache
from library.config_util import load_dataset_config
from library.data.buckets import CropPlan
from library.data.data_types import ImageInfo, StoredTensor
from library.data.dataset_config import SubsetConfig
from library.data.images import load_picture
from library.data.scan import scan
from library.strategy_base import LatentsCachingStrategy, TextEncoderOutputsCachingStrategy

BUCKETS = """
resolution = 64
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
"""


def draw(path: Path, size=(64, 64), seed=0):
    """A picture of noise: every one different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def folder_of(root: Path, sizes, captions=True) -> Path:
    """Pictures 0.png, 1.png, ... of these sizes, with captions 0.txt, ..."""
    for number, size in enumerate(sizes):
        draw(root / f"{number}.png", size, seed=number)
        if captions:
            (root / f"{number}.txt").write_text(f"tag{number}, a, b, c", encoding="utf-8")
    return root


def catalogue_of(folder: Path, *, dataset="", subset="", settings=BUCKETS):
    """The catalogue of one folder."""
    text = (
        f"[[datasets]]{settings}{dataset}\n[[datasets.subsets]]\nimage_dir = '{folder}'\n{subset}"
    )
    return catalogue_from(folder.parent, text)


def catalogue_from(root: Path, text: str):
    path = root / "dataset.toml"
    path.write_text(text, encoding="utf-8")
    return scan(load_dataset_config(path, {}))


def load_masked(path: Path, plan: CropPlan, mask: Path | None = None, **subset):
    """A picture file by itself: pixels (3, H, W) and mask. subset: its fields of SubsetConfig."""
    info = ImageInfo(
        key=path.name,
        path=path,
        size=plan.resized,
        caption=None,
        dataset_index=0,
        subset=SubsetConfig(**subset),
        plan=plan,
        mask=mask,
    )
    return load_picture(info, plan)


def load_pixels(path: Path, plan: CropPlan, **subset) -> torch.Tensor:
    return load_masked(path, plan, **subset)[0]


class ShrinkingEncoder(LatentsCachingStrategy):
    """Averages 8 x 8 pixels: a real encoder, small. Counts what it encodes."""

    downscale, channels = 8, 3

    def __init__(self, identity="shrink-1"):
        self.identity = identity
        self.batches = []

    def encode(self, pixels):
        self.batches.append(len(pixels))
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def decode(self, latents, rows=None):
        return torch.nn.functional.interpolate(latents, scale_factor=8)


class LetterEncoder(TextEncoderOutputsCachingStrategy):
    """A caption's code points, and a row of features for each."""

    def __init__(self, identity="letters-1"):
        self.identity = identity
        ids = StoredTensor(("L",), below=0x110000)
        self.layout = {"ids": ids, "hidden": StoredTensor(("L", 4))}
        self.captions = []

    def encode(self, caption):
        self.captions.append(caption)
        ids = torch.tensor([ord(letter) for letter in caption] or [0], dtype=torch.int64)
        return {"ids": ids, "hidden": torch.outer(ids.bfloat16(), torch.ones(4).bfloat16())}


def cache_text(captions, strategy, *, to_disk):
    """These captions, all at once. captions: text -> the folder its file goes to"""
    cache = TextCache(strategy, to_disk=to_disk)
    cache.hold(captions)
    return cache


def encoded_texts(folder, *captions, encoder=None):
    """The captions that a new run encodes."""
    encoder = encoder or LetterEncoder()
    cache_text(dict.fromkeys(captions, folder), encoder, to_disk=True)
    return encoder.captions


def stored_with(change, path):
    """Write a cache file again with the same fingerprint and other tensors."""
    with safe_open(path, "pt") as file:
        metadata = {"cache": file.metadata()["cache"].split()[0]}
    tensors = change(load_file(path))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata=metadata)


def together(work):
    """work(share) in each of two processes' place, which wait for each other; what they return."""
    meet = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, [Share(rank, 2, meet.wait) for rank in (0, 1)]))


def picture_url(kind="png", cut=None):
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, kind)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()[:cut]).decode()}"


def stored_files(folder):
    files = (path for path in (folder / "_cache").iterdir() if path.name != MEMORY)
    return {path.name: path.read_bytes() for path in files if path.is_file()}
