"""One run at a time writes files of a name: what becomes of a second, and of what a dead one left."""

import json
import os
import subprocess
import sys
import time

import pytest

from library.errors import OutputError
from library.saving.state_folder import MANIFEST
from library.system.leftovers import OLD_AFTER, clear_temporary
from library.system.run_lock import claimed, lock_file, lock_problems, own, started, writers_of
from tests.helpers.processes import read_until, start
from tests.helpers.running import config_files, make_trainer, report


def written(folder, name="run", **changes):
    """A lock file as another process would have left it."""
    lock_file(folder, name).write_text(json.dumps({**own(), **changes}), encoding="utf-8")
    return lock_file(folder, name)


def claim(folder, *names):
    with claimed(folder, names):
        pass


@pytest.fixture
def other():
    """A process that lives meanwhile."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.stdin.close()


def test_a_lock_is_there_while_claimed_and_gone_after_every_end(tmp_path):
    folder = tmp_path / "new" / "out"
    for error in (None, ValueError, KeyboardInterrupt):
        try:
            with claimed(folder, {"at", "last"}) as notes:
                assert not notes and sorted(p.name for p in folder.iterdir()) == [
                    ".at.lock",
                    ".last.lock",
                ]
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert not folder.exists()  # as before


def test_a_second_run_is_an_error_that_names_the_first(tmp_path, other):
    file = written(tmp_path, process=other.pid, started=started(other.pid))
    before = file.read_text()
    with pytest.raises(OutputError, match=f"another run writes run here .process {other.pid} on"):
        claim(tmp_path, "a", "run")
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_text() == before
    assert len(lock_problems(tmp_path, {"run"})) == 1 and not lock_problems(tmp_path, {"run-b"})
    state = tmp_path / "run-step00000002-state"
    assert len(writers_of(state)) == 1 and not writers_of(tmp_path / "rune-state")


@pytest.mark.parametrize(
    "changes",
    [
        {"process": 99_999_999},
        {"started": "1"},  # the number is another process's now
        {"boot": "of a day before", "time": 0.0},
    ],
)
def test_the_lock_of_a_process_that_is_gone_is_taken_over_and_said(tmp_path, changes):
    written(tmp_path, **changes)
    with claimed(tmp_path, {"run"}) as notes:
        assert len(notes) == 1 and ".run.lock is of a run that was killed (process" in notes[0]
        assert json.loads(lock_file(tmp_path, "run").read_text()) == {
            **own(),
            "time": pytest.approx(time.time(), abs=99),
        }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"boot": "another's"}, {"processes": "pid:[1]"}]
)
def test_what_cannot_be_known_of_another_computer_is_said_with_the_way_on(tmp_path, changes):
    file = written(tmp_path, **changes)
    with pytest.raises(OutputError, match=f"cannot tell. If it is over, delete {file}"):
        claim(tmp_path, "run")
    assert file.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"process": "3"}', '{"process": -1, "host": "a", "time": 1}']
)
def test_a_lock_that_says_nothing_is_an_error(tmp_path, text):
    lock_file(tmp_path, "run").write_text(text)
    with pytest.raises(OutputError, match="says nothing. If no run writes here, delete it"):
        claim(tmp_path, "run")


def test_a_lock_that_another_run_holds_by_now_is_left_alone(tmp_path):
    with claimed(tmp_path, {"run"}):
        file = written(tmp_path, process=1)
    assert file.exists()


def test_unfinished_files_go_when_they_are_of_ones_own_dead_runs_or_old(tmp_path, other):
    tensors = (2).to_bytes(8, "little") + b"{}"
    dead, alive = (
        f".run.safetensors.99999999.{'a' * 8}.tmp",
        f".run.safetensors.{other.pid}.{'b' * 8}.tmp",
    )
    long_ago = time.time() - 2 * OLD_AFTER
    files = {
        dead: (False, tensors),
        f".run-step00000002.safetensors.99999999.{'a' * 8}.tmp": (False, tensors),
        f".run-step00000002-ema.safetensors.99999999.{'a' * 8}.tmp": (False, tensors),
        f".run-universal.safetensors.99999999.{'a' * 8}.tmp": (False, tensors),
        f".run-000002.safetensors.{other.pid}.{'c' * 8}.tmp": (True, tensors),
        ".tmpAbC123": (True, tensors),
    }  # fmt: skip
    kept = {
        alive: (False, tensors),
        f".run-b.safetensors.99999999.{'a' * 8}.tmp": (True, tensors),
        ".tmpAbC124": (False, tensors),
        ".tmpAbC125": (True, b"of another program"),
        "run.safetensors": (True, tensors),
        ".tmp": (True, tensors),
    }
    for name, (old, content) in {**files, **kept}.items():
        (tmp_path / name).write_bytes(content)
        if old:
            os.utime(tmp_path / name, (long_ago, long_ago))
    clear_temporary(tmp_path, {"run"})
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_killed_run_is_followed_and_a_living_one_is_not_disturbed(demo, run_folder, caplog):
    settings = {"max_train_steps": 3000, "save_state": True, "save_every_n_steps": 2}
    argv = config_files(demo, run_folder, {**settings, "no_metadata": True})
    first, out = start(argv), run_folder / "out"
    read_until(first, "run-step00000002-state")
    state = out / "run-step00000002-state"
    assert (out / ".run.lock").exists()
    for more in ([], ["--resume", str(state)]):
        with pytest.raises(
            OutputError, match=f"another run writes run here .process {first.pid} on"
        ):
            make_trainer([*argv, *more]).train()
    text, code = report(argv)
    assert code == 2 and f"another run writes run here (process {first.pid} on" in text
    first.kill()
    first.wait()
    first.stderr.close()
    assert (out / ".run.lock").exists()
    states = [path for path in out.iterdir() if (path / MANIFEST).exists()]
    latest = max(path for path in states if not path.name.startswith("."))
    step = int(latest.name.partition("step")[2].partition("-")[0])
    make_trainer([*argv, "--resume", str(latest), "--max_train_steps", str(step + 1)]).train()
    assert f".run.lock is of a run that was killed (process {first.pid}" in caplog.text
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_lock_that_was_overwritten_is_left_and_harms_nothing(tmp_path):
    with claimed(tmp_path, {"run"}):
        lock_file(tmp_path, "run").write_bytes(b"\xff\xfe")
    assert lock_file(tmp_path, "run").read_bytes() == b"\xff\xfe"
