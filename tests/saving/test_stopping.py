"""The ends of a run: asked for by signals and files, in real processes; forced by real errors."""

import contextlib
import os
import shutil
import signal

import pytest
import torch
from accelerate import Accelerator

import anima_train_network
from library.errors import DatasetError
from library.saving.state_folder import longest_path, open_state
from library.saving.stopping import OutOfMemory, Request, StopRequests
from tests.helpers import documented
from tests.helpers.processes import (
    TRAINER,
    ended,
    plain_environment,
    read_until,
    start,
    start_ranks,
)
from tests.helpers.running import config_files, make_trainer
from tests.helpers.workers import forking_program

SCHEMA = "anima_resume_snapshot/v2"
LONG = {"max_train_steps": 3000, "save_state": True, "save_every_n_steps": 2, "no_metadata": True}
TO_DISK = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}


def last_state(folder):
    """The newest state of a run that was stopped, and the adapter file beside it."""
    state = max((folder / "out").glob("run-step*-state"))
    return state, state.with_name(state.name.replace("-state", ".safetensors"))


@pytest.mark.parametrize("number, pipe_breaks", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_ends_a_run_with_everything_saved(demo, run_folder, number, pipe_breaks):
    argv = config_files(demo, run_folder, {**LONG, **TO_DISK})
    process = start(argv)
    read_until(process, "run-step00000002-state")
    if pipe_breaks:  # as `2>&1 | tee log` does, which Ctrl-C ends first
        process.stderr.close()
    process.send_signal(number)
    said = "" if pipe_breaks else process.stderr.read()
    assert process.wait() == 0, said
    state, file = last_state(run_folder)
    step = open_state(state, SCHEMA).position.step
    assert file.is_file() and not (run_folder / "out" / "run.safetensors").exists()
    assert not list((run_folder / "out").glob(".*"))  # no lock, nothing temporary
    if not pipe_breaks:
        assert said.rstrip().endswith(
            f"stopped at step {step} of 3000; to go on, add to the same command: --resume {state}"
        )
    make_trainer([*argv, "--resume", str(state), "--max_train_steps", str(step + 1)]).train()
    resumed = (run_folder / "out" / "run.safetensors").read_bytes()
    make_trainer([*argv, "--max_train_steps", str(step + 1)]).train()
    assert (run_folder / "out" / "run.safetensors").read_bytes() == resumed


@documented.runs(f"accelerate launch {documented.LAUNCH}")
def test_a_launcher_that_is_gone_first_does_not_harm_the_save(demo, run_folder, command):
    config_files(demo, run_folder, LONG)
    python = forking_program(run_folder)
    process = documented.start(command, run_folder, env=plain_environment(), python=python)
    read_until(process, "run-step00000002-state")
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    process.wait()
    with contextlib.suppress(ProcessLookupError):  # the trainer may have ended as well
        os.killpg(process.pid, signal.SIGINT)  # what the launcher left behind takes no notice
    said = process.stderr.read()  # until the last process that could write is gone
    state, file = last_state(run_folder)
    assert f"--resume {state}" in said and file.is_file()
    open_state(state, SCHEMA)


def test_two_processes_stop_at_the_same_step(demo, run_folder):
    argv = config_files(demo, run_folder, LONG, batch_size=1)
    ranks = start_ranks(2, [TRAINER, *argv])
    read_until(ranks[0], "run-step00000004-state")
    (run_folder / "out" / "save_quit").touch()
    said = ended(ranks)
    state, _ = last_state(run_folder)
    assert said.count("to go on, add to the same command") == 1 and f"--resume {state}" in said
    assert not (run_folder / "out" / "save_quit").exists()
    kept = open_state(state, SCHEMA)
    assert kept.run["num_processes"] == 2 and kept.rank(1) and not kept.rank(2)


class Visited(anima_train_network.AnimaNetworkTrainer):
    """A trainer in whose output folder a file appears after its second and its third step."""

    def train_step(self, window):
        super().train_step(window)
        if self.state.step > 1:
            (self.checkpoints.folder / ("save", "save_quit")[self.state.step - 2]).touch()


def trainer_of(kind, argv):
    trainer = make_trainer(argv)
    return kind(trainer.cfg, trainer.datasets, trainer.anima)


def test_files_in_the_output_folder_save_and_stop(demo, run_folder, caplog):
    out = run_folder / "out"
    out.mkdir()
    for name in ("save", "save_quit"):
        (out / name).touch()
        os.utime(out / name, (0, 0))  # left by an earlier run
    trainer = trainer_of(Visited, config_files(demo, run_folder, {"max_train_steps": 9}))
    trainer.train()
    assert trainer.state.step == 3
    names = {path.name for path in out.iterdir()} - {"logs", "run_ledger.csv", "run_report.html"}
    assert names == {
        f"run-step0000000{step}{ending}" for step in (2, 3) for ending in (".safetensors", "-state")
    }
    assert caplog.text.count("is from before this run") == 2


def test_a_file_that_cannot_be_removed_asks_once(tmp_path, caplog, monkeypatch):
    requests = StopRequests(tmp_path, Accelerator(cpu=True))
    (tmp_path / "save").touch()
    monkeypatch.setattr("library.saving.stopping.remove_file", lambda path: False)  # a program holds it
    assert [requests.poll() for _ in range(3)] == [Request.SAVE, Request.NOTHING, Request.NOTHING]
    os.utime(tmp_path / "save", (5, 5))  # written anew
    assert [requests.poll() for _ in range(2)] == [Request.SAVE, Request.NOTHING]
    monkeypatch.undo()
    os.utime(tmp_path / "save", (6, 6))
    assert requests.poll() is Request.SAVE and not (tmp_path / "save").exists()
    (tmp_path / "save").touch()
    os.utime(tmp_path / "save", (6, 6))
    assert requests.poll() is Request.SAVE


class Failing(anima_train_network.AnimaNetworkTrainer):
    """A trainer whose step 3 fails, in the way that `fail` does."""

    def process_batch(self, batch, sigma=None):
        if self.state.step == 2:
            self.fail()
        return super().process_batch(batch, sigma)


def ends_at_step_3(demo, folder, fail, error, settings=None):
    """The text of the error that ended the run, its state resumed to the end of the run."""
    argv = config_files(demo, folder, {"no_metadata": True, **(settings or {})})
    kind = type("Failing", (Failing,), {"fail": fail})
    with pytest.raises(error) as ended:
        trainer_of(kind, argv).train()
    state, file = last_state(folder)
    assert file.is_file() and open_state(state, SCHEMA).position.step == 2
    make_trainer([*argv, "--resume", str(state)]).train()
    resumed = (folder / "out" / "run.safetensors").read_bytes()
    make_trainer(argv).train()
    assert (folder / "out" / "run.safetensors").read_bytes() == resumed
    return str(ended.value), state


def test_memory_that_runs_out_leaves_a_state_and_says_what_to_change(demo, run_folder):
    text, state = ends_at_step_3(
        demo, run_folder, lambda trainer: torch.empty(1 << 60), OutOfMemory,
        {"optimizer_type": "AdamWScheduleFree"},
    )  # fmt: skip
    assert "no more memory at step 3" in text and "gradient_checkpointing" in text
    assert text.endswith(f"--resume {state}")


def test_an_error_of_the_users_files_leaves_a_state_and_names_it(demo, run_folder):
    def fail(trainer):
        raise DatasetError("the picture is gone.", source="a.png")

    text, state = ends_at_step_3(demo, run_folder, fail, DatasetError)
    assert text.startswith("DatasetError: a.png: the picture is gone. The weights of step 2 are in")
    assert text.endswith(f"--resume {state}")


def test_an_error_of_ours_keeps_its_traceback_and_leaves_a_state(demo, run_folder, caplog):
    text, state = ends_at_step_3(demo, run_folder, lambda trainer: {}["missing"], KeyError)
    assert text == "'missing'"
    assert (
        "step 3 failed. The weights of step 2 are in" in caplog.text and str(state) in caplog.text
    )


def test_an_update_that_fails_in_the_middle_is_not_saved(demo, run_folder, caplog):
    class HalfDone(anima_train_network.AnimaNetworkTrainer):
        def update(self):
            norm = super().update()
            if self.state.step == 2:
                raise RuntimeError("in the middle of an update")
            return norm

    settings = {"save_state": True, "save_every_n_steps": 1}
    trainer = trainer_of(HalfDone, config_files(demo, run_folder, settings))
    with pytest.raises(RuntimeError, match="in the middle"):
        trainer.train()
    state, _ = last_state(run_folder)
    assert state.name == "run-step00000002-state"
    end = f"The weights of step 2 are in {state.parent / 'run-step00000002.safetensors'}; go on with"
    assert f"step 3 failed. {end} --resume {state}" in caplog.text


def fail(trainer):
    raise DatasetError("the picture is gone.", source="a.png")


def failed(demo, folder, settings, change):
    """The text of the error of a run whose step 3 fails, `change` done to the trainer before."""

    class Changed(Failing):
        def fail(self):
            change(self)
            fail(self)

    with pytest.raises(DatasetError) as ended:
        trainer_of(Changed, config_files(demo, folder, settings)).train()
    return str(ended.value)


def test_a_full_disk_at_the_state_leaves_the_file_and_names_it(demo, run_folder):
    def no_room(trainer):  # for the state: something is in the way of its temporary folder
        state = trainer.checkpoints.state_folder(trainer.checkpoints.step_file(2))
        longest_path(state).parent.touch()

    text = failed(demo, run_folder, {}, no_room)
    file = run_folder / "out" / "run-step00000002.safetensors"
    assert file.is_file() and "the state could not be written" in text
    none = "there is no state to go on from: none was written."
    assert text.endswith(f"The weights of step 2 are in {file}; {none}")


def test_what_went_to_another_name_is_told_by_it(demo, run_folder):
    def in_the_way(trainer):
        (trainer.checkpoints.step_file(2) / "in the way").mkdir(parents=True)

    text = failed(demo, run_folder, {}, in_the_way)
    file = run_folder / "out" / "run-step00000002-2.safetensors"
    assert file.is_file() and f"The weights of step 2 are in {file}; go on with --resume" in text


def test_a_state_that_is_gone_is_no_advice(demo, run_folder):
    def remove(trainer):
        trainer.files.is_settled = False  # as an update that fails in the middle
        shutil.rmtree(trainer.files.last_state)

    text = failed(demo, run_folder, {"save_state": True, "save_every_n_steps": 2}, remove)
    state = run_folder / "out" / "run-step00000002-state"
    assert "The weights of step 2 are in" in text and "--resume" not in text
    assert text.endswith(f"there is no state to go on from: the last one, {state}, is gone.")
