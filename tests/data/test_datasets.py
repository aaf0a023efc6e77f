"""Order and content of an epoch: complete, one bucket per batch, a function of the position."""

from collections import Counter

import pytest
import torch

from library.caching.latents_cache import Storing, cache_latents
from library.data.batch_loader import BatchLoader
from library.data.bucket_sampler import BucketBatchSampler
from library.data.data_types import SampleRequest
from library.data.datasets import TrainDataset
from tests.helpers.dataset_files import (
    BUCKETS,
    ShrinkingEncoder,
    catalogue_from,
    catalogue_of,
    folder_of,
)

SQUARE, WIDE = (64, 64), (128, 32)


@pytest.fixture
def two_datasets(tmp_path):
    """7 squares and 4 wide ones, repeats 2; then 3 squares at batch size 1."""
    first = folder_of(tmp_path / "first", [SQUARE] * 7 + [WIDE] * 4)
    second = folder_of(tmp_path / "second", [SQUARE] * 3)
    return catalogue_from(
        tmp_path,
        f"[[datasets]]{BUCKETS}batch_size = 3\n"
        f"[[datasets.subsets]]\nimage_dir = '{first}'\nnum_repeats = 2\nflip_aug = true\n"
        f"[[datasets]]{BUCKETS}\n[[datasets.subsets]]\nimage_dir = '{second}'\n",
    )


def identity(request):
    return request.index, request.repeat


def test_an_epoch_has_every_picture_and_repeat_exactly_once(two_datasets):
    batches = BucketBatchSampler(two_datasets, seed=1).batches(0)
    counts = Counter(identity(request) for batch in batches for request in batch)
    expected = {
        (index, repeat)
        for index, image in enumerate(two_datasets.images)
        for repeat in range(image.subset.num_repeats)
    }
    assert set(counts) == expected and set(counts.values()) == {1}
    assert len(batches) == two_datasets.num_batches == 5 + 3 + 3


def test_a_batch_has_one_dataset_and_one_bucket_and_its_dataset_s_size(two_datasets):
    lengths = Counter()
    for batch in BucketBatchSampler(two_datasets, seed=1).batches(0):
        images = [two_datasets.images[request.index] for request in batch]
        assert len({(image.dataset_index, image.plan.bucket) for image in images}) == 1
        lengths[images[0].dataset_index, images[0].plan.bucket, len(batch)] += 1
    assert lengths == {
        (0, SQUARE, 3): 4, (0, SQUARE, 2): 1, (0, WIDE, 3): 2, (0, WIDE, 2): 1, (1, SQUARE, 1): 3
    }  # fmt: skip


def test_the_order_differs_by_epoch_and_by_seed_and_comes_back(two_datasets):
    orders = [
        [
            [identity(r) for r in batch]
            for batch in BucketBatchSampler(two_datasets, seed=s).batches(e)
        ]
        for s, e in ((1, 0), (1, 1), (2, 0), (1, 0))
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("world_size", [2, 3, 4, 30])
def test_ranks_share_the_epoch_and_only_repeat_whole_batches_to_fill_up(two_datasets, world_size):
    samplers = [
        BucketBatchSampler(two_datasets, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [list(sampler) for sampler in samplers]
    everything = samplers[0].batches(0)
    assert {len(share) for share in shares} == {len(s) for s in samplers} == {-(-11 // world_size)}
    places = Counter(batch[0].batch for share in shares for batch in share)
    assert set(places) == set(range(11))
    in_order = [share[turn] for turn in range(len(shares[0])) for share in shares]
    assert in_order[:11] == everything
    assert in_order[11:] == (everything * 3)[: len(in_order) - 11]


def test_an_epoch_can_be_taken_up_at_any_batch(two_datasets):
    sampler = BucketBatchSampler(two_datasets, seed=1, rank=1, world_size=2)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start_batch=4)
    assert list(sampler) == whole[4:]
    sampler.set_epoch(3, start_batch=len(whole))
    assert list(sampler) == []


def test_a_batch_s_tensors_have_the_shape_of_its_bucket(two_datasets):
    dataset = TrainDataset(two_datasets, seed=1)
    sampler = BucketBatchSampler(two_datasets, seed=1)
    bucket_of = {image.key: image.plan.bucket for image in two_datasets.images}
    for batch in BatchLoader(dataset, sampler, threads=0):
        (width, height) = {bucket_of[key] for key in batch.keys}.pop()
        assert batch.pixels.shape == (len(batch.keys), 3, height, width)
        assert batch.pixels.abs().max() <= 1 and batch.latents is None
        assert batch.loss_weight.tolist() == [1.0] * len(batch.keys)
        assert len(set(batch.seeds)) == len(batch.seeds) == len(batch.captions)


def test_a_sample_does_not_depend_on_order_rank_or_batch(two_datasets):
    first, second = TrainDataset(two_datasets, seed=5), TrainDataset(two_datasets, seed=5)
    request, elsewhere = SampleRequest(0, 2, 1, batch=3), SampleRequest(0, 2, 1, batch=7)
    second[SampleRequest(4, 0, 0)]
    one, other = first[request], second[elsewhere]
    assert (one.seed, one.caption, one.key) == (other.seed, other.caption, other.key)
    assert torch.equal(one.pixels, other.pixels)


def test_seeds_differ_by_seed_epoch_picture_and_repeat(two_datasets):
    seeds = {
        TrainDataset(two_datasets, seed=seed)[SampleRequest(index, epoch, repeat)].seed
        for seed in (1, 2)
        for index in (0, 1)
        for epoch in (0, 1)
        for repeat in (0, 1)
    }
    assert len(seeds) == 16


def test_about_half_of_the_repeats_are_flipped_where_asked_for(two_datasets):
    dataset = TrainDataset(two_datasets, seed=1)
    flips = [dataset.is_flipped(SampleRequest(0, 0, repeat)) for repeat in range(400)]
    assert 150 < sum(flips) < 250
    assert not any(dataset.is_flipped(SampleRequest(12, 0, repeat)) for repeat in range(50))
    plain = dataset[SampleRequest(0, 0, flips.index(False))].pixels
    assert torch.equal(dataset[SampleRequest(0, 0, flips.index(True))].pixels, plain.flip(-1))


def test_repeats_of_a_picture_get_captions_of_their_own(tmp_path):
    folder = folder_of(tmp_path / "set", [SQUARE])
    catalogue = catalogue_of(folder, subset="shuffle_caption = true\nkeep_tokens = 1")
    dataset = TrainDataset(catalogue, seed=1)
    captions = {dataset.caption_of(SampleRequest(0, 0, repeat)) for repeat in range(60)}
    assert len(captions) == 6 and all(caption.startswith("tag0, ") for caption in captions)


def test_token_warmup_follows_the_steps_of_the_run(tmp_path):
    folder = folder_of(tmp_path / "set", [SQUARE] * 4)
    catalogue = catalogue_of(folder, subset="token_warmup_step = 0.5\nnum_repeats = 2")
    # 8 batches and 4 steps per epoch, 2 epochs, all 4 tags after 4 steps
    dataset = TrainDataset(catalogue, seed=1, max_train_steps=8, steps_per_epoch=4)
    requests = [SampleRequest(0, epoch, 0, batch) for epoch in (0, 1) for batch in range(8)]
    lengths = [dataset.caption_of(request).count(",") + 1 for request in requests]
    assert lengths == [1, 1, 1, 1, 2, 2, 3, 3] + [4] * 8


@pytest.mark.parametrize("to_disk", [False, True])
def test_cached_samples_equal_encoding_on_the_fly(two_datasets, to_disk):
    plain = TrainDataset(two_datasets, seed=1)
    sampler = BucketBatchSampler(two_datasets, seed=1)
    requests = [request for batch in sampler for request in batch]
    vae = ShrinkingEncoder()
    latents = cache_latents(two_datasets, vae, Storing(to_disk=to_disk, batch_size=2))
    cached = TrainDataset(two_datasets, seed=1, latents=latents)
    for request in requests:
        expected, sample = plain[request], cached[request]
        assert sample.pixels is None and sample.seed == expected.seed
        assert torch.equal(sample.latents, vae.encode(expected.pixels[None])[0])
