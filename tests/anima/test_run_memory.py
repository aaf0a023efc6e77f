"""What the report on a run expects in memory, against a count of the same step with its optimizer."""

from dataclasses import replace

import pytest
import torch

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import PUBLISHED
from library.anima_doctor.anima_step import AnimaStep, Saving, count
from library.anima_doctor.run_memory import RunMemory
from library.memory.compiled_count import shared_graphs
from library.memory.optimizer_states import state_bytes
from networks.loading import load_network_module, make_network, quiet
from tests.helpers.running import config_files, make_trainer
from tools.bench.ledger import network_of
from tools.bench.ways import way_of

PARAMS = replace(
    PUBLISHED, num_blocks=1, llm_adapter=replace(PUBLISHED.llm_adapter, num_blocks=1)
)  # true widths
STEPS = {  # adapter, rank, mode, width and height or both, batch: the optimizers
    ("lora", 16, "none", 512, 1): ("AdamW", "AdamW8bit", "SGDNesterov"),
    ("lora", 32, "checkpoint", 256, 2): ("AdamW", "Prodigy"),
    ("lora+norms", 16, "cheap", 256, 1): ("AdamW", "Lion"),
    ("lora", 16, "fp8_checkpoint", 256, 1): ("AdamW", "AdamW8bit", "Lion"),
    ("lora", 16, "nf4_checkpoint", 256, 1): ("AdamW",),
    ("lokr_full", 16, "none", 256, 1): ("AdamW", "Adafactor"),
    ("lokr", 8, "swap_all", 256, 1): ("AdamW", "Lion", "SGDNesterov"),
    ("lora", 16, "offload", 256, 1): ("AdamW",),
    ("lokr+text", 8, "int8_checkpoint", 256, 1): ("AdamW", "AdamW8bit"),
    ("lora+norms+text", 16, "checkpoint", (768, 1344), 2): ("AdamW",),
}
COMPILED = {
    ("lora", 16, "compile", (768, 1344), 1): ("AdamW", "AdamW8bit", "Lion"),
    ("lokr_full", 16, "compile_checkpoint", 512, 2): ("AdamW",),
    ("lora+norms+text", 16, "compile", 512, 1): ("AdamW",),
    ("lora", 16, "compile+swap_1", 512, 1): ("AdamW",),
    ("lora", 16, "compile_checkpoint+offload", 512, 1): ("AdamW",),
    ("lora", 16, "compile+fp8", 512, 1): ("AdamW",),
}
MORE = {
    "cheap": {"trained_dtype": torch.bfloat16},
    "swap_all": {"accumulates": True},
    "offload": {"dtype": torch.float32},
}


@pytest.mark.parametrize(
    "steps, count", [(STEPS, 20), pytest.param(COMPILED, 8, marks=pytest.mark.slow)]
)
def test_the_expected_memory_is_that_of_the_counted_step(steps, count, demo, run_folder):
    with shared_graphs():
        found = shares(steps, make_trainer(config_files(demo, run_folder, {})))
    assert len(found) == count
    assert {key: share for key, share in found.items() if abs(share - 1) > 0.1} == {}


def shares(steps, trainer):
    """Of each configuration: what the report expects, in parts of what the step needs.

    trainer: of a run that caches what is encoded
    """
    found = {}
    configurations = [(*step, optimizer) for step, named in steps.items() for optimizer in named]
    for adapter, rank, mode, pixels, batch, optimizer in configurations:
        network, arguments = network_of(adapter, rank, {})
        more = MORE.get(mode, {})
        width, height = pixels if isinstance(pixels, tuple) else (pixels, pixels)
        cfg = options_of(trainer.cfg, network, mode, optimizer, more)
        step = AnimaStep(
            params=PARAMS, network=network, arguments=arguments, loss=cfg.loss,
            memory=Saving(cfg.loop, cfg.precision), size=(height // 8, width // 8), batch=batch, fused=True,
            **more,
        )  # fmt: skip
        adapters = adapters_of(step)
        memory = RunMemory(
            cfg, trainer.anima, PARAMS, adapters, arguments, (batch, width, height), step.tokens
        )
        counted = count(step)
        misses = count.cache_info().misses
        states = state_bytes(cfg.optimizer, adapters.get_trainable_params())
        share = memory.total(cfg.loop) / (counted.peak - counted.states + states)
        assert count.cache_info().misses == misses  # the report counted the same step
        found[adapter, rank, mode, optimizer] = share
    return found


def options_of(cfg, network, mode, optimizer, more):
    saving, full = way_of(mode), "trained_dtype" in more
    mixed = "no" if more.get("dtype") == torch.float32 else "bf16"
    return replace(
        cfg,
        network=network,
        optimizer=replace(cfg.optimizer, optimizer_type=optimizer),
        precision=replace(saving.precision, mixed_precision=mixed, full_bf16=full),
        loop=replace(saving.loop, gradient_accumulation_steps=1 + ("accumulates" in more)),
    )


def adapters_of(step):
    """Without memory."""
    with torch.device("meta"), quiet():
        module = load_network_module(step.network.network_module)
        network = make_network(module, step.network, dict(step.arguments), Anima(PARAMS))
        network.cast_trainables(step.trained_dtype)
    return network
