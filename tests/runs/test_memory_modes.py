"""Whole runs in every memory mode: the same bytes as without, also where a state is gone on from."""

import pytest

from library.errors import ConfigError
from library.memory.modes import swap_lines
from tests.helpers.running import config_files, make_trainer, train

MODES = {
    "cheap": {"recompute": "cheap"},
    "every second": {"gradient_checkpointing": True, "checkpoint_every_n": 2, "recompute": "cheap"},
    "swapped": {"blocks_to_swap": 2},
    "all": {"blocks_to_swap": 2, "cpu_offload_checkpointing": True},
}
SETTINGS = {
    "network_dropout": 0.2, "gradient_accumulation_steps": 2, "save_state": True,
    "save_every_n_steps": 2, "no_metadata": True, "log_with": "none",
}  # fmt: skip


def written(folder):
    return (folder / "out" / "run.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plain(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    (folder / "pictures").symlink_to(demo / "pictures")
    train(demo, folder, SETTINGS)
    return folder


@pytest.mark.parametrize("name", MODES)
def test_a_mode_changes_no_bit_and_reaches_the_model(demo, run_folder, plain, name):
    trainer = train(demo, run_folder, {**SETTINGS, **MODES[name]})
    assert written(run_folder) == written(plain)
    model = trainer.accelerator.unwrap_model(trainer.model)
    expected = {
        "cheap": (["cheap", "cheap"], []),
        "every second": (["block", "cheap"], []),
        "swapped": (["nothing", "nothing"], [0, 1]),
        "all": (["block", "block"], [0, 1]),
    }
    assert (model.recomputing, model.swapped) == expected[name]


def test_a_run_goes_on_in_another_mode_to_the_same_bytes(demo, run_folder, plain):
    state = str(plain / "out" / "run-step00000002-state")
    settings = {**SETTINGS, "blocks_to_swap": 2, "recompute": "cheap", "resume": state}
    train(demo, run_folder, settings)
    assert written(run_folder) == written(plain)


def test_what_a_model_of_two_blocks_cannot_do_is_said(demo, run_folder):
    settings = {"gradient_checkpointing": True, "checkpoint_every_n": 4}
    with pytest.raises(ConfigError, match="checkpoint_every_n = 4 .* this model has 2"):
        make_trainer(config_files(demo, run_folder, settings)).prepare()
    asked, room = swap_lines(18, 2)[1:]
    assert "has 2 blocks, all are swapped" in asked and "saves no memory" in room
    assert len(swap_lines(18, 18)) == 1
