"""What the GPU benchmark looks at: parity, attention kernels, loss curves of memory modes, steps.

Every part yields rows of figures as they come; what fails is a row with its error.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from library.anima_backend.modelling import kernel_trial
from library.anima_backend.modelling.attention_probe import (
    REAL_ROWS,
    ROUNDS,
    Sizes,
    Trial,
    fastest,
    try_counting,
    try_kernel,
)
from library.anima_backend.modelling.dit import MIN_CONTEXT, Anima
from library.anima_backend.modelling.kernels import KERNELS
from library.anima_backend.modelling.params import PUBLISHED, DiTParams
from library.anima_doctor.anima_step import (
    MODES,
    SPEEDS,
    AnimaStep,
    as_read,
    count,
    loss_on,
    make_inputs,
    make_step,
)
from library.anima_models import load_anima_transformer, load_anima_vae
from library.memory.step_count import Step, StepCount
from library.settings.flags.flow import FlowOptions
from library.train_util import make_noising
from networks.trained import Trained
from tools.bench import gpu_kernels
from tools.bench.ledger import GIB, network_of
from tools.bench.measuring import Figures, relative_distance, seconds_of

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LIMITS = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.02}
"""Of the relative distance to the reference; in the halves three times what rounding gives on a CPU."""
STEP_MODES = (
    "none", "graphs", "compile", "compile_graphs", "cheap", "checkpoint", "checkpoint_graphs",
    "checkpoint_swap_all", "fp8_checkpoint", "nf4_checkpoint", "int8_compute",
)  # fmt: skip
ALL_MODES = {**MODES, **SPEEDS}
COUNTERS = 4  # processes that count steps while the card runs them
FULL = 0.92  # of the card's memory: with more, desktops and drivers get in the way
TINY = replace(
    PUBLISHED, model_dim=64, head_dim=32, text_dim=32, adaln_dim=8, mlp_dim=128, num_blocks=2,
    llm_adapter=replace(
        PUBLISHED.llm_adapter, vocab=16, source_dim=32, target_dim=32, model_dim=32, head_dim=16,
        mlp_dim=32, num_blocks=1,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is looked at. ends: when no further case is begun, on time.monotonic()'s clock."""

    device: torch.device
    tiny: bool
    quick: bool
    ends: float

    @property
    def params(self) -> DiTParams:
        return TINY if self.tiny else PUBLISHED

    @property
    def pixels(self) -> tuple[int, ...]:
        if self.tiny:
            return (64,)
        return (512,) if self.quick else (512, 1024)

    @property
    def rounds(self) -> int:
        return 3 if self.quick else ROUNDS

    @property
    def adapters(self) -> dict[str, str]:
        """Names of the ledger and what they are called."""
        return {"lora": "LoRA r16"} if self.quick else {"lora": "LoRA r16", "lokr": "LoKr f8"}


def guarded(
    plan: Plan, names: dict[str, str], work: Callable[[], dict[str, object]]
) -> dict[str, object]:
    """The figures of one case, or its error; memory is given back either way."""
    if time.monotonic() > plan.ends:
        return {**names, "result": "left out: the time is up"}
    try:
        return {**names, **work()}
    except Exception as error:  # noqa: BLE001  the page says it, and the others follow
        lines = str(error).strip().splitlines() or [""]
        return {**names, "result": f"failed: {type(error).__name__}: {lines[0][:200]}"}
    finally:
        if plan.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def parity(plan: Plan) -> Iterator[Figures]:
    """The networks against reference tensors, in each dtype."""
    vectors = load_file(GOLDEN / "vectors.safetensors")
    given = {name: tensor.to(plan.device) for name, tensor in vectors.items()}
    looks = {"DiT": dit_parity, "gradients": gradient_parity, "VAE": vae_parity}
    for dtype in DTYPES:
        for what, look in looks.items():
            if (what, dtype) == ("VAE", "float16"):
                continue  # outgrows float16; the trainer never asks for it
            names = {"part": what, "dtype": dtype}
            yield guarded(plan, names, partial(judged, look, plan, given, dtype))


def judged(
    look: Callable[[Plan, dict[str, Tensor], torch.dtype], float],
    plan: Plan, given: dict[str, Tensor], dtype: str,
) -> dict[str, object]:  # fmt: skip
    apart = look(plan, given, DTYPES[dtype])
    result = "ok" if apart < LIMITS[dtype] else "TOO FAR"
    return {"distance": f"{apart:.1e}", "limit": LIMITS[dtype], "result": result}


def dit_parity(plan: Plan, given: dict[str, Tensor], dtype: torch.dtype) -> float:
    file = GOLDEN / "anima_tiny_dit.safetensors"
    model = load_anima_transformer(file, device=plan.device, dtype=dtype)
    text = given["in.qwen_hidden.a"], given["in.t5_ids.a"]
    with torch.no_grad():
        velocity = model(given["in.x.sq"][:, :, 0], given["in.t.sq"], *text)
    return relative_distance(velocity, given["out.dit.sq"][:, :, 0])


def gradient_parity(plan: Plan, given: dict[str, Tensor], dtype: torch.dtype) -> float:
    """The furthest of the reference's gradients."""
    file = GOLDEN / "anima_tiny_dit.safetensors"
    model = load_anima_transformer(file, device=plan.device, dtype=dtype)
    start = "train.grad."
    names = [key.removeprefix(start) for key in given if key.startswith(start)]
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    text = given["in.qwen_hidden_padded"], given["in.t5_ids_padded"]
    masks = {each: given[f"in.{each}_padded"] for each in ("qwen_mask", "t5_mask")}
    velocity = model(given["fm.noisy"][:, :, 0], given["fm.sigma"], *text, **masks)
    (velocity.float() - given["fm.target"][:, :, 0]).square().mean().backward()
    apart = []
    for name in names:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        apart.append(relative_distance(gradient, given[start + name]))
    return max(apart)


def vae_parity(plan: Plan, given: dict[str, Tensor], dtype: torch.dtype) -> float:
    file = GOLDEN / "qwen_image_vae_tiny.safetensors"
    vae = load_anima_vae(file, device=plan.device, dtype=dtype)
    latents = given["out.vae.latent"][:, :, 0]
    with torch.no_grad():
        encoded, decoded = vae.encode(given["in.image"]), vae.decode(latents)
    found = [(encoded, latents), (decoded, given["out.vae.decoded"])]
    return max(relative_distance(a, b.reshape(a.shape)) for a, b in found)


def attention(plan: Plan) -> Iterator[Figures]:
    """Every kernel by the trial that a run makes at its start: all attentions of a step, and its choice."""
    params, tokens = plan.params, (plan.pixels[-1] // 16) ** 2
    heads = params.model_dim // params.head_dim
    sizes = Sizes(1, tokens, MIN_CONTEXT, heads, params.head_dim, params.num_blocks)
    for dtype in DTYPES:
        trials: list[Trial] = []
        for name in KERNELS:
            names = {"kernel": name, "dtype": dtype}
            yield guarded(plan, names, partial(attention_of, plan, name, dtype, sizes, trials))
        names = {"kernel": f"auto: {fastest(trials)}", "dtype": dtype}
        yield {**names, "result": f"as at {sizes}"}
        names = {"kernel": f"text of {REAL_ROWS} rows, zeros counted", "dtype": dtype}
        yield guarded(plan, names, partial(counting_of, plan, dtype, sizes))


def attention_of(
    plan: Plan, name: str, dtype: str, sizes: Sizes, trials: list[Trial]
) -> dict[str, object]:
    trials.append(try_kernel(name, sizes, DTYPES[dtype], plan.device, plan.rounds))
    return figures_of(trials[-1])


def counting_of(plan: Plan, dtype: str, sizes: Sizes) -> dict[str, object]:
    place, fused = (DTYPES[dtype], plan.device), has_kernels(plan.device)
    return figures_of(try_counting(sizes, *place, plan.rounds, fused=fused))


def figures_of(trial: Trial) -> dict[str, object]:
    if not trial.parts:
        return {"result": trial.why_not}
    *pictures, texts = (f"{1e3 * seconds:.2f}" for seconds in trial.parts)
    figures = {"pictures ms": "".join(pictures), "texts ms": texts, "distance": f"{trial.apart:.1e}"}
    return {**figures, "result": f"TOO FAR: {trial.why_not}" if trial.why_not else "ok"}


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New weights are of this dtype at once: twice the model would not fit a small card."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def settings_of(plan: Plan, adapter: str, mode: str, pixels: int) -> AnimaStep:
    network, arguments = network_of(adapter, 16, {})
    return AnimaStep(
        params=plan.params, network=network, arguments=arguments, memory=ALL_MODES[mode],
        size=(pixels // 8, pixels // 8), dtype=torch.bfloat16, fused=has_kernels(plan.device),
    )  # fmt: skip


def has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and kernel_trial.why_not(device, torch.bfloat16) is None


def step_on(plan: Plan, settings: AnimaStep) -> tuple[Step, Callable[[], Tensor]]:
    """A step with the same random weights at every call, and what runs it with its update."""
    torch.manual_seed(0)
    with made_in(settings.dtype):
        step = make_step(settings, plan.device)
    assert isinstance(step.model, Anima)
    loss_now = prepared_loss(settings, step.model, step.network)
    trained = step.network.get_trainable_params()
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def work() -> Tensor:
        loss = loss_now()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, work


def prepared_loss(settings: AnimaStep, model: Anima, network: Trained) -> Callable[[], Tensor]:
    """The step's loss with what the trainer makes beside or before it: the draw, and texts read once."""
    latents, texts = make_inputs(settings, model.device)
    noisy = make_noising(FlowOptions()).draw(torch.randn_like(latents), range(len(latents)))
    text = as_read(settings, texts, model, network)
    return partial(loss_on, noisy, model, settings, text)


def kernels(plan: Plan) -> Iterator[Figures]:
    """The fused kernels against their plain forms, one by one and in whole steps."""

    def step(adapter: str, fused: bool, pixels: int) -> float:
        settings = settings_of(plan, adapter, "none", pixels)
        small = replace(plan.params, num_blocks=min(4, plan.params.num_blocks))
        _, work = step_on(plan, replace(settings, params=small, fused=fused))
        times = [seconds_of(work, plan.device) for _ in range(9)]
        return statistics.median(times[2:])

    params, sizes = plan.params, {}
    for pixels in plan.pixels:
        heads = params.model_dim // params.head_dim
        sizes[pixels] = kernel_trial.Sizes(1, pixels // 16, heads, params.head_dim)
    tries = partial(guarded, plan)
    yield from gpu_kernels.rows(plan.device, sizes, tries, step, quick=plan.quick)


def curves(plan: Plan) -> Iterator[Figures]:
    """The loss of each memory mode step by step, against plain training: true widths, few blocks."""
    small = replace(plan.params, num_blocks=min(4, plan.params.num_blocks))
    pixels, steps = min(256, plan.pixels[0]), 4 if plan.quick else 12
    expected: list[float] = []
    for mode, saving in ALL_MODES.items():
        if plan.quick and saving.precision.compile:
            continue  # which takes longer than all the others
        settings = replace(settings_of(plan, "lora", mode, pixels), params=small)
        yield guarded(plan, {"mode": mode}, partial(curve, plan, settings, steps, expected))


def curve(plan: Plan, settings: AnimaStep, steps: int, expected: list[float]) -> dict[str, object]:
    _, work = step_on(plan, settings)
    losses = torch.stack([work() for _ in range(steps)]).tolist()
    if settings.memory == MODES["none"]:
        expected += losses
    if not expected:
        raise RuntimeError("plain training, to be compared with, did not run")
    apart = max(abs(loss - other) for loss, other in zip(losses, expected))
    furthest = (5e-2 if settings.memory.precision.nf4_base else 1e-2) * expected[0]
    result = "same bits" if not apart else "ok" if apart < furthest else "TOO FAR"
    return {"steps": steps, "last loss": f"{losses[-1]:.5f}", "apart": apart, "result": result}


def steps(plan: Plan) -> Iterator[Figures]:
    """Time and memory of true-size steps, beside what the ledger counts."""
    modes = ("checkpoint", "none") if plan.quick else STEP_MODES
    cases = [
        ({"pixels": str(pixels), "adapter": title, "mode": mode}, settings_of(plan, adapter, mode, pixels))
        for pixels in plan.pixels
        for adapter, title in plan.adapters.items()
        for mode in modes
    ]
    with counting(plan, [settings for _, settings in cases]) as counts:
        for (names, settings), counted in zip(cases, counts):
            yield guarded(plan, names, partial(timed_step, plan, settings, counted))


@contextmanager
def counting(plan: Plan, steps: Sequence[AnimaStep]) -> Iterator[list[Callable[[], StepCount]]]:
    """What the ledger says of each step, found by other processes while the card runs the first."""
    if plan.tiny:
        yield [partial(count, step) for step in steps]
        return
    with ProcessPoolExecutor(COUNTERS, get_context("spawn")) as pool:
        yield [pool.submit(count, step).result for step in steps]
        pool.shutdown(cancel_futures=True)


def timed_step(
    plan: Plan, settings: AnimaStep, counted: Callable[[], StepCount]
) -> dict[str, object]:
    _, work = step_on(plan, settings)
    for _ in range(2):
        work()
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    times = [seconds_of(work, plan.device) for _ in range(3 if plan.quick else 7)]
    peak, result = "not measured", "ok"
    ledger = f"{counted().peak / GIB:.2f}"
    if plan.device.type == "cuda":
        found = torch.cuda.max_memory_reserved(plan.device)
        if found > FULL * torch.cuda.get_device_properties(plan.device).total_memory:
            result = "fills the card"
        if not settings.memory.precision.cuda_graphs:  # whose memory is reserved for good
            found = torch.cuda.max_memory_allocated(plan.device)
        peak = f"{found / GIB:.2f}"
    ms = round(1e3 * statistics.median(times), 1)
    return {"ms": ms, "peak GiB": peak, "ledger GiB": ledger, "result": result}
