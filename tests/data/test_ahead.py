"""What is prepared ahead of a step is what the step would make, and the step waits until it is there."""

import threading
from contextlib import contextmanager

import pytest
import torch

from library.data.ahead import Ahead
from library.data.batch_loader import BatchLoader
from library.data.bucket_sampler import BucketBatchSampler
from library.data.datasets import TrainDataset
from library.train_util import make_loader
from library.training.flow_matching import NoiseSettings, Noising, SigmaSampling
from tests.helpers.dataset_files import catalogue_of, folder_of
from tests.helpers.running import config_files, make_trainer

CPU = torch.device("cpu")
NOISING = Noising(
    SigmaSampling(method="flux_shift"),
    NoiseSettings(offset=0.1, random_offset=True, perturbation=0.2, random_perturbation=True),
)


@pytest.fixture
def dataset(tmp_path):
    return TrainDataset(catalogue_of(folder_of(tmp_path / "set", [(64, 64)] * 5)), seed=1)


def draw_of(batch):
    return NOISING.draw_ahead((len(batch.keys), 4, 8, 8), batch.seeds)


def loader_of(dataset, ahead, threads=1):
    sampler = BucketBatchSampler(dataset.catalogue, seed=1)
    return BatchLoader(dataset, sampler, threads=threads, ahead=ahead)


def threads_left():
    return [each for each in threading.enumerate() if each.name.startswith("batches")]


@pytest.mark.parametrize("threads", [0, 1])
def test_draws_are_those_of_the_step_and_no_generator_of_the_run_moves(dataset, threads):
    clean, state = torch.linspace(-1, 1, 256).view(1, 4, 8, 8), torch.get_rng_state()
    for batch in loader_of(dataset, Ahead(CPU, draw_of, tuple), threads):
        ahead = NOISING.draw(clean, batch.seeds, drawn=batch.drawn)
        now = NOISING.draw(clean, batch.seeds)
        for name in ("latents", "velocity", "sigma"):
            assert torch.equal(getattr(ahead, name), getattr(now, name))
        given = NOISING.draw(clean, batch.seeds, torch.tensor([0.25]), batch.drawn)
        assert torch.equal(given.velocity, now.velocity) and given.sigma == 0.25
    assert torch.equal(torch.get_rng_state(), state) and not threads_left()


def test_what_drawing_raises_is_raised_in_its_turn_and_ends_the_thread(dataset):
    asked = []

    def fail(batch):
        asked.append(batch)
        if len(asked) == 3:
            raise ValueError("no such draw")
        return draw_of(batch)

    taken = []
    with pytest.raises(ValueError, match="no such draw"):
        taken.extend(loader_of(dataset, Ahead(CPU, fail, tuple)))
    assert len(taken) == 2 and not threads_left()


class WatchedLane:
    """A lane of a device that copies beside what it computes; notes who asks it for what."""

    is_beside = True

    def __init__(self):
        self.done, self.received = [], []

    @contextmanager
    def beside(self):
        self.done.append(("sent", threading.current_thread() is threading.main_thread()))
        yield

    def reached(self):
        return len(self.done)

    def wait(self, mark):
        self.done.append(("waited", mark))

    def receive(self, tensors):
        self.received.append([tensor.data_ptr() for tensor in tensors])


@pytest.fixture(scope="module")
def trainer(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    (folder / "pictures").symlink_to(demo / "pictures")
    settings = {"noise_offset": 0.1, "ip_noise_gamma": 0.1}
    trainer = make_trainer(config_files(demo, folder, settings))
    trainer.prepare()
    return trainer


def batches_of(trainer, ahead=None):
    trainer.sampler.set_epoch(0)
    return make_loader(trainer.dataset, trainer.sampler, trainer.cfg.data, ahead)


def test_a_step_on_what_was_prepared_is_the_same_to_the_bit(trainer):
    pairs = list(zip(batches_of(trainer), batches_of(trainer, trainer.ahead), strict=True))
    assert len(pairs) > 2
    for plain, prepared in pairs:
        assert prepared.drawn is not None and prepared.conditioning is not None
        one, other = map(trainer.process_batch, (plain, trainer.ahead.take(prepared)))
        assert torch.equal(one.loss, other.loss) and torch.equal(one.sigma, other.sigma)


def test_a_batch_that_was_sent_is_waited_for_and_all_of_it_is_kept(trainer):
    """It is sent on the loader's thread; memory that the lane allotted lives until the step is done."""
    lane = WatchedLane()
    ahead = Ahead(CPU, trainer.ahead.draw, trainer.ahead.collate, lane)
    batch = next(iter(batches_of(trainer, ahead)))
    assert ("sent", False) in lane.done and ("sent", True) not in lane.done
    taken = ahead.take(batch)
    assert lane.done[-1] == ("waited", batch.sent) and taken.sent is None
    context = vars(taken.conditioning).values()
    kept = [
        taken.latents,
        taken.loss_weight,
        taken.drawn.noise,
        taken.drawn.sigma,
        taken.drawn.extra,
    ]
    tensors = [each for each in (*kept, *context) if each is not None]
    assert {each.data_ptr() for each in tensors} == set(lane.received[0])


@pytest.mark.gpu
def test_on_a_gpu_the_same_numbers_arrive(trainer):
    device = torch.device("cuda")
    ahead = Ahead(device, trainer.ahead.draw, trainer.ahead.collate)
    for plain, sent in zip(batches_of(trainer), batches_of(trainer, ahead), strict=True):
        assert sent.sent is not None
        taken, drawn = ahead.take(sent), trainer.ahead.draw(plain)
        assert taken.latents.is_cuda and torch.equal(taken.latents.cpu(), plain.latents)
        assert torch.equal(taken.drawn.noise.cpu(), drawn.noise)
