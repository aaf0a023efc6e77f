"""What the GPU benchmark tells of deterministic training: each memory mode twice, and beside plain training.

In a process of its own, since cuBLAS has to be told before it begins. Memory that nothing was written to is NaN
there, so that what is read before it has arrived is seen. Models that train themselves are among the modes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

from library.anima_doctor.anima_step import (
    ALL,
    CHECKPOINT,
    MODES,
    AnimaStep,
    Full,
    Saving,
    make_model,
)
from library.device_utils import clean_memory_on_device
from library.settings.flags.loop import LoopOptions
from library.settings.flags.precision import PrecisionOptions
from library.training.single_updates import SingleUpdates
from library.training.swapped_updates import SwappedUpdates
from networks.trained import Trained
from tools.bench.gpu_parts import (
    ALL_MODES,
    Plan,
    guarded,
    made_in,
    prepared_loss,
    settings_of,
    step_on,
)
from tools.bench.measuring import Figures

PLAIN = Saving()
STEPS = 3
FURTHEST = 1e-2  # |loss - loss| / loss on another card


@dataclass(frozen=True)
class Trial:
    """full: the model itself trains, else adapters; folds: texts' zeros are counted; like: the trial that has
    the same bits, "" if none has"""

    saving: Saving = PLAIN
    full: Full | None = None
    folds: bool = False
    like: str = "none"


OFFLOAD = LoopOptions(cpu_offload_checkpointing=True, blocks_to_swap=ALL)
EXACT = PrecisionOptions()
FUSED = Full(single=True, fused=True)
TRIALS = {
    **{
        name: Trial(saving, like="none" if saving.precision == EXACT else "")
        for name, saving in ALL_MODES.items()
        if not saving.precision.compile  # which takes longer than all the others
    },
    "offload_swap_all": Trial(Saving(OFFLOAD)),
    "counted_zeros": Trial(folds=True, like=""),
    "model": Trial(full=Full(), like=""),
    "model_swap_all": Trial(MODES["swap_all"], Full(), like="model"),
    "model_checkpoint_swap_all": Trial(MODES["checkpoint_swap_all"], Full(), like="model"),
    "model_fused": Trial(Saving(CHECKPOINT), FUSED, like=""),
    "model_fused_swap_all": Trial(MODES["checkpoint_swap_all"], FUSED, like="model_fused"),
}
QUICK = ("none", "swap_all", "model", "model_swap_all")
OTHER_CARD = ("none", "swap_all", "counted_zeros", "model_swap_all")
"""What is tried on a second card, while the first is the current one."""


class Outcome(NamedTuple):
    """losses: of each step; digest: of all that trains, afterwards"""

    losses: list[float]
    digest: str


Run = Callable[[Plan, Trial], Outcome]


def repeats(plan: Plan) -> Iterator[Figures]:
    found: dict[str, Outcome] = {}
    with beside(plan) as run:
        for name in QUICK if plan.quick else TRIALS:
            yield guarded(plan, {"mode": name}, partial(repeated, plan, run, name, found))
        if plan.device.type == "cuda" and torch.cuda.device_count() > 1:
            other = replace(plan, device=torch.device("cuda", 1))
            for name in OTHER_CARD:
                names = {"mode": f"{name}, on the second card"}
                yield guarded(plan, names, partial(moved, other, run, name, found))


def repeated(plan: Plan, run: Run, name: str, found: dict[str, Outcome]) -> dict[str, object]:
    trial = TRIALS[name]
    first, again = (run(plan, trial) for _ in range(2))
    found[name] = first
    others = {"twice": again}
    if trial.like not in ("", name):
        others["like"] = of(trial.like, found)
    told = {what: "same bits" if first == one else apart(first, one) for what, one in others.items()}
    figures = {"steps": STEPS, "last loss": f"{first.losses[-1]:.5f}", "as": trial.like, **told}
    return {**figures, "result": "ok" if set(told.values()) == {"same bits"} else "TOO FAR"}


def moved(plan: Plan, run: Run, name: str, found: dict[str, Outcome]) -> dict[str, object]:
    """On another card, which may be of another kind, to be compared with the first."""
    outcome, expected = run(plan, TRIALS[name]), of(name, found)
    far = apart(outcome, expected)
    result = "ok" if far <= FURTHEST * expected.losses[0] else "TOO FAR"
    return {"steps": STEPS, "last loss": f"{outcome.losses[-1]:.5f}", "apart": far, "result": result}


def of(name: str, found: dict[str, Outcome]) -> Outcome:
    if name not in found:
        raise RuntimeError(f"{name}, to be compared with, did not run")
    return found[name]


def apart(one: Outcome, other: Outcome) -> float:
    """The furthest of their losses; 0 where only what was trained differs."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses))


@contextmanager
def beside(plan: Plan) -> Iterator[Run]:
    """What makes outcomes, deterministically; beside this process where there is a card."""
    if plan.device.type != "cuda":
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            yield outcome
        finally:
            torch.use_deterministic_algorithms(before)
        return
    with ProcessPoolExecutor(1, get_context("spawn"), be_deterministic) as pool:
        yield lambda plan, trial: pool.submit(outcome, plan, trial).result()


def be_deterministic() -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)


def outcome(plan: Plan, trial: Trial) -> Outcome:
    """Of a few steps of few blocks; the same draws and weights each time. Memory is given back."""
    try:
        return trained_on(plan, trial)
    finally:
        clean_memory_on_device(plan.device)


def trained_on(plan: Plan, trial: Trial) -> Outcome:
    pixels = min(256, plan.pixels[0])
    settings = replace(
        settings_of(plan, "lora", "none", pixels), memory=trial.saving, full=trial.full,
        folds_text=trial.folds, params=replace(plan.params, num_blocks=min(3, plan.params.num_blocks)),
    )  # fmt: skip
    if trial.full is None:
        step, work = step_on(plan, settings)
        trained = step.network
    else:
        trained, work = model_on(plan, settings, trial.full)
    losses = torch.stack([work() for _ in range(STEPS)]).tolist()
    if trained.swap is not None:
        trained.swap.settle()
    digest = hashlib.sha256()
    for tensor in trained.get_trainable_params():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return Outcome(losses, digest.hexdigest())


def model_on(
    plan: Plan, settings: AnimaStep, full: Full
) -> tuple[Trained, Callable[[], Tensor]]:
    """A model that trains itself, its masters in float32, and what runs a step of it with its update."""
    few = replace(settings.params.llm_adapter, vocab=16, num_blocks=1)
    settings = replace(settings, params=replace(settings.params, llm_adapter=few))
    torch.manual_seed(0)
    with made_in(torch.float32):
        model, trained = make_model(settings, plan.device)
    loss_now = prepared_loss(settings, model, trained)
    groups, _ = trained.prepare_optimizer_params(None, None, 1e-3)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    single: SingleUpdates | None = None
    if trained.swap is not None:
        pairs = trained.pairs()
        single = SwappedUpdates(optimizer, pairs, trained.swap, rounds=False, is_fused=full.fused)
    elif full.fused:
        single = SingleUpdates(optimizer, trained.pairs(), rounds=False)
        single.fuse()

    def work() -> Tensor:
        if single is not None:
            single.begin(0, 0)
        loss = loss_now()
        loss.backward()
        if single is not None:
            single.step(single.norm(), math.inf)
        else:
            trained.gather_gradients()
            optimizer.step()
            optimizer.zero_grad()
            trained.show()
        return loss.detach()

    return trained, work
