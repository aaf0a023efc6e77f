"""A folder whose captions change from epoch to epoch, and the texts of a run over it."""

from pathlib import Path

from library.caching.text_windows import RunTexts
from library.data.bucket_sampler import BucketBatchSampler
from library.data.datasets import TrainDataset
from tests.helpers.dataset_files import catalogue_of, folder_of

ALIVE = """
shuffle_caption = true
caption_dropout_rate = 0.1
caption_tag_dropout_rate = 0.2
enable_wildcard = true
num_repeats = 2
"""
EPOCHS = 6


def folder_of_run(root: Path) -> Path:
    folder = folder_of(root / "set", [(64, 64)] * 5)
    (folder / "1.txt").write_text("{red|blue}, cat\nsecond line, dog", encoding="utf-8")
    return folder


def texts_of(folder, subset=ALIVE, *, rank=0, world_size=1, epochs=EPOCHS):
    catalogue = catalogue_of(folder, subset=subset, dataset="batch_size = 2")
    sampler = BucketBatchSampler(catalogue, seed=3, rank=rank, world_size=world_size)
    return RunTexts(TrainDataset(catalogue, seed=3), sampler, epochs)
