"""What options come to: the objects a run is built from, as plain values that can be compared.

Each observer takes the checked options and returns what they made: draws, rates, files, names. Two
settings that give the same are the same to a run.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from library.anima_backend.modelling.dit import Anima
from library.anima_runtime import model_loading
from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.tokenizer_fetch import sources_of
from library.data.bucket_sampler import BucketBatchSampler
from library.data.data_types import SampleRequest
from library.data.dataset_config import DatasetGroupConfig
from library.data.datasets import TrainDataset
from library.data.scan import scan
from library.saving.checkpoints import Checkpoints, files_of_run
from library.saving.state_contents import first_position
from library.settings.flags.optimizer import sets_own_rate
from library.settings.run_config import TrainConfig
from library.train_util import StepPlan, make_noising
from library.training import losses
from library.training.optimizers import create_optimizer
from library.training.schedulers import create_scheduler
from networks.arguments import parse_network_args
from networks.loading import load_network_module, make_network
from tests.helpers.tiny import golden

STEPS = 12
SEEDS = range(16)


def plain(value: Any) -> Any:
    """Tensors as lists, so that results compare with ==."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def noise(train: TrainConfig, anima: AnimaConfig) -> Any:
    """Sigma, noisy latents and weight of sixteen samples."""
    noising = make_noising(train.flow)
    latents = torch.linspace(-1, 1, len(SEEDS) * 4 * 16).view(len(SEEDS), 4, 4, 4)
    noisy = noising.draw(latents, SEEDS)
    return plain((noisy.sigma, noisy.latents, noisy.velocity, noising.loss_weight(noisy.sigma)))


def loss(train: TrainConfig, anima: AnimaConfig) -> Any:
    error = torch.linspace(-3, 3, 40).view(4, 10)
    sigma = torch.tensor([0.1, 0.4, 0.6, 0.9])
    return plain(losses.elementwise_loss(error, torch.zeros(4, 10), sigma, train.loss))


def updates(train: TrainConfig, anima: AnimaConfig) -> Any:
    """Where a parameter is after each of twelve updates: optimizer, rate and schedule in one."""
    parameter = nn.Parameter(torch.ones(2, 2))
    rate = train.optimizer.learning_rate if train.network.unet_lr is None else train.network.unet_lr
    groups = [{"params": [parameter], "lr": rate}]
    optimizer = create_optimizer(train.optimizer, groups)
    scheduler = create_scheduler(train.schedule, optimizer, total_steps=STEPS)
    places = []
    gradient = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    for step in range(STEPS):
        parameter.grad = gradient.roll(step) * (1 + step % 3)
        optimizer.step()
        scheduler.step()
        places.append(parameter.detach().clone())
    return plain(places)


def length(train: TrainConfig, anima: AnimaConfig) -> StepPlan:
    """How long a run of six batches per epoch is."""
    return StepPlan.make(6, train.loop.gradient_accumulation_steps, train)


def start(train: TrainConfig, anima: AnimaConfig) -> Any:
    accumulation = train.loop.gradient_accumulation_steps
    plan = length(train, anima)
    return vars(first_position(
        train.resume, None, plan, accumulation=accumulation, processes=1
    ))  # fmt: skip


def saves(train: TrainConfig, anima: AnimaConfig) -> Any:
    """The files that are due, and how many files and states a run keeps."""
    plan = length(train, anima)
    checkpoints = Checkpoints(train.save, plan.epochs, train.resume)
    due = [checkpoints.due_at_step(step) for step in range(1, plan.total_steps + 1)]
    due += [checkpoints.due_after_epoch(epoch) for epoch in range(1, plan.epochs + 1)]
    return [*map(str, due), str(checkpoints.final_file()), files_of_run(checkpoints, plan)]


@cache
def tiny_params() -> Any:
    return model_loading.inspect_transformer(str(golden("anima_tiny_dit.safetensors")), None)[0]


def network(train: TrainConfig, anima: AnimaConfig) -> Any:
    """The adapters on the tiny model without memory: where, how large, at which rate, what is saved."""
    kwargs = {**parse_network_args(train.network.network_args), **anima.network_kwargs()}
    module = load_network_module(train.network.network_module)
    with torch.device("meta"):
        made = make_network(module, train.network, kwargs, Anima(tiny_params()))
    groups, names = made.prepare_optimizer_params(
        None, train.network.unet_lr, train.optimizer.learning_rate
    )
    adapters = [
        (p.path, p.frozen, {n: tuple(f.shape) for n, f in p.adapter.factors().items()},
         getattr(p.adapter, "alpha", None), str(getattr(p.adapter, "dropout", None)))
        for p in made.placements
    ]  # fmt: skip
    rates = [(name, group["lr"]) for name, group in zip(names, groups)]
    rates = [] if sets_own_rate(train.situation()) else rates
    return adapters, rates, made.settings.norm_export


def text(train: TrainConfig, anima: AnimaConfig) -> Any:
    return anima.qwen_max_length, anima.t5_max_length, anima.empty_caption, (
        anima.attention_backend, anima.folds_text)  # fmt: skip


def sources(train: TrainConfig, anima: AnimaConfig) -> Any:
    """Where tokenizers that are missing come from."""
    if not anima.auto_download_t5_tokenizer:
        return None
    return [sources_of(kind, anima) for kind in ("qwen", "t5")], anima.download_timeout


OBSERVERS: dict[str, Callable[[TrainConfig, AnimaConfig], Any]] = {
    "noise": noise,
    "loss": loss,
    "updates": updates,
    "length": length,
    "start": start,
    "saves": saves,
    "network": network,
    "text": text,
    "sources": sources,
}


def looks(pixels: Tensor) -> float:
    """A number that differs from picture to picture, mirrored ones included."""
    return (pixels.double() * torch.linspace(1, 2, pixels.shape[-1])).sum().item()


def pictures(train: TrainConfig, group: DatasetGroupConfig) -> Any:
    """Every sample of four epochs as it is trained on, the batches, and what is held out."""
    catalogue = scan(group)
    dataset = TrainDataset(
        catalogue, seed=1, max_train_steps=8, steps_per_epoch=2,
        prior_loss_weight=train.loss.prior_loss_weight,
    )  # fmt: skip
    indices = range(len(catalogue.images))
    requests = [
        SampleRequest(index, epoch, repeat)
        for index in indices
        for epoch in range(4)
        for repeat in range(catalogue.images[index].repeats)
    ]
    captions = [dataset.caption_of(request) for request in requests]
    samples = [dataset[SampleRequest(index, epoch, 0)] for index in indices for epoch in range(2)]
    seen = [
        (s.key, s.loss_weight, s.network_multiplier, tuple(s.pixels.shape), looks(s.pixels),
         s.loss_mask is not None and looks(s.loss_mask), s.sigma_offset)
        for s in samples
    ]  # fmt: skip
    batches = BucketBatchSampler(catalogue, seed=1).batches(0)
    held_out = [image.key for image in catalogue.validation().images]
    return plain([captions, seen, [len(batch) for batch in batches], held_out])
