"""State folders: whole or absent, data only, and every wrong folder told for what it is."""

import json
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch

from library.data.data_types import RunPosition
from library.errors import ResumeError
from library.saving.state_folder import (
    ADAPTERS,
    MANIFEST,
    OPTIMIZER,
    SNAPSHOT,
    clear_leftovers,
    open_state,
    remove_state,
    write_state,
)
from tests.helpers.states import SCHEMA, contents, written


def test_what_is_written_comes_back_the_same(tmp_path):
    state, given = open_state(written(tmp_path), SCHEMA), contents()
    assert (state.position, state.run, state.snapshot) == (
        given.position,
        given.run,
        given.snapshot,
    )
    assert torch.equal(state.factors()["a.adapter.lora_down"], next(iter(given.factors.values())))
    loaded = state.training()["optimizer"]["state"][0]
    assert loaded["step"] == 7 and loaded["m"] == (1, None)
    assert [len(state.rank(rank)["rng.torch"]) for rank in (0, 1)] == [9, 2]
    assert state.rank(2) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["run-state"]


def test_a_state_of_the_same_name_is_replaced(tmp_path):
    written(tmp_path)
    folder = written(tmp_path, position=RunPosition(step=8))
    assert open_state(folder, SCHEMA).position.step == 8
    assert [path.name for path in tmp_path.iterdir()] == ["run-state"]


def test_a_state_that_cannot_be_replaced_stays_and_the_new_one_is_beside_it(tmp_path, caplog):
    earlier = written(tmp_path)
    for purpose in ("old", "gone"):  # keeps it from being renamed
        (tmp_path / f".run-state.{os.getpid()}.{purpose}.tmp").touch()
    beside = write_state(earlier, contents(position=RunPosition(step=8)))
    assert beside == tmp_path / "run-state-2" and "run-state cannot be replaced" in caplog.text
    steps = [open_state(folder, SCHEMA).position.step for folder in (earlier, beside)]
    assert steps == [7, 8]
    assert not remove_state(earlier) and "cannot be removed" in caplog.text
    assert earlier.is_dir()


@pytest.mark.parametrize("name", [ADAPTERS, OPTIMIZER, "rank_00001.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name):
    whole = {path.name: path.read_bytes() for path in written(tmp_path).iterdir()}
    file = tmp_path / "run-state" / name
    changed = whole[name].replace(whole[name][-5:-4], b"#")
    for damaged, words in ((whole[name][:-1], f"{name} +has .* expected"), (changed, name)):
        file.write_bytes(damaged)
        with pytest.raises(ResumeError, match=words):
            open_state(tmp_path / "run-state", SCHEMA)
    file.unlink()
    with pytest.raises(ResumeError):
        open_state(tmp_path / "run-state", SCHEMA)
    file.write_bytes(whole[name])
    open_state(tmp_path / "run-state", SCHEMA)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "train_state/v1", "files": 3}', "[" * 9**5]
)
def test_a_damaged_list_of_files_is_an_error_of_the_state(tmp_path, text):
    (written(tmp_path) / MANIFEST).write_text(text)
    with pytest.raises(ResumeError):
        open_state(tmp_path / "run-state", SCHEMA)


def test_states_of_others_are_refused_with_the_reason(tmp_path):
    old, foreign, empty = tmp_path / "old", tmp_path / "foreign", tmp_path / "empty"
    for folder in (old, foreign, empty):
        folder.mkdir()
    for folder in (old, foreign):
        for name in ("optimizer.bin", "random_states_0.pkl"):
            (folder / name).write_bytes(b"x")
    (old / SNAPSHOT).write_text(json.dumps({"schema": "family_resume_snapshot/v1"}))
    with pytest.raises(ResumeError, match="earlier version.*hold no adapter weights.*network_wei"):
        open_state(old, SCHEMA)
    with pytest.raises(ResumeError, match="sd-scripts.*can run code.*network_weights"):
        open_state(foreign, SCHEMA)
    with pytest.raises(ResumeError, match=f"expected a folder with {MANIFEST}.*names that end in -state"):
        open_state(empty, SCHEMA)


def test_a_folder_that_is_not_there_names_those_that_are(tmp_path):
    written(tmp_path)
    with pytest.raises(ResumeError, match="no such folder.*there are: run-state"):
        open_state(tmp_path / "rum-state", SCHEMA)
    with pytest.raises(ResumeError, match="Inside it there are: run-state"):
        open_state(tmp_path, SCHEMA)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm-was-done",)


def test_code_in_a_state_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = open_state(written(tmp_path), SCHEMA)
    (state.folder / OPTIMIZER).write_bytes(pickle.dumps({"optimizer": Harmful()}))
    with pytest.raises(ResumeError, match="cannot be read"):
        state.training()
    torch.save({"optimizer": Harmful()}, state.folder / OPTIMIZER)
    with pytest.raises(ResumeError, match="cannot be read"):
        state.training()
    assert not Path("harm-was-done").exists()


def test_what_is_no_data_cannot_get_into_a_state(tmp_path):
    with pytest.raises(ResumeError, match="no data"):
        written(tmp_path, training={"schedule": {"curve": Harmful()}})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_the_earlier_state_and_nothing_half(tmp_path):
    folder = written(tmp_path)
    large = {"a.adapter.lora_down": torch.zeros(200_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for changes in ({"factors": large}, {"training": large}):
            with pytest.raises(ResumeError, match="could not be written.*Earlier ones"):
                written(tmp_path, **changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_state(folder, SCHEMA).position.step == 7
    assert [path.name for path in tmp_path.iterdir()] == ["run-state"]


def test_removing_touches_states_alone(tmp_path):
    (tmp_path / "run-pictures").mkdir()
    assert not remove_state(tmp_path / "run-pictures") and not remove_state(tmp_path / "nothing")
    assert remove_state(written(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run-pictures"]


def test_what_a_killed_run_left_is_cleared_by_the_next_of_its_name(tmp_path):
    halves = [
        ".run-step00000004-state.99999999.new.tmp",
        ".run-000002-state.99999999.gone.tmp",
        ".run-state.99999999.old.tmp",
    ]
    alive = f".run-000003-state.{os.getpid()}.new.tmp"
    others = [".run-b-state.99999999.new.tmp", ".other-state.99999999.new.tmp", alive, "run-state"]
    for name in (*halves, *others):
        (tmp_path / name).mkdir()
    clear_leftovers(tmp_path, {"run"})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_state_that_is_to_be_read_gets_its_name_back_first(tmp_path):
    written(tmp_path).rename(tmp_path / ".run-state.99999999.old.tmp")
    assert open_state(tmp_path / "run-state", SCHEMA).position.step == 7
    assert [path.name for path in tmp_path.iterdir()] == ["run-state"]


def test_a_state_whose_replacement_was_killed_gets_its_name_back(tmp_path):
    written(tmp_path).rename(tmp_path / ".run-state.99999999.old.tmp")
    clear_leftovers(tmp_path, {"run"})
    assert open_state(tmp_path / "run-state", SCHEMA).position.step == 7
    clear_leftovers(tmp_path / "not there", {"run"})
