"""Whole runs in every memory mode: the same bytes as without, also where a state is gone on from."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from anima_train_network import AnimaNetworkTrainer
from library.errors import ConfigError, ResumeError
from library.memory import planning
from library.memory.modes import acting_modes, describe_modes, swap_lines
from library.saving.stopping import OutOfMemory
from library.settings.flags.loop import LoopOptions
from tests.helpers.cards import repeatable
from tests.helpers.running import config_files, make_trainer, report, train

pytestmark = pytest.mark.all_pictures  # steps of two batches each, in the first epoch
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
    states = [folder / "out" / "run-step00000002-state" for folder in (run_folder, plain)]
    for part in ("adapters.safetensors", "optimizer.pt"):
        assert len({(state / part).read_bytes() for state in states}) == 1, part
    model = trainer.accelerator.unwrap_model(trainer.model)
    expected = {
        "cheap": (["cheap", "cheap"], []),
        "every second": (["block", "cheap"], []),
        "swapped": (["nothing", "nothing"], [0, 1]),
        "all": (["block", "cheap"], [0, 1]),
    }
    assert (model.recomputing, model.swapped) == expected[name]


@pytest.mark.parametrize("mode", [
    {"blocks_to_swap": 2, "recompute": "cheap"}, MODES["every second"], MODES["all"],
], ids=["swapped and cheap", "every second", "all"])  # fmt: skip
def test_a_run_goes_on_in_another_mode_to_the_same_bytes(demo, run_folder, plain, mode):
    state = str(plain / "out" / "run-step00000002-state")
    train(demo, run_folder, {**SETTINGS, **mode, "resume": state})
    assert written(run_folder) == written(plain)


STORED = {
    "fp8_base": (torch.float8_e4m3fn, True),
    "fp8_base_unet": (torch.float8_e4m3fn, False),
    "int8_base": (torch.int8, True),
    "int8_compute": (torch.int8, True),
    "nf4_base": (torch.uint8, True),
}


@pytest.mark.parametrize("option", STORED)
def test_stored_weights_train_and_go_on_to_the_same_bytes(demo, run_folder, option):
    settings = {**SETTINGS, "mixed_precision": "bf16", "no_metadata": False}
    value, shown = True, "True"
    if option == "int8_compute":
        settings, value, shown = {**settings, "int8_base": True}, "always", "always"
    again = "auto" if value == "always" else value  # which is then as in the state
    trainer = train(demo, run_folder, {**settings, option: value})
    model = trainer.accelerator.unwrap_model(trainer.model)
    form, whole = STORED[option]
    assert model.blocks[1].mlp.layer1.weight.dtype == form
    assert (model.llm_adapter.blocks[0].mlp[0].weight.dtype == form) is whole
    whole_run = run_folder / "out" / "run.safetensors"
    with safe_open(whole_run, "pt") as file:
        assert file.metadata()[f"ss_{option}"] == shown
    expected = load_file(whole_run)
    state = str(run_folder / "out" / "run-step00000002-state")
    settings |= {"output_name": "again", "resume": state}
    train(demo, run_folder, {**settings, option: again, "blocks_to_swap": 2, "recompute": "cheap"})
    found = load_file(run_folder / "out" / "again.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    with pytest.raises(ResumeError, match=rf"{option}\s+true in the state, false now"):
        train(demo, run_folder, {**settings, "output_name": "other"})


def test_a_card_is_planned_for_and_said_by_run_and_doctor(demo, run_folder, plain, caplog):
    """The demo fits any card: nothing is added to what was set."""
    argv = config_files(demo, run_folder, {**SETTINGS, "vram_target": 6, "recompute": "cheap"})
    text, code = report(argv)
    with caplog.at_level("INFO"):
        trainer = make_trainer(argv)
        trainer.train()
    assert written(run_folder) == written(plain)
    assert trainer.memory_modes == trainer.cfg.loop
    (told,) = (line for line in caplog.messages if line.startswith("vram_target = 6"))
    assert 'vram_target = 6: recompute = "cheap"; ' in told
    assert code == 0 and told in text


@pytest.mark.slow
def test_compiled_blocks_are_planned_for_as_they_are_compiled(demo, run_folder, compiler_left_alone):
    """Dropout included, of which compiled blocks keep other masks."""
    settings = {**SETTINGS, "compile": True, "vram_target": 6, "mixed_precision": "bf16"}
    text, code = report(config_files(demo, run_folder, settings))
    assert code == 0, text
    assert "vram_target = 6: no memory option; " in text
    assert "2 blocks, no memory option, compiled (traced" in text
    assert "cannot be traced" not in text


class Large(AnimaNetworkTrainer):
    """The demo, taken to be large."""

    def memory_counter(self):
        return lambda loop: (4 if loop.offloads else 5) * planning.GIB


def test_what_was_chosen_reaches_the_model_and_the_file(demo, run_folder, plain):
    settings = {**SETTINGS, "vram_target": 6, "no_metadata": False}
    made = make_trainer(config_files(demo, run_folder, settings))
    trainer = Large(made.cfg, made.datasets, made.anima)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert (model.recomputing, model.keep_input is None) == (["block", "cheap"], False)
    file = run_folder / "out" / "run.safetensors"
    with safe_open(file, "pt") as found:
        assert found.metadata()["ss_gradient_checkpointing"] == "True"
    trained, alike = load_file(file), load_file(plain / "out" / "run.safetensors")
    assert trained.keys() == alike.keys()
    assert all(torch.equal(trained[name], alike[name]) for name in trained)


class Short(Large):
    """A card on which the second micro-step of a run's step does not fit, so often."""

    chosen = LoopOptions()
    faults, at_step, passes = 1, 0, 0

    def memory_counter(self):
        wanted = acting_modes(self.chosen)
        return lambda loop: (4 if acting_modes(loop) == wanted else 5) * planning.GIB

    def call_unet(self, noisy, conditioning):
        prediction = super().call_unet(noisy, conditioning)
        self.passes += 1
        if self.state.step == self.at_step and self.passes % 2 == 0 and self.faults:
            self.faults -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prediction


def short(demo, folder, chosen, *, faults=1, at_step=0, trainer=Short):
    made = make_trainer(config_files(demo, folder, {**SETTINGS, "vram_target": 6}))
    trainer = trainer(made.cfg, made.datasets, made.anima)
    trainer.chosen, trainer.faults, trainer.at_step = chosen, faults, at_step
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "chosen, at_step, then",
    [
        (LoopOptions(), 0, (["cheap", "cheap"], [])),
        (LoopOptions(gradient_checkpointing=True), 1, (["block", "cheap"], [])),
    ],
    ids=["none", "checkpointed"],
)
def test_memory_that_is_short_in_the_first_steps_is_saved_once(
    demo, run_folder, plain, caplog, chosen, at_step, then
):
    """And the file is that of a run which began so."""
    trainer = short(demo, run_folder, chosen, at_step=at_step)
    assert written(run_folder) == written(plain)
    assert (trainer.base.recomputing, trainer.base.swapped) == then
    assert (trainer.base.keep_input is None) == (not trainer.memory_modes.offloads)
    (told,) = (line for line in caplog.messages if "memory was too short" in line)
    assert f"step {at_step + 1}: " in told and describe_modes(trainer.memory_modes) in told


class Full(Large):
    """A card that has no memory left in the second micro-step of a run's first step, at its end."""

    chosen, faults, at_step, passes = LoopOptions(), 1, 0, 0
    memory_counter = Short.memory_counter

    def call_unet(self, noisy, conditioning):
        prediction = super().call_unet(noisy, conditioning)
        self.passes += 1
        if self.state.step == self.at_step and self.passes == 2:
            self.fill(prediction)
        return prediction

    def fill(self, prediction):
        torch.empty(1 << 50, dtype=torch.uint8, device=prediction.device)


class FullBackward(Full):
    """The same in the backward pass, which autograd makes on a thread of its own."""

    def fill(self, prediction):
        prediction.register_hook(super().fill)


@pytest.mark.gpu
@pytest.mark.parametrize("trainer", [Full, FullBackward])
def test_on_a_card_a_step_that_did_not_fit_is_made_again_to_the_same_bytes(
    demo, run_folder, caplog, trainer
):
    with repeatable():
        train(demo, run_folder, SETTINGS)
        expected = written(run_folder)
        made = short(demo, run_folder, LoopOptions(gradient_checkpointing=True), trainer=trainer)
    assert written(run_folder) == expected and made.base.keep_input is not None
    assert "memory was too short" in caplog.text


@pytest.mark.parametrize("faults, at_step", [(2, 0), (1, 3)], ids=["twice", "later"])
def test_memory_that_is_short_again_or_later_ends_the_run(demo, run_folder, faults, at_step):
    with pytest.raises(OutOfMemory):
        short(demo, run_folder, LoopOptions(), faults=faults, at_step=at_step)


def test_a_card_that_is_asked_for_has_to_be_there(demo, run_folder):
    text, code = report(config_files(demo, run_folder, {"vram_target": "auto"}))
    assert code == (0 if torch.cuda.is_available() else 2)
    assert ("there is no card to ask" in text) is (code == 2)


def test_what_a_model_of_two_blocks_cannot_do_is_said(demo, run_folder):
    settings = {"gradient_checkpointing": True, "checkpoint_every_n": 4}
    with pytest.raises(ConfigError, match="checkpoint_every_n = 4 .* this model has 2"):
        make_trainer(config_files(demo, run_folder, settings)).prepare()
    asked, room = swap_lines(18, 2)[1:]
    assert "has 2 blocks, all are swapped" in asked and "saves no memory" in room
    assert len(swap_lines(18, 18)) == 1


def test_products_in_int8_are_timed_and_what_was_decided_is_said(demo, run_folder, caplog):
    settings = {"max_train_steps": 1, "mixed_precision": "bf16", "int8_base": True}
    with caplog.at_level("INFO"):
        trainer = train(demo, run_folder, {**settings, "int8_compute": "auto"})
    (told,) = (line for line in caplog.messages if line.startswith("int8_compute is "))
    is_on = trainer.cfg.precision.int8_compute == "always"
    assert told.startswith(f"int8_compute is {'on: faster here' if is_on else 'off: they take '}")
    model = trainer.accelerator.unwrap_model(trainer.model)
    kind = model.blocks[0].mlp.layer1.original.kind
    assert (kind.__name__ == "Rotated") is is_on
