"""What a step of a model that trains itself needs: counted, against real tensors and against arithmetic."""

from dataclasses import replace

import pytest
import torch

from library.anima_backend.modelling.params import PUBLISHED
from library.anima_doctor.anima_step import MODES, AnimaStep, Full, count, make_step
from library.anima_runtime.model_loading import parameter_count
from library.memory.cuda_kernels import as_on_cuda
from library.memory.step_count import count_step
from library.settings.flags.network import NetworkOptions
from tests.helpers.running import report
from tests.helpers.whole import AnimaTrainer, model_argv

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


def test_weights_in_bf16_are_there_once():
    numbers = parameter_count(ONE_BLOCK)
    counted = count(step(FUSED, torch.bfloat16))
    assert counted.weights + counted.adapters == pytest.approx(2 * numbers, rel=1e-3)


def test_frozen_parts_have_neither_masters_nor_gradients():
    everything, some = count(step(Full())), count(step(Full(rates=(("mlp", 0.0),))))
    mlp = 2 * ONE_BLOCK.model_dim * ONE_BLOCK.mlp_dim
    assert everything.adapters - some.adapters >= 4 * mlp
    assert everything.gradients - some.gradients >= 2 * mlp


@pytest.mark.parametrize("full", [Full(), FUSED])
def test_the_count_is_that_of_real_tensors(full):
    text = replace(ONE_BLOCK.llm_adapter, vocab=100, mlp_dim=64)
    small = replace(
        ONE_BLOCK, model_dim=64, head_dim=32, adaln_dim=16, mlp_dim=128, llm_adapter=text
    )
    settings = step(full, params=small, dtype=torch.bfloat16)
    counted = count_step(make_step(settings, torch.device("meta")), as_on_cuda, granule=1)
    real = count_step(make_step(settings, torch.device("cpu")), granule=1)
    for part in ("weights", "adapters", "gradients", "left"):
        assert getattr(counted, part) == getattr(real, part)


def test_doctor_knows_what_a_model_that_trains_needs(demo, run_folder):
    argv = model_argv(demo, run_folder, {"mixed_precision": "bf16", "vram_target": "24"})
    text, code = report(argv, AnimaTrainer)
    assert code == 0, text
    for row in ("What trains", "float32 masters", "model files", "gradients"):
        assert row in text
    assert "a preset for these" not in text
