"""Signals at every moment of a process: while it imports, prepares, trains and when it is done."""

import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from library.saving.stopping import Request, StopRequests
from library.system import stop_signals
from library.system.program import NOTHING_TRAINED
from library.system.stop_signals import Interrupts, is_launched, signals
from library.utils import threads
from tests.helpers.paths import ROOT
from tests.helpers.processes import TRAINER, python, read_until, start
from tests.helpers.running import config_files

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)
LISTENER = """
import pathlib, sys, time, types
from library.saving.stopping import StopRequests
from library.system import stop_signals
from library.system.run_lock import claimed

ALONE = types.SimpleNamespace(is_main_process=True, num_processes=1)
stop_signals.SECONDS_OF_ECHO = -1
folder = pathlib.Path(sys.argv[1])
with claimed(folder, {"run"}), StopRequests(folder, ALONE):
    print("listening", flush=True)
    while True:
        time.sleep(1)
"""


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(tmp_path)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "listening\n"
    assert (tmp_path / ".run.lock").exists()
    process.send_signal(signal.SIGINT)
    read_until(process, "Stopping after this step, with everything saved. Ctrl-C again leaves")
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []


def test_what_follows_in_a_moment_is_the_same_wish(tmp_path, capfd):
    requests = StopRequests(tmp_path, ALONE)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        requests.on_signal(number, None)
        assert requests.poll() is Request.QUIT
    assert capfd.readouterr().err.count("Stopping after") == 2  # the first Ctrl-C has an answer


def test_a_launcher_may_repeat_a_signal(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(stop_signals, "SECONDS_OF_ECHO", -1)
    requests = StopRequests(tmp_path, ALONE)
    for _ in range(3):
        requests.on_signal(signal.SIGINT, None)
    assert "Ctrl-C again" not in capfd.readouterr().err
    assert not is_launched({"PATH": "/bin"}) and is_launched({"TORCHELASTIC_RUN_ID": "x"})


@pytest.mark.parametrize(
    "heard, seconds",
    [
        ([(signal.SIGINT, 0), (signal.SIGINT, 0.5), (signal.SIGINT, 1.5)], [1.5]),
        ([(signal.SIGTERM, 0), (signal.SIGINT, 5), (signal.SIGTERM, 9), (signal.SIGINT, 9)], [9]),
        ([(signal.SIGTERM, 0), (signal.SIGTERM, 5)], []),
    ],
)
def test_a_second_ctrl_c_is_one_that_follows_a_first_after_a_while(heard, seconds):
    interrupts = Interrupts()
    assert [now for number, now in heard if interrupts.is_second(number, now)] == seconds


def test_a_closed_terminal_asks_to_stop_unless_nohup_says_otherwise():
    assert signal.SIGHUP in signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def assert_nothing_was_trained(process, said, number):
    said += process.stderr.read()
    assert process.wait() == 128 + number, said
    assert said.count(NOTHING_TRAINED) == 1 and said.endswith(f"{NOTHING_TRAINED}\n")
    assert "Traceback" not in said and "Exception ignored" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_modules_are_imported_is_no_traceback(number):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", TRAINER], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    read_until(process, " torch._")  # one of the first of torch's many
    process.send_signal(number)
    assert_nothing_was_trained(process, "", number)


def test_a_stop_before_the_first_step_is_told(demo, run_folder):
    process = start(config_files(demo, run_folder, {"max_train_steps": 3000}))
    said = read_until(process, "dataset 0:")
    for _ in range(3):  # a launcher's
        process.send_signal(signal.SIGTERM)
    assert_nothing_was_trained(process, said, signal.SIGTERM)
    assert not (run_folder / "out").exists()


def test_a_stop_after_the_last_word_changes_nothing(demo, run_folder):
    process = start(config_files(demo, run_folder, {"max_train_steps": 1}))
    read_until(process, "done: 1 steps")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_an_error_does_not_wait_for_files_that_are_being_hashed(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 42)  # hours of hashing, no space on the disk
    program = (
        "from library.errors import UserError\nfrom library.system.program import run_main\n"
        "from library.saving.metadata import FileHashes\n"
        "def main():\n"
        f"    FileHashes({{'model': {str(tmp_path / 'large')!r}}}).start()\n"
        "    raise UserError('early')\n"
        "run_main(main)\n"
    )
    ended = python("-c", program)
    assert (ended.returncode, ended.stderr) == (2, "UserError: early\n")


def test_ctrl_c_does_not_wait_for_what_has_not_begun():
    done, limit = [], time.monotonic() + 60

    def hold():
        while not later.cancelled() and time.monotonic() < limit:
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt), threads(1) as pool:
        later = Future()
        pool.submit(hold)
        later = pool.submit(done.append, "later")
        raise KeyboardInterrupt
    assert done == []
