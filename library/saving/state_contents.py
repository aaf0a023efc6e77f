"""What a state keeps of a training in progress, and putting it back so that it goes on to the bit.

Restored are the tensors as they were, whatever an optimizer's own loading makes of their types. The
learning rates are those of the resumed run: its flags may have changed them, or its length.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from library.data.data_types import RunPosition
from library.errors import Problem, ResumeError
from library.training.random_states import random_states, restore_random_states
from library.training.schedulers import count_as_done

if TYPE_CHECKING:
    from library.saving.state_folder import SavedState
    from library.settings.flags.resume import ResumeOptions
    from library.train_util import StepPlan
    from library.training.weight_average import WeightAverage
    from library.watching.evaluation import Evaluation
    from library.watching.picture_ledger import PictureLedger
    from library.watching.progress import RunProgress
    from networks.trained import Trained

logger = logging.getLogger(__name__)

QUANTISED = "__bnb_optimizer_quant_state__"  # where bitsandbytes nests what must not be cast


@dataclass
class TrainingParts:
    """The objects of a run that change from step to step.

    optimizer: torch's, without a wrapper; arguments: what it was made with, key=value
    average:   of what the optimizer changes, if one is kept
    """

    network: Trained
    optimizer: Optimizer
    scheduler: lr_scheduler.LRScheduler
    scaler: Any | None
    progress: RunProgress
    ledger: PictureLedger
    arguments: tuple[str, ...] = ()
    average: WeightAverage | None = None
    evaluation: Evaluation | None = None

    def factors(self) -> dict[str, Tensor]:
        """What was trained or loaded, by the model's names, on the CPU."""
        own = self.network.tensors()
        return {name: own[name].detach().to("cpu").contiguous() for name in self.network.kept()}

    def training(self) -> dict[str, Any]:
        """Optimizer, schedule and scaler, as plain values and tensors on the CPU."""
        kept = {
            "optimizer": {
                "class": class_name(self.optimizer),
                "arguments": list(self.arguments),
                "state": self.optimizer.state_dict(),
            },
            "schedule": {
                "class": class_name(self.scheduler),
                "state": self.scheduler.state_dict(),
            },
            "scaler": self.scaler.state_dict() if self.scaler else {},
            **({"average": self.average.kept()} if self.average else {}),
        }
        return on_cpu(kept)

    def rank(self) -> dict[str, Tensor]:
        """What differs between processes: random generators, and what the logs remember."""
        history = self.progress.monitor.history.samples if self.progress.monitor else ()
        return {
            **random_states(),
            "log.recent": torch.tensor(list(self.progress.logs.recent), dtype=torch.float64),
            "log.samples": torch.tensor(list(history), dtype=torch.float64).reshape(-1, 2),
            **({"evaluations": self.evaluation.kept()} if self.evaluation else {}),
            "ledger.sums": self.ledger.kept(),
            "ledger.pictures": torch.tensor(self.ledger.fingerprint),
        }

    def restore(
        self,
        state: SavedState,
        rank: int,
        *,
        may_start_afresh: bool = False,
        with_schedule: bool = True,
    ) -> None:
        """Put a state's contents back. Raises ResumeError when something does not fit.

        may_start_afresh: an optimizer that is not the saved one stays as it was made
        with_schedule:    bring the schedule to where the saved one stood
        """
        self.restore_factors(state.factors(), str(state.folder))
        training = state.training()
        saved = training["optimizer"]
        if may_start_afresh and not fits(self.optimizer, saved):
            logger.warning("the optimizer starts afresh: its state is not taken over.")
        else:
            restore_optimizer(self.optimizer, saved, self.arguments)
        if with_schedule:
            restore_schedule(self.scheduler, training["schedule"], state.position.step)
        if self.scaler and training["scaler"]:
            self.scaler.load_state_dict(training["scaler"])
        self.restore_average(training.get("average"))
        self.restore_rank(state.rank(rank))
        self.restore_ledger(state, rank)
        first = state.rank(0)  # also for a process that was not there before: all have found the same
        if self.evaluation and "evaluations" in first:
            self.evaluation.take_back(first["evaluations"])

    def restore_rank(self, kept: Mapping[str, Tensor]) -> None:
        """The opposite of `rank`; a process that was not there before keeps what it has."""
        if not kept:
            return
        self.progress.logs.recent.extend(kept["log.recent"].tolist())
        if self.progress.monitor:
            samples = map(tuple, kept["log.samples"].tolist())
            self.progress.monitor.history.samples.extend(samples)
        restore_random_states(kept)

    def restore_average(self, kept: Mapping[str, Any] | None) -> None:
        if self.average and kept and self.average.fits(kept):
            self.average.take_back(kept)
        elif self.average:
            logger.warning(
                "the average of the weights (EMA) begins here: the state has none of these tensors."
            )

    def restore_ledger(self, state: SavedState, rank: int) -> None:
        """This process's own; the first takes those of processes that are there no more too."""
        from accelerate.state import PartialState

        gone = range(PartialState().num_processes, state.run["num_processes"]) if rank == 0 else ()
        for kept in map(state.rank, (rank, *gone)):
            if not kept:
                continue
            if kept.get("ledger.pictures") == self.ledger.fingerprint:
                self.ledger.take(kept["ledger.sums"])
            else:
                logger.warning("the ledger of the pictures begins here: the state has none of them.")

    @torch.no_grad()
    def restore_factors(self, saved: Mapping[str, Tensor], source: str) -> None:
        """Copy factors in place; what is missing, unknown or of another shape is one error."""
        own, needed = self.network.tensors(), set(self.network.needed())
        problems = [Problem("is not in the state.", name) for name in sorted(needed - set(saved))]
        for name, value in saved.items():
            if name not in own:
                problems.append(Problem("is in the state; this run has no such tensor.", name))
            elif (found := tuple(value.shape)) != (shape := tuple(own[name].shape)):
                problems.append(Problem(f"has shape {found}, expected {shape}.", name))
        if problems:
            raise ResumeError(problems, source=f"adapters of {source}")
        for name, value in saved.items():
            own[name].copy_(value)
        self.network.took(saved.keys())


def class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def on_cpu(value: Any) -> Any:
    """The same lists, tuples and dictionaries with every tensor copied to the CPU, nothing shared."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).as_subclass(Tensor)
    if isinstance(value, Mapping):
        return {key: on_cpu(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(on_cpu(each) for each in value)
    return value.item() if isinstance(value, numpy.generic) else value


def fits(optimizer: Optimizer, saved: Mapping[str, Any]) -> bool:
    """Whether a saved state is of this class of optimizer, over groups of the same sizes."""
    sizes = [len(group["params"]) for group in saved["state"]["param_groups"]]
    own = [len(group["params"]) for group in optimizer.param_groups]
    return saved["class"] == class_name(optimizer) and sizes == own


def restore_optimizer(
    optimizer: Optimizer, saved: Mapping[str, Any], arguments: Sequence[str] = ()
) -> None:
    """Load a saved state; afterwards it is the optimizer's own, bit for bit.

    arguments: of this run's optimizer, key=value; those that differ from the saved run's count, and so
    does what this run's schedule put into the groups.
    Raises ResumeError when class or groups differ, or when the optimizer does not keep its state.
    """
    name = class_name(optimizer)
    if not fits(optimizer, saved):
        raise ResumeError(
            f"the state is of {saved['class']}, this run trains with {name}, or its tensors have "
            f"other groups of learning rates. Set them as they were; or "
            f"--resume_ignore_optimizer_mismatch starts the optimizer afresh."
        )
    state = saved["state"]
    made = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(on_cpu(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, kept in state["state"].items():
        own = optimizer.state[parameters[index]]
        for key, value in {**kept, **kept.get(QUANTISED, {})}.items():
            loaded = own.get(key)
            if isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                own[key] = value.to(loaded.device)  # torch casts to the parameter's type
    if not identical(on_cpu(optimizer.state_dict()), state):
        raise ResumeError(
            f"{name} does not take its own state back unchanged, so that this run cannot go on "
            f"exactly. Use another optimizer."
        )
    for group, fresh in zip(optimizer.param_groups, made):
        of_schedule = fresh.keys() - optimizer.defaults.keys() - {"params"}
        group.update({key: fresh[key] for key in of_schedule})
    if set(arguments) != set(saved["arguments"]):
        named = {text.partition("=")[0].strip() for text in (*arguments, *saved["arguments"])}
        for group, fresh in zip(optimizer.param_groups, made):
            group.update({key: fresh[key] for key in named if key in fresh})


def identical(value: Any, other: Any) -> bool:
    """Whether nested values are equal, tensors in type and bits."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        if (value.dtype, value.shape) != (other.dtype, other.shape):
            return False
        flat = value.contiguous().reshape(-1).view(torch.uint8)
        return torch.equal(flat, other.contiguous().reshape(-1).view(torch.uint8))
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(identical(value[k], other[k]) for k in value)
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(identical, value, other))
    return type(value) is type(other) and (value == other or repr(value) == repr(other))


def restore_schedule(
    scheduler: lr_scheduler.LRScheduler, saved: Mapping[str, Any], steps: int
) -> None:
    """Bring a fresh schedule, and the rates in its optimizer, to where the saved one stood.

    steps: updates done, which a schedule of another class than the saved one takes from its beginning.
    The base rates are the fresh schedule's; where the rate is a function of the step it is computed
    anew, so that another length of the run counts; elsewhere the saved rate changes as its base did.
    """
    if saved["class"] != class_name(scheduler):
        count_as_done(scheduler, steps)
        return
    base = list(scheduler.base_lrs)
    state = dict(saved["state"])
    before = state.get("base_lrs", base)
    groups = scheduler.optimizer.param_groups
    scheduler.load_state_dict({**state, "base_lrs": base})
    if type(scheduler) is lr_scheduler.LambdaLR:
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        rates = [rate * factor for rate, factor in zip(base, factors)]
    else:
        kept = [group["lr"] for group in groups]
        rates = [
            rate if not old or new == old else rate * (new / old)
            for rate, new, old in zip(kept, base, before)
        ]
    for group, rate, new in zip(groups, rates, base):
        group["lr"] = rate
        if "initial_lr" in group:
            group["initial_lr"] = new
    scheduler._last_lr = list(rates)


def first_position(
    options: ResumeOptions,
    state: SavedState | None,
    plan: StepPlan,
    *,
    accumulation: int,
    processes: int,
) -> RunPosition:
    """Where the run begins: at 0, at a state's position, or where the flags say."""
    position = moved(state, processes, plan) if state else RunPosition()
    if not options.given_step:
        return position
    step = options.initial_step
    if step is None:
        step = ((options.initial_epoch or 1) - 1) * plan.steps_per_epoch
    if state:
        logger.warning("starting at step %d; the state is of step %d.", step, position.step)
    else:
        logger.info("starting at step %d, where the schedule stands too.", step)
    epoch, window = divmod(step, plan.steps_per_epoch)
    batch = window * accumulation if options.skip_until_initial_step else 0
    return replace(position, step=step, epoch=epoch, batch_in_epoch=batch)


def moved(state: SavedState, processes: int, plan: StepPlan) -> RunPosition:
    """A state's position; batches counted anew where the number of processes differs."""
    before, position = state.run["num_processes"], state.position
    batches = position.batch_in_epoch * before // processes
    if batches > plan.batches_per_epoch:
        logger.warning(
            "the state stands at batch %d of its epoch, and an epoch has %d now: it counts as done.",
            batches,
            plan.batches_per_epoch,
        )
        batches = plan.batches_per_epoch
    return replace(position, batch_in_epoch=batches)
