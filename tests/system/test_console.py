"""No output of a program can fail: whatever the console's encoding, also when its reader is gone."""

import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from library.errors import Problem, UserError
from library.system import console, stop_signals
from library.system.program import run_main
from tests.helpers.paths import ROOT
from tests.helpers.workers import forking_program
from tools import _environment as environment
from tools import _quickstart

PROGRAMS = sorted(
    {
        *(path.stem for path in ROOT.glob("*.py")),
        *(f"tools.{path.stem}" for path in ROOT.glob("tools/[!_]*.py")),
        *(f"tools.bench.{path.stem}" for path in ROOT.glob("tools/bench/[!_]*.py")
          if "\ndef main(" in path.read_text(encoding="utf-8")),
        *("tools._quickstart", "tools._run_tests"),
    }
    - {"tools.quickstart", "tools.run_tests"}  # these start the two above as they are
)
ENCODINGS = ("ascii", "cp1252", "cp437", "cp936", "utf-8")
CHINESE, ESCAPED = "完成", "\\u5b8c\\u6210"
NAME = "\udcff.png"  # as Python gives a file name that is not UTF-8


def stream_to(file, encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding=encoding, errors=errors)


@pytest.fixture(autouse=True)
def signals_as_before():
    """The trainer's entry sets what signals do, for a process of its own."""
    handlers = {number: signal.getsignal(number) for number in stop_signals.signals()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def own_streams(monkeypatch):
    """Put standard streams of a console in their places: strict output, as Python gives it."""
    kept = []  # a stream that nobody holds closes its file

    def use(output, encoding: str) -> None:
        streams = stream_to(output, encoding), stream_to(io.BytesIO(), encoding, "backslashreplace")
        kept.extend(streams)
        for name, stream in zip(("stdout", "stderr"), streams):
            monkeypatch.setattr(sys, name, stream)

    return use


def run_program(module: str, monkeypatch, *arguments: str) -> int:
    """A program in this process, as `python -m` runs it; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return ended.value.code or 0


def test_the_programs_are_found():
    assert {"anima_train_network", "tools.doctor", "tools.bench.bench_data"} < set(PROGRAMS)


@pytest.mark.parametrize("module", PROGRAMS)
def test_every_program_prints_on_any_console(module, monkeypatch, own_streams):
    for encoding in ENCODINGS:
        written = io.BytesIO()
        own_streams(written, encoding)
        code = run_program(module, monkeypatch, "--help")
        print(CHINESE, NAME, "\ud800", flush=True)  # what else it might have printed
        assert code == (2 if module == "train_network" else 0)
        *help_text, last = written.getvalue().decode(encoding).splitlines()
        shown = CHINESE if encoding in ("utf-8", "cp936") else ESCAPED
        assert last == f"{shown} \\udcff.png \\ud800"
        assert help_text


@pytest.mark.parametrize("module", PROGRAMS)
def test_every_program_outlives_the_reader_of_its_output(module, monkeypatch, own_streams):
    reading, writing = os.pipe()
    os.close(reading)
    own_streams(os.fdopen(writing, "wb"), "utf-8")
    assert run_program(module, monkeypatch, "--help") in (0, 2)
    print("more", flush=True)


def test_a_program_without_any_console_can_print(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert run_program("tools.doctor", monkeypatch, "--help") == 0
    assert sys.stdout.write("x") and sys.stderr.write("x")
    sys.stdout.close(), sys.stderr.close()


def test_lines_written_together_outlive_the_reader_too(own_streams):
    reading, writing = os.pipe()
    os.close(reading)
    own_streams(os.fdopen(writing, "wb", buffering=0), "utf-8")
    console.secure()
    sys.stdout.writelines([CHINESE, "\n"])
    sys.stdout.flush()


def test_a_stream_that_is_closed_swallows_what_it_is_given(own_streams):
    own_streams(io.BytesIO(), "utf-8")
    console.secure()
    sys.stdout.close()
    print(CHINESE, flush=True)
    sys.stdout.writelines([CHINESE])


def test_errors_are_told_on_any_console(monkeypatch, own_streams):
    def main():
        raise UserError(Problem(CHINESE, where="第 1 行", source=NAME))

    own_streams(io.BytesIO(), "cp1252")
    sys.stderr.reconfigure(errors="strict")
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    assert ESCAPED.encode() in sys.stderr.buffer.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_output_that_is_lost_to_a_full_disk_is_told(own_streams):
    with open("/dev/full", "wb") as full:
        own_streams(full, "utf-8")
        console.secure()
        print("a report", flush=True)
        print("more", flush=True)
        sys.stderr.flush()
        told = sys.stderr.buffer.getvalue().decode()
    assert told.count("standard output cannot be written") == 1 and "No space left" in told


def test_what_quickstart_says_at_its_end_fits_any_console(own_streams, tmp_path):
    own_streams(io.BytesIO(), "cp1252")

    def main():
        environment.say_device(forking_program(tmp_path))
        print(_quickstart.closing_words("40 tensors", 12.0))
        raise environment.StepFailed(CHINESE)

    assert environment.main_guarded(main) == 1
    sys.stdout.flush(), sys.stderr.flush()
    said = sys.stdout.buffer.getvalue().decode("cp1252")
    assert "torch.cuda.is_available() = " in said and f"Done in 12 s. / {ESCAPED}" in said
    assert ESCAPED.encode() in sys.stderr.buffer.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's `| head`")
def test_a_pipe_that_closes_early_leaves_no_trace():
    program = f"{sys.executable} -m tools.make_flags_doc --help"
    command = f"({program}; echo code $? >&2) | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "code 0\n")
