"""Batches made ahead: the same ones in the same order, and nothing that goes wrong is lost or waits."""

import multiprocessing
import threading

import pytest
import torch

from library.caching.latents_cache import Storing, cache_latents
from library.data.batch_loader import BatchLoader
from library.data.bucket_sampler import BucketBatchSampler
from library.data.datasets import TrainDataset
from library.errors import DatasetError
from tests.helpers.dataset_files import ShrinkingEncoder, catalogue_of, folder_of
from tests.helpers.running import config_files, make_trainer

BATCHES = 7


@pytest.fixture
def catalogue(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)] * BATCHES)
    return catalogue_of(folder, subset="flip_aug = true\nshuffle_caption = true")


def loader_of(dataset, threads):
    return BatchLoader(dataset, BucketBatchSampler(dataset.catalogue, seed=1), threads=threads)


def threads_left():
    return [each for each in threading.enumerate() if each.name.startswith("batches")]


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_threads_give_the_same_batches_in_the_same_order(catalogue, threads):
    dataset = TrainDataset(catalogue, seed=1)
    here, ahead = (list(loader_of(dataset, n)) for n in (0, threads))
    assert len(here) == BATCHES and not threads_left()
    for one, other in zip(here, ahead, strict=True):
        assert (one.keys, one.seeds, one.captions) == (other.keys, other.seeds, other.captions)
        assert torch.equal(one.pixels, other.pixels)


class Watched(TrainDataset):
    """Notes what is asked of it, and raises `error` at the picture of the batch `at`."""

    def __init__(self, catalogue, at=None, error=None):
        super().__init__(catalogue, seed=1)
        self.at, self.error, self.asked = at, error, threading.Semaphore(0)
        self.batches = []

    def picture_of(self, request):
        self.batches.append(request.batch)
        self.asked.release()
        if request.batch == self.at:
            raise self.error
        return super().picture_of(request)


@pytest.mark.parametrize("threads", [1, 2])
def test_so_many_batches_are_made_ahead_as_there_are_threads(catalogue, threads):
    dataset = Watched(catalogue)
    batches = iter(loader_of(dataset, threads))
    for taken in range(1, 4):
        next(batches)
        dataset.asked.acquire()
        assert max(dataset.batches) < taken + threads
    for _ in range(threads):  # asked for although nobody takes them yet
        assert dataset.asked.acquire(timeout=60)
    batches.close()
    assert not threads_left()


class Unspeakable(Exception):
    """Cannot be pickled, nor made anew from what it says."""

    def __init__(self, one, other):
        super().__init__()
        self.lock = threading.Lock()


ERRORS = [
    KeyError("x"), MemoryError(), DatasetError("x"), Unspeakable(1, 2), StopIteration(),
    SystemExit(0), KeyboardInterrupt(),
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_making_a_batch_raises_is_raised_in_its_turn(catalogue, threads, error):
    dataset = Watched(catalogue, 3, error)
    taken = []
    with pytest.raises(Exception) as caught:
        taken.extend(loader_of(dataset, threads))
    assert len(taken) == 3 and not threads_left()
    assert caught.value is error or caught.value.__cause__ is error
    assert (caught.value is error) == (type(error) in {type(each) for each in ERRORS[:4]})


def test_a_loop_that_stops_leaves_no_thread_behind(catalogue):
    for _ in loader_of(TrainDataset(catalogue, seed=1), 3):
        break
    assert not threads_left()


def test_what_a_cache_lost_is_made_anew_where_the_training_runs(catalogue):
    where = []

    class Encoder(ShrinkingEncoder):
        def encode(self, pixels):
            where.append(threading.current_thread())
            return super().encode(pixels)

    latents = cache_latents(catalogue, Encoder(), Storing(to_disk=True, batch_size=1))
    dataset = TrainDataset(catalogue, seed=1, latents=latents)
    expected = [batch.latents for batch in loader_of(dataset, 0)]
    for path in (catalogue.images[0].path.parent / "_cache").glob("*.safetensors"):
        path.unlink()
    where.clear()
    found = [batch.latents for batch in loader_of(dataset, 1)]
    assert all(map(torch.equal, found, expected))
    assert len(where) == BATCHES and set(where) == {threading.main_thread()}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unforeseen_error_in_a_picture_ends_the_run_with_its_weights_saved(
    demo, run_folder, monkeypatch, workers
):
    settings = {"cache_latents": False, "max_data_loader_n_workers": workers, "max_train_steps": 6}
    trainer = make_trainer(config_files(demo, run_folder, settings, num_repeats=2))
    real, seen = TrainDataset.picture_of, []

    def picture_of(dataset, request):
        seen.append(request)
        if len(seen) == 9:
            assert not multiprocessing.active_children()
            raise KeyError("unforeseen")
        return real(dataset, request)

    monkeypatch.setattr(TrainDataset, "picture_of", picture_of)
    with pytest.raises(KeyError, match="unforeseen"):
        trainer.train()
    assert trainer.state.step >= 1 and not threads_left()
    assert list((run_folder / "out").glob("*.safetensors"))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_exception_that_ends_iterations_does_not_end_the_epoch_unsaid(catalogue, threads):
    dataset = Watched(catalogue, at=3, error=StopIteration())
    with pytest.raises(RuntimeError):
        list(loader_of(dataset, threads))
    assert not threads_left()
