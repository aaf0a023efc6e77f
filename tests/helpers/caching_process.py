"""A process that caches a folder's latents and texts, for tests of killed and of simultaneous ones.

python -m tests.helpers.caching_process FOLDER FACTOR STOP

Says "ready", waits for a line, caches, then checks that it can read what it made. FACTOR is its
encoders' own. It stops for good, saying "stopped", when its STOP-th file is written and not yet named.
"""

import sys
import tempfile
from pathlib import Path

import torch

from library.caching.latents_cache import LatentsCache, Storing, cache_latents
from library.caching.text_cache import TextCache
from library.data.picture_folders import CACHE_FOLDER
from tests.helpers.dataset_files import (
    BUCKETS,
    LetterEncoder,
    ShrinkingEncoder,
    cache_text,
    catalogue_from,
)

BATCH = 3


class Pictures(ShrinkingEncoder):
    """Averages, times a factor."""

    def __init__(self, factor):
        super().__init__(f"shrink x {factor}")
        self.factor = factor

    def encode(self, pixels):
        return super().encode(pixels) * self.factor


class Letters(LetterEncoder):
    """Rows of letters, times a factor."""

    def __init__(self, factor):
        super().__init__(f"letters x {factor}")
        self.factor = factor

    def encode(self, caption):
        outputs = super().encode(caption)
        return {**outputs, "hidden": outputs["hidden"] * self.factor}


def pictures_of(folder):
    """The folder's catalogue. Each process has a dataset file of its own."""
    text = f"[[datasets]]{BUCKETS}\n[[datasets.subsets]]\nimage_dir = '{folder}'\nflip_aug = true"
    with tempfile.TemporaryDirectory() as place:
        return catalogue_from(Path(place), text)


def captions_of(catalogue):
    return {image.caption: image.path.parent for image in catalogue.images}


def fill(folder, factor) -> tuple[LatentsCache, TextCache, int]:
    """Both caches on disk, and how many items were encoded."""
    catalogue, pictures, letters = (
        pictures_of(folder),
        Pictures(factor),
        Letters(factor),
    )
    latents = cache_latents(catalogue, pictures, Storing(to_disk=True, batch_size=BATCH))
    texts = cache_text(captions_of(catalogue), letters, to_disk=True)
    return latents, texts, sum(pictures.batches) + len(letters.captions)


def check(folder, latents, texts, factor):
    """Everything that is read is what these encoders make."""
    catalogue = pictures_of(folder)
    expected = cache_latents(catalogue, Pictures(factor), Storing(to_disk=False, batch_size=BATCH))
    for key, flipped in expected.stored:
        assert torch.equal(latents.get(key, flipped)[0], expected.get(key, flipped)[0]), key
    for caption in captions_of(catalogue):
        for name, value in Letters(factor).encode(caption).items():
            assert torch.equal(texts.get(caption)[name], value), caption


def stop_at(count):
    """Stop in the count-th renaming of a cache file."""

    def watch(event, arguments):
        nonlocal count
        if event == "os.rename" and Path(arguments[1]).parent.name == CACHE_FOLDER:
            count -= 1
            if count == 0:
                print("stopped", flush=True)
                sys.stdin.read()  # until the process is killed

    sys.addaudithook(watch)


def main():
    folder, factor, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    sys.stdin.readline()
    stop_at(stop)
    latents, texts, _ = fill(folder, factor)
    check(folder, latents, texts, factor)


if __name__ == "__main__":
    main()
