"""Run folders, what is written and read back, and the server's life."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from PIL import Image

from library.errors import ConfigError
from library.watching.tensorboard_server import free_port
from library.watching.trackers import (
    JsonLines,
    Trackers,
    check_logging,
    create_trackers,
    log_root,
    run_name,
)
from tests.helpers.paths import ROOT

NOW = datetime(2026, 11, 23, 8, 5, 9, 1234)
STAMP = "20261123_080509_001234"


def options(**changes):
    values = {
        "logging_dir": None,
        "log_with": None,
        "log_prefix": None,
        "log_tracker_name": None,
        "log_tracker_config": None,
        "log_config": False,
        "wandb_run_name": None,
        "wandb_api_key": None,
        "auto_start_tensorboard": False,
        "tensorboard_host": "127.0.0.1",
        "tensorboard_port": 6006,
        "tensorboard_logdir": None,
    }
    assert set(changes) <= set(values)
    return SimpleNamespace(**{**values, **changes})


def create(tmp_path, config=(), **changes):
    return create_trackers(
        options(**changes), output_dir=tmp_path, output_name="run", config=dict(config), now=NOW
    )


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.parametrize(
    "prefix, name, expected",
    [
        (None, "my lora v1.2", "my_lora_v1.2_"),
        (None, "初音ミク/第2版?", "初音ミク_第2版_"),
        (None, None, ""),
        ("exp-", "ignored", "exp-"),
        ("", "ignored", ""),
    ],
)
def test_the_run_folder_is_named_by_prefix_and_time(prefix, name, expected):
    assert run_name(prefix, name, NOW) == expected + STAMP


def test_the_root_is_the_first_of_three():
    assert log_root("here", "out") == Path("here")
    assert log_root(None, "out") == Path("out/logs")
    assert log_root(None, None) == Path("logs")


def test_numbers_reach_the_event_files_and_the_json_lines(tmp_path):
    trackers = create(tmp_path)
    for step in (1, 2, 3):
        trackers.log(step, {"loss/current": 1 / step, "lr/unet": 1e-4})
    trackers.close()
    assert trackers.run_dir == tmp_path / "logs" / f"run_{STAMP}"
    events = read_events(trackers.run_dir / "network_train")
    assert events.Tags()["scalars"] == ["loss/current", "lr/unet"]
    found = [(e.step, e.value) for e in events.Scalars("loss/current")]
    assert found == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    rows = [json.loads(line) for line in (trackers.run_dir / "loss.jsonl").open()]
    assert rows[2] == {"step": 3, "loss/current": 1 / 3, "lr/unet": 1e-4}


def test_pictures_reach_the_event_files_step_by_step(tmp_path):
    trackers = create(tmp_path)
    for step in (4, 8):
        trackers.show(step, {"previews/00": numpy.full((2, 3, 3), 10 * step, numpy.uint8)})
    trackers.close()
    shown = read_events(trackers.run_dir / "network_train").Images("previews/00")
    assert [(each.step, each.height, each.width) for each in shown] == [(4, 2, 3), (8, 2, 3)]
    with Image.open(io.BytesIO(shown[1].encoded_image_string)) as picture:
        assert picture.getpixel((2, 1)) == (80, 80, 80)
    assert (trackers.run_dir / "loss.jsonl").read_text() == ""


def test_json_lines_are_readable_while_the_run_goes_on(tmp_path):
    trackers = create(tmp_path)
    trackers.log(1, {"loss/current": 0.5})
    assert json.loads((trackers.run_dir / "loss.jsonl").read_text())["step"] == 1
    trackers.close()


def test_settings_are_written_only_when_asked_for_and_without_secrets(tmp_path):
    config = {"learning_rate": 1e-4, "wandb_api_key": "secret", "caption": "a|b"}
    trackers = create(tmp_path / "with", config, log_config=True, log_tracker_name="mine")
    trackers.close()
    events = read_events(trackers.run_dir / "mine")
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| learning_rate | 0.0001 |" in text and "a\\|b" in text and "secret" not in text
    trackers = create(tmp_path / "without", config)
    trackers.close()
    assert read_events(trackers.run_dir / "network_train").Tags()["tensors"] == []


def test_none_writes_nothing_and_so_do_processes_but_the_first(tmp_path):
    for trackers in (
        create(tmp_path, log_with="none"),
        create_trackers(None, output_dir=tmp_path, output_name="x", config={}, now=NOW),
    ):
        trackers.log(1, {"loss/current": 1.0})
        trackers.close()
        assert trackers.run_dir is None
    assert list(tmp_path.iterdir()) == []


def test_tracker_settings_come_from_a_file(tmp_path):
    file = tmp_path / "trackers.toml"
    file.write_text('[tensorboard]\nfilename_suffix = ".mine"\n', encoding="utf-8")
    trackers = create(tmp_path, log_tracker_config=str(file))
    trackers.close()
    (event_file,) = (trackers.run_dir / "network_train").iterdir()
    assert event_file.name.endswith(".mine")


def test_mistakes_in_the_tracker_settings_are_named(tmp_path):
    file = tmp_path / "trackers.toml"
    file.write_text("[tensorbord]\nflush_secs = 1\n", encoding="utf-8")
    (problem,) = check_logging(options(log_tracker_config=str(file)))
    assert problem.where == "tensorbord" and problem.source == str(file)
    file.write_text("[tensorboard\n", encoding="utf-8")
    (problem,) = check_logging(options(log_tracker_config=str(file)))
    assert "cannot be read" in problem.message
    (problem,) = check_logging(options(log_tracker_config=str(tmp_path / "absent.toml")))
    assert "absent.toml" in problem.message
    file.write_text("[tensorboard]\nflush_sec = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean flush_secs"):
        create(tmp_path, log_tracker_config=str(file))


@pytest.mark.parametrize("table", ['flush_secs = "x"', 'max_queue = "x"', "filename_suffix = 5",
    'filename_suffix = "/none/x"', "flush_sec = 1"])  # fmt: skip
def test_what_tensorboard_does_not_take_is_told_before_a_run(tmp_path, table):
    file = tmp_path / "trackers.toml"
    file.write_text(f"[tensorboard]\n{table}\n", encoding="utf-8")
    (problem,) = check_logging(options(log_tracker_config=str(file)))
    assert str(file) in f"{problem.source} {problem.message} {problem.where}" or "flush" in str(
        problem
    )


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"tensorboard_host": "a..b"}, "nothing free at a..b"),
        ({"tensorboard_host": "8.8.8.8", "tensorboard_port": 65530}, "from 65530 to 65535"),
        ({"tensorboard_logdir": __file__}, "expected the folder"),
    ],
)
def test_an_address_that_cannot_be_served_is_told_before_a_run(changes, word):
    (problem,) = check_logging(options(auto_start_tensorboard=True, **changes))
    assert word in f"{problem.where} {problem.message}"


def test_a_log_folder_that_cannot_be_made_any_more_lets_the_run_go_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trackers = create(tmp_path, logging_dir=str(tmp_path / "file"))
    trackers.log(1, {"loss/current": 1.0})
    trackers.close()
    assert "nothing is logged" in caplog.text and len(caplog.records) == 1
    assert trackers.describe() == []


def test_event_files_that_vanish_are_told_once_and_the_other_logs_go_on(
    tmp_path, caplog, monkeypatch
):
    unhandled = []
    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    trackers = create(tmp_path)
    events = trackers.writers[-1].writer
    shutil.rmtree(trackers.run_dir / "network_train")
    for step in range(1, 4):
        trackers.log(step, {"loss/current": 1.0})
        with contextlib.suppress(OSError):  # the thread has met the error
            events.flush()
    trackers.close()
    assert caplog.text.count("TensorBoard: no more logs from here on") == 1
    assert len(caplog.records) == 1 and not unhandled
    lines = (trackers.run_dir / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_ends_the_lines_of_numbers_and_not_the_run(tmp_path, caplog):
    trackers = create(tmp_path)
    trackers.close()
    (trackers.run_dir / "loss.jsonl").unlink()
    (trackers.run_dir / "loss.jsonl").symlink_to("/dev/full")
    trackers = create(tmp_path)
    for step in range(1, 4):
        trackers.log(step, {"loss/current": 1.0})
    trackers.close()
    assert caplog.text.count("JsonLines: no more logs from here on") == 1
    events = read_events(trackers.run_dir / "network_train")
    assert len(events.Scalars("loss/current")) == 3


def test_a_disk_that_fills_within_a_line_leaves_whole_lines(tmp_path):
    log = JsonLines(tmp_path / "loss.jsonl")
    log.write(1, {"loss": 1.0})
    size = (tmp_path / "loss.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
    try:
        with pytest.raises(OSError):
            log.write(2, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    assert json.loads((tmp_path / "loss.jsonl").read_text()) == {"step": 1, "loss": 1.0}


def test_missing_wandb_names_the_pip_command():
    from importlib.util import find_spec

    if find_spec("wandb"):
        pytest.skip("wandb is installed here")
    (problem,) = check_logging(options(log_with="all"))
    assert "pip install wandb" in problem.message


def test_wandb_receives_the_numbers_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = create(tmp_path, {"seed": 1}, log_with="wandb", log_config=True, wandb_run_name="n")
    trackers.log(1, {"loss/current": 0.25})
    trackers.log(2, {"loss/current": 0.5})  # wandb takes step 1 as finished only now
    run = trackers.writers[1].run
    assert run.summary["loss/current"] == 0.25 and run.config["seed"] == 1 and run.name == "n"
    trackers.close()


def test_the_next_free_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 20


def test_no_free_port_is_a_config_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="auto_start_tensorboard"):
            free_port("127.0.0.1", taken.getsockname()[1], tried=1)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def wait_until(condition, seconds=600):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_the_server_answers_and_stops_with_the_run(tmp_path):
    port = free_port("127.0.0.1", 16006)
    trackers = create(tmp_path, auto_start_tensorboard=True, tensorboard_port=port)
    url, log = trackers.server.url, trackers.run_dir / "tensorboard_server.log"
    assert f"TensorBoard: {url}" in trackers.describe()
    assert wait_until(lambda: answers(url)), log.read_text()
    trackers.close()
    assert not answers(url)


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_the_server_stops_when_the_run_is_killed(tmp_path):
    port = free_port("127.0.0.1", 17006)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from library.watching.tensorboard_server import TensorBoardServer\n"
        "folder = Path(sys.argv[1])\n"
        "TensorBoardServer(folder, '127.0.0.1', int(sys.argv[2]), folder / 'log')\n"
        "time.sleep(120)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(port)], cwd=ROOT)
    url = f"http://127.0.0.1:{port}/"
    try:
        assert wait_until(lambda: answers(url)), (tmp_path / "log").read_text()
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert wait_until(lambda: not answers(url))


def test_a_log_folder_that_the_system_cannot_look_at_ends_the_logs_and_not_the_run(
    tmp_path, caplog
):
    """A share that is no longer connected answers with an error of its own, not with "no such file"."""
    log = JsonLines(tmp_path / "loss.jsonl")
    trackers = Trackers(tmp_path / ("x" * 300), (log,))  # a path for which stat fails otherwise
    trackers.log(1, {"loss": 1.0})
    assert not trackers.writers
    assert "nothing is logged from here on" in caplog.text
    log.close()
