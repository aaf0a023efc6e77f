"""Where a run keeps weights and activations: from its options to its model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from library.errors import Problem
from library.memory import four_bits_trial
from library.memory.replay import CudaRecorder, Recorder
from library.memory.swapping import BUFFERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from library.settings.flags.loop import LoopOptions
    from library.settings.flags.precision import PrecisionOptions
    from networks.trained import Trained


@runtime_checkable
class SavesMemory(Protocol):
    """What a family's model offers, before its first forward or between two steps.

    Its class must have each name: from Python 3.12 on isinstance does not see a module's submodules.
    """

    @property
    def num_blocks(self) -> int: ...

    def linears_to_store(self, *, llm_adapter: bool) -> Mapping[str, nn.Linear]: ...

    def quantise(self, form: str, device: torch.device, *, llm_adapter: bool) -> None: ...

    def enable_gradient_checkpointing(
        self, cpu_offload: bool = False, *, mode: str = "block", every: int = 1
    ) -> None: ...

    def enable_block_swap(self, blocks: int, device: torch.device | str) -> None: ...

    def lay_side_by_side(self) -> None: ...

    def record_passes(
        self, trained: Iterable[Tensor], recorder: Callable[[], Recorder], *,
        state: Callable[[], Hashable] = ..., around: Callable[[], AbstractContextManager[None]] = ...,
    ) -> None: ...  # fmt: skip


def mode_problems(loop: LoopOptions, model: SavesMemory) -> list[Problem]:
    """Options that ask for what a model of so many blocks cannot do."""
    every, count = loop.checkpoint_every_n, model.num_blocks
    if not loop.checkpoints or every <= count:
        return []
    message = f"no block would be checkpointed: this model has {count}. Use {count} at most."
    return [Problem(message, f"checkpoint_every_n = {every}")]


def store_weights(
    precision: PrecisionOptions, model: SavesMemory, device: torch.device
) -> list[str]:
    """Let the model hold its frozen weights in the form of the options; lines for the log."""
    form = precision.stored_form
    if form is None:
        return []
    if form == "nf4":
        four_bits_trial.declare_operators()
    whole = not precision.stores_unet_only
    model.quantise(form, device, llm_adapter=whole)
    where = "the blocks and the LLM adapter" if whole else "the blocks"
    bits, share = (4, "64 values") if form == "nf4" else (8, "row")
    how = f"stored in {bits} bits, with a scale for each {share}"
    lines = [f"{form}: frozen matrices of {where} are {how}"]
    return lines + ["int8_compute: their products are computed in int8"] * (form == "int8_rotated")


def storage_problems(precision: PrecisionOptions, device: torch.device) -> list[Problem]:
    """Why weights cannot be stored here in the form of the options."""
    reason = four_bits_trial.why_not(device) if precision.nf4_base else None
    return [Problem(reason, "nf4_base = true")] if reason else []


def enable_modes(loop: LoopOptions, model: SavesMemory, device: torch.device) -> list[str]:
    """Ask the model for what the options say; lines for the log. Swapped or not, it is on `device`.

    Until its blocks are swapped it may lie in RAM, and how inputs leave for RAM is up to where it computes.
    In the end matrices that see one input lie side by side.
    """
    lines: list[str] = []
    if loop.blocks_to_swap:
        count = min(loop.blocks_to_swap, model.num_blocks)
        model.enable_block_swap(count, device)
        lines = swap_lines(loop.blocks_to_swap, count)
    if loop.recompute == "cheap":
        model.enable_gradient_checkpointing(mode="cheap")
    if loop.checkpoints:
        every = loop.checkpoint_every_n
        model.enable_gradient_checkpointing(cpu_offload=loop.offloads, every=every)
    model.lay_side_by_side()
    return lines


def record_passes(
    precision: PrecisionOptions, model: nn.Module, trained: Trained, device: torch.device
) -> list[str]:
    """Have the model's passes recorded, if that is asked for; lines for the log."""
    if not precision.cuda_graphs:
        return []
    if device.type != "cuda":
        return [f"cuda_graphs: without effect, there are none on {device.type}"]
    assert isinstance(model, SavesMemory), "every family's model does"
    model.record_passes(
        trained.get_trainable_params(), CudaRecorder,
        state=lambda: trained.multiplier, around=trained.within_pass,
    )  # fmt: skip
    return ["cuda_graphs: a size's second step is recorded, the steps after that start it as a whole"]


def recording_problems(precision: PrecisionOptions, trained: Trained) -> list[Problem]:
    """Why steps of what is trained cannot be recorded."""
    reason = trained.unrecordable() if precision.cuda_graphs else None
    if reason is None:
        return []
    message = f"cannot be here: {reason}. Leave it out."
    return [Problem(message, "cuda_graphs = true")]


def acting_modes(loop: LoopOptions) -> tuple[str, ...]:
    """The memory options that act, as they are written."""
    every = loop.checkpoint_every_n if loop.checkpoints else 0
    checkpointing = "cpu_offload_checkpointing" if loop.offloads else "gradient_checkpointing"
    acts = {
        checkpointing: every > 0,
        f"checkpoint_every_n = {every}": every > 1,
        'recompute = "cheap"': loop.recompute == "cheap" and every != 1,
        f"blocks_to_swap = {loop.blocks_to_swap}": bool(loop.blocks_to_swap),
    }
    return tuple(text for text, is_so in acts.items() if is_so)


def describe_modes(loop: LoopOptions) -> str:
    return ", ".join(acting_modes(loop)) or "no memory option"


def swap_lines(asked: int, count: int) -> list[str]:
    """What is told of swapping, when `count` blocks of `asked` are there."""
    at_once = min(BUFFERS, count)
    lines = [f"blocks_to_swap: {count} blocks wait in RAM, {at_once} at a time are on the device"]
    if count < asked:
        lines.append(f"blocks_to_swap = {asked}: this model has {count} blocks, all are swapped")
    if count <= BUFFERS:
        lines.append(f"blocks_to_swap up to {BUFFERS} saves no memory: so many have room at once")
    return lines
