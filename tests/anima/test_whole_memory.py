"""What a step of a model that trains itself needs: counted, against real tensors and against arithmetic."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from library.anima_backend.modelling.layers import Block
from library.anima_backend.modelling.params import PUBLISHED
from library.anima_doctor.anima_step import MODES, AnimaStep, Full, Saving, count, make_step
from library.anima_runtime.model_loading import parameter_count
from library.memory.cuda_kernels import as_on_cuda
from library.memory.step_count import count_step
from library.memory.swapping import BUFFERS
from library.settings.flags.loop import LoopOptions
from library.settings.flags.network import NetworkOptions
from library.training.parted_updates import MOST
from tests.helpers.running import forget_accelerate
from tests.helpers.whole import model_argv
from tools import doctor

ONE_BLOCK = replace(
    PUBLISHED, num_blocks=1, llm_adapter=replace(PUBLISHED.llm_adapter, num_blocks=1)
)  # true widths
FUSED = Full(single=True, fused=True)


def step(full: Full, trained=torch.float32, **more) -> AnimaStep:
    values = {"params": ONE_BLOCK, "size": (32, 32), "memory": MODES["checkpoint"], **more}
    return AnimaStep(network=NetworkOptions(), trained_dtype=trained, full=full, **values)


def test_masters_gradients_and_what_fusing_saves_are_as_arithmetic_has_them():
    four = replace(ONE_BLOCK, num_blocks=4)
    numbers = parameter_count(four)
    plain, fused = (count(step(full, params=four)) for full in (Full(), FUSED))
    for each in (plain, fused):
        assert each.weights == pytest.approx(2 * numbers, rel=1e-3)
        assert each.adapters == pytest.approx(4 * numbers, rel=1e-3)
        assert each.left == 0
    assert plain.gradients == pytest.approx(2 * numbers, rel=1e-3) and fused.gradients == 0
    assert plain.peak >= 10 * numbers  # weights, masters, and gradients as the update has them
    assert plain.peak - fused.peak > numbers


def test_of_masters_a_part_at_a_time_has_gradients_in_float32():
    four = replace(ONE_BLOCK, num_blocks=4)
    together, parted = (count(step(full, params=four)) for full in (Full(), Full(parted=True)))
    assert parted.gradients == together.gradients
    beside = together.peak - (parted.weights + parted.adapters + parted.gradients)
    assert beside == pytest.approx(2 * parameter_count(four), rel=1e-3)
    assert beside - (together.peak - parted.peak) <= 4 * MOST


def test_weights_in_bf16_are_there_once():
    numbers = parameter_count(ONE_BLOCK)
    counted = count(step(FUSED, torch.bfloat16))
    assert counted.weights + counted.adapters == pytest.approx(2 * numbers, rel=1e-3)


def test_frozen_parts_have_neither_masters_nor_gradients():
    everything, some = count(step(Full())), count(step(Full(rates=(("mlp", 0.0),))))
    mlp = 2 * ONE_BLOCK.model_dim * ONE_BLOCK.mlp_dim
    assert everything.adapters - some.adapters >= 4 * mlp
    assert everything.gradients - some.gradients >= 2 * mlp


SWAPPED = Saving(LoopOptions(gradient_checkpointing=True, blocks_to_swap=3))


def test_of_blocks_that_wait_in_ram_the_device_has_what_passes_through():
    four = replace(ONE_BLOCK, num_blocks=4)
    with torch.device("meta"):
        linears = [part for part in Block(four).modules() if isinstance(part, nn.Linear)]
    block = sum(linear.weight.numel() for linear in linears)
    stays, away = (count(step(Full(), params=four, memory=m)) for m in (MODES["checkpoint"], SWAPPED))
    assert len(away.away) == 3 * len(linears) and away.left == 0
    assert stays.adapters - away.adapters == 3 * 4 * block
    assert stays.gradients - away.gradients == 3 * 2 * block
    assert stays.weights - away.weights == (3 - BUFFERS) * 2 * block
    assert away.in_host - stays.in_host == 3 * 6 * block


@pytest.mark.parametrize("full, memory", [(Full(), MODES["checkpoint"]), (FUSED, SWAPPED)])
def test_the_count_is_that_of_real_tensors(full, memory):
    text = replace(ONE_BLOCK.llm_adapter, vocab=100, mlp_dim=64)
    small = replace(
        ONE_BLOCK, model_dim=64, head_dim=32, adaln_dim=16, mlp_dim=128, llm_adapter=text
    )
    settings = step(full, params=small, dtype=torch.bfloat16, memory=memory)
    counted = count_step(make_step(settings, torch.device("meta")), as_on_cuda, granule=1)
    on_real_tensors = make_step(settings, torch.device("cpu"))
    on_real_tensors.loss()  # the tables of its shape are kept from here on
    real = count_step(on_real_tensors, granule=1)
    for part in ("weights", "adapters", "gradients", "left"):
        assert getattr(counted, part) == getattr(real, part)


def test_doctor_knows_what_a_model_that_trains_needs(demo, run_folder):
    settings = {"mixed_precision": "bf16", "vram_target": "24", "blocks_to_swap": 2}
    forget_accelerate()
    text, code = doctor.report(["--full", *model_argv(demo, run_folder, settings)])
    assert code == 0, text
    for row in ("What trains", "float32 masters", "model files", "gradients", "weights that wait in RAM"):
        assert row in text
    assert "a preset for these" not in text
