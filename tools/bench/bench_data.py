"""Measure what feeds the training: the scan of folders, cache items, the wait per step, the VAE.

python -m tools.bench.bench_data [--parts scan cache start wait vae] [--pictures 10000] [--json data.json]

Everything is made in a temporary folder, at the true sizes of a 1024 x 1024 picture. Files come from
the system's memory of files that were just written: a cold disk adds its own time to both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from library.anima_backend.modelling.vae import QwenImageVAE
from library.caching.cache_files import CacheFile
from library.caching.contents import Contents
from library.caching.latents_cache import Storing, cache_latents
from library.caching.text_cache import TextCache
from library.caching.text_windows import RunTexts, TextWindows
from library.config_util import load_dataset_config
from library.data.ahead import Ahead
from library.data.bucket_sampler import BucketBatchSampler
from library.data.catalogue import Catalogue
from library.data.data_types import Layout, StoredTensor, TextOutputs
from library.data.datasets import TrainDataset
from library.data.scan import scan
from library.settings.flags.data import DataOptions
from library.strategy_anima import AnimaTextEncodingStrategy
from library.strategy_base import LatentsCachingStrategy, TextEncoderOutputsCachingStrategy
from library.system.program import run_main
from library.train_util import make_loader
from library.training.flow_matching import Noising
from tools.bench.measuring import edge, machine, whole_number, write_json

SIDE = 128  # of the latents of a 1024 x 1024 picture
TOKENS, T5_TOKENS, WIDTH, PADDED = 150, 170, 1024, 512  # of a description of 130 words
ITEMS = 64
STEP = 0.1  # seconds that a step takes on a fast GPU


class RandomLatents(LatentsCachingStrategy):
    """Latents of the true size; what they say is no matter here."""

    downscale, channels, identity = 8, 16, "random"

    def encode(self, pixels: Tensor) -> Tensor:
        return torch.randn(len(pixels), 16, pixels.shape[2] // 8, pixels.shape[3] // 8)

    def decode(self, latents: Tensor, rows: int | None = None) -> Tensor:
        return torch.zeros(len(latents), 3, latents.shape[2] * 8, latents.shape[3] * 8)


class RandomText(TextEncoderOutputsCachingStrategy):
    """Text outputs of the true size."""

    identity = "random"

    def __init__(self) -> None:
        self.layout = layout_of(self.encode(""))

    def encode(self, caption: str) -> TextOutputs:
        ids = torch.arange(T5_TOKENS)
        hidden = torch.randn(TOKENS, WIDTH).bfloat16()
        return {"qwen_hidden": hidden, "t5_ids": ids, "t5_mask": torch.ones_like(ids)}


def median_ms(work: Callable[[int], object], count: int) -> float:
    """The median time of work(0), work(1), ..."""
    times = []
    for number in range(count):
        start = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Plain pictures with captions."""
    folder.mkdir()
    Image.new("RGB", (side, side), (90, 120, 30)).save(folder / "0.png")
    content = (folder / "0.png").read_bytes()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(content)
        (folder / f"{number}.txt").write_text(f"picture {number}, a, b", encoding="utf-8")


def catalogue_of(folder: Path, resolution: int) -> Catalogue:
    file = folder.parent / "dataset.toml"
    file.write_text(
        f"[[datasets]]\nresolution = {resolution}\n[[datasets.subsets]]\nimage_dir = '{folder}'\n",
        encoding="utf-8",
    )
    return scan(load_dataset_config(file, {}))


def bench_scan(root: Path, count: int) -> Iterator[str]:
    """Headers and captions of small pictures."""
    make_pictures(root / "small", count, 64)
    start = time.perf_counter()
    catalogue_of(root / "small", 64)
    seconds = time.perf_counter() - start
    yield f"scan of {count} pictures: {seconds:.2f} s, {count / seconds:.0f} pictures/s"


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """The layout that exactly these tensors have."""
    return {
        name: StoredTensor(tuple(t.shape), None if t.is_floating_point() else 2**31)
        for name, t in tensors.items()
    }


def bench_cache(root: Path) -> Iterator[str]:
    """One picture's latents and text: our two files against sd-scripts' two."""
    (root / "items").mkdir()
    latents, text = torch.randn(ITEMS, 16, SIDE, SIDE), RandomText().encode("")
    ours = []
    for number, latent in enumerate(latents):
        pair = []
        for kind, tensors in (("lat", {"latents": latent}), ("text", text)):
            file = CacheFile(root / "items" / f"{number}.{kind}", "x", layout_of(tensors))
            file.write(tensors)
            pair.append(file)
        ours.append(pair)
        save_as_sd_scripts(root / "items" / str(number), latent, text)

    def read_ours(number: int, check: bool) -> None:
        for file in ours[number]:
            file.read(check=check)

    def read_npz(number: int) -> None:
        for kind in ("latents", "text"):
            with np.load(root / "items" / f"{number}.{kind}.npz", allow_pickle=False) as stored:
                [torch.from_numpy(stored[name]) for name in stored.files]

    median_ms(read_npz, ITEMS), median_ms(lambda n: read_ours(n, True), ITEMS)  # warm
    npz = median_ms(read_npz, ITEMS)
    first = median_ms(lambda number: read_ours(number, True), ITEMS)
    later = median_ms(lambda number: read_ours(number, False), ITEMS)
    header = median_ms(lambda number: ours[number][0].status(), ITEMS)
    sizes = [sum(file.path.stat().st_size for file in pair) for pair in ours]
    theirs = sum(path.stat().st_size for path in (root / "items").glob("0.*.npz"))
    yield f"cache item, sd-scripts' npz: {npz:.2f} ms, {theirs / 1e6:.2f} MB"
    yield f"cache item, ours: {later:.2f} ms ({later / npz:.3f}x), {sizes[0] / 1e6:.2f} MB"
    yield f"  when first read, checksum compared: {first:.2f} ms ({first / npz:.3f}x)"
    yield f"  check of a header at the start: {header:.3f} ms a file"
    size = ours[0][1].path.stat().st_size
    yield f"  text of {TOKENS} tokens: {size / 1e3:.0f} kB, {size / TOKENS:.0f} bytes a token"


def save_as_sd_scripts(base: Path, latents: Tensor, text: TextOutputs) -> None:
    """float32, text padded, as its .npz files are."""
    hidden = torch.zeros(PADDED, WIDTH)
    hidden[:TOKENS] = text["qwen_hidden"]
    ones, ids = np.ones(PADDED, np.int64), np.zeros(PADDED, np.int32)
    size, crop = np.array([1024, 1024]), np.array([0, 0, 1024, 1024])
    np.savez(f"{base}.latents.npz", latents=latents.numpy(), original_size=size, crop_ltrb=crop)
    np.savez(
        f"{base}.text.npz", prompt_embeds=hidden.numpy(), attn_mask=ones, t5_input_ids=ids,
        t5_attn_mask=ids, caption_dropout_rate=np.float32(0),
    )  # fmt: skip


def bench_start(root: Path) -> Iterator[str]:
    """What telling files by their content costs: all of them read, and remembered."""
    rng = np.random.default_rng(0)
    paths = [root / f"{number}.bin" for number in range(ITEMS)]
    for path in paths:
        path.write_bytes(rng.bytes(2_000_000))
        os.utime(path, (1, 1))

    def start(number: int) -> None:
        contents = Contents()
        contents.read_all(paths)
        contents.remember()

    first, later = median_ms(start, 1), median_ms(start, 5)
    yield f"contents of {ITEMS} pictures of 2 MB, first start: {first:.1f} ms"
    yield f"  later starts: {later:.1f} ms ({later / first:.3f}x)"


def bench_wait(root: Path) -> Iterator[str]:
    """From asking for a batch to its padded conditioning: what a step waits for.

    Each batch made when it is asked for, against batches made while the step before runs.
    """
    make_pictures(root / "large", ITEMS, 1024)
    catalogue = catalogue_of(root / "large", 1024)
    now, ahead = DataOptions(max_data_loader_n_workers=0), DataOptions()
    for kind in ("on disk", "in memory"):
        fresh = [cached(catalogue, to_disk=kind == "on disk") for _ in range(2)]
        for pass_name in ("first epoch", "later"):
            yield shown(f"caches {kind}, {pass_name}", waits(fresh[0], now), waits(fresh[1], ahead))
    decoded = TrainDataset(catalogue, seed=0)
    yield shown("pictures decoded", waits(decoded, now), waits(decoded, ahead))


def shown(what: str, now: float, ahead: float) -> str:
    return (
        f"data wait per step, {what}: {now:.2f} ms a picture; made ahead: {ahead:.2f} ms "
        f"({ahead / now:.2f}x)"
    )


def cached(catalogue: Catalogue, *, to_disk: bool) -> TrainDataset:
    """Everything of the catalogue from fresh caches, whose files have not been read yet."""
    sampler = BucketBatchSampler(catalogue, seed=0)
    texts = RunTexts(TrainDataset(catalogue, seed=0), sampler, 1)
    latents = cache_latents(catalogue, RandomLatents(), Storing(to_disk=to_disk, batch_size=8))
    windows = TextWindows(texts, TextCache(RandomText(), to_disk=to_disk), limit=ITEMS)
    windows.prepare_epoch(0)
    return TrainDataset(catalogue, seed=0, latents=latents, texts=windows)


def waits(dataset: TrainDataset, options: DataOptions) -> float:
    """The median wait for a batch, its draws and its conditioning, STEP seconds in between."""
    shape = RandomLatents().latents_shape(8 * SIDE, 8 * SIDE)
    ahead = Ahead(
        torch.device("cpu"),
        lambda batch: Noising().draw_ahead(shape, batch.seeds),
        AnimaTextEncodingStrategy.collate,
    )
    sampler = BucketBatchSampler(dataset.catalogue, seed=0)
    batches = iter(make_loader(dataset, sampler, options, ahead))
    times: list[float] = []
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return 1e3 * statistics.median(times)
        times.append(time.perf_counter() - start)
        time.sleep(STEP)


@torch.no_grad()
def bench_vae(pixels: int, base_dim: int = 96) -> Iterator[str]:
    """The real VAE's sizes with random weights: convolutions in 2-D against 3-D."""
    from diffusers.models import AutoencoderKLQwenImage

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        whole = AutoencoderKLQwenImage(base_dim=base_dim).eval().to(device, dtype)
        picture = torch.rand(1, 3, pixels, pixels, device=device) * 2 - 1
        times, found = {}, {}
        for name, single in (("3-D", False), ("2-D", True)):
            vae = QwenImageVAE(whole, single_frame=single)  # folds the same weights
            found[name] = vae.encode(picture).cpu()
            times[name] = median_ms(partial(encode, vae, picture), 5)
        apart = (found["3-D"] - found["2-D"]).abs().max().item()
        yield (
            f"VAE, {pixels} x {pixels}, {dtype}, {device}: 2-D {times['2-D']:.0f} ms, 3-D "
            f"{times['3-D']:.0f} ms, {times['2-D'] / times['3-D']:.2f}x; furthest apart {apart:.1e}"
        )


def encode(vae: QwenImageVAE, picture: Tensor, number: int) -> None:
    vae.encode(picture).cpu()  # waits for the device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parts = ("scan", "cache", "start", "wait", "vae")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--pictures", type=whole_number, default=10_000, help="to scan")
    parser.add_argument("--pixels", type=edge, default=512, help="edge of the picture for the VAE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines there as well")
    options = parser.parse_args()
    facts = {"machine": machine(torch.device("cpu")), "torch": torch.__version__}
    print("; ".join([facts["machine"], f"torch {facts['torch']}"]))
    found: dict[str, list[str]] = {part: [] for part in options.parts}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        benches = {
            "scan": lambda: bench_scan(root, options.pictures),
            "cache": lambda: bench_cache(root),
            "start": lambda: bench_start(root),
            "wait": lambda: bench_wait(root),
            "vae": lambda: bench_vae(options.pixels),
        }
        for part in options.parts:
            for line in benches[part]():
                found[part].append(line)
                print(line, flush=True)
    write_json(options.json, {**facts, "parts": found})


if __name__ == "__main__":
    run_main(main)
