"""Whole runs with compiled blocks: what they train, what a state says of it, what is told."""

import pytest
import torch
from safetensors.torch import load_file

from library.errors import ConfigError
from tests.helpers.running import config_files, make_trainer, train
from tests.helpers.tiny import rel_l2

COMPILED = {"compile": True, "compile_backend": "eager", "compile_fullgraph": True}
SETTINGS = {
    "network_args": ["target_modules=q_proj,layer1", "train_norm=false"], "network_dropout": 0.2,
    "gradient_accumulation_steps": 2, "validation_split": 0.2, "validate_every_n_steps": 2,
    "save_state": True, "save_every_n_steps": 1, "log_with": "none", "max_train_steps": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def compiler(compiler_left_alone):
    pass


def test_a_compiled_run_trains_the_same_within_rounding(demo, run_folder, caplog):
    """Gone on from a state of a run without, then to the bit from its own; validation and dropout included."""
    out = run_folder / "out"
    train(demo, run_folder, SETTINGS)
    state = str(out / "run-step00000002-state")
    changed = {**SETTINGS, **COMPILED, "output_name": "compiled", "resume": state}
    trainer = train(demo, run_folder, changed)
    assert trainer.base.compiled is not None and trainer.compilation.any_size
    expected, found = (load_file(out / f"{name}.safetensors") for name in ("run", "compiled"))
    assert found.keys() == expected.keys()
    assert max(rel_l2(found[name], value) for name, value in expected.items()) < 1e-4
    assert "compile: each block, by eager, one graph for all sizes" in caplog.text
    assert sum("compiled: the first step took " in line for line in caplog.messages) == 1
    assert "compile: false in the state, true now; taken as it is now" in caplog.text
    state = str(out / "compiled-step00000003-state")
    train(demo, run_folder, {**changed, "output_name": "again", "resume": state})
    again = load_file(out / "again.safetensors")
    assert [name for name in found if not torch.equal(found[name], again[name])] == []


def test_what_fails_with_blocks_alone_is_told(demo, run_folder, caplog):
    """And what a compiler leaves without effect that might not have been there."""
    changed = {**COMPILED, "compile_cache_size_limit": 1, "compile_optional": True, "recompute": "cheap"}
    with pytest.raises(ConfigError, match="compile = true .*raise compile_cache_size_limit"):
        train(demo, run_folder, {**SETTINGS, **changed})
    assert 'recompute = "cheap" has no effect: the compiler chooses' in caplog.text


def test_what_compiled_blocks_do_not_go_with_is_said(demo, run_folder):
    settings = {
        "compile": True, "compile_mode": "reduce-overhead", "blocks_to_swap": 2, "vram_target": "8",
    }  # fmt: skip
    with pytest.raises(ConfigError) as error:
        make_trainer(config_files(demo, run_folder, settings))
    graphs, counted = (problem.message for problem in error.value.problems)
    assert "in the modes that record no CUDA graphs" in counted and "records CUDA graphs" in graphs


def test_the_launchers_own_compiler_is_left_out_and_named(demo, run_folder, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    trainer = make_trainer(config_files(demo, run_folder, {}))
    trainer.prepare_process()
    assert trainer.accelerator.state.dynamo_plugin.backend == "NO"
    assert "dynamo backend INDUCTOR, which has no effect" in caplog.text
