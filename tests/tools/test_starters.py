"""The files for a double click: which Python they find, and what they hand on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

BASH = shutil.which("bash")
HANDED_ON = "import os, sys; print(sys.argv[1:], os.getcwd()); sys.exit(3)"
needs_bash = pytest.mark.skipif(os.name == "nt" or not BASH, reason="needs bash")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A project with the starter and a small tools/quickstart.py, at a path that is hard to quote."""
    folder = tmp_path / "my 训练 $(folder)"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "quickstart.sh", folder)
    (folder / "tools/quickstart.py").write_text(HANDED_ON, encoding="utf-8")
    return folder


def start(
    folder: Path, programs: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the starter where only these programs are found, from another folder."""
    path = folder.parent / "programs"
    path.mkdir()
    os.symlink(str(shutil.which("dirname")), path / "dirname")
    for name, text in programs.items():
        (path / name).write_text(f"#!{BASH}\n{text}\n", encoding="utf-8")
        (path / name).chmod(0o755)
    return subprocess.run(
        [str(BASH), str(folder / "quickstart.sh"), *arguments],
        env={"PATH": str(path), "PYTHONUTF8": "1"},
        cwd=folder.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@needs_bash
def test_a_python_that_fits_is_taken_and_one_that_does_not_is_passed_by(folder):
    fits = f'exec "{sys.executable}" "$@"'
    done = start(folder, {"python3.12": "exit 1", "python3": fits}, "--no-install", "a b")
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"{['--no-install', 'a b']} {folder}\n"


@needs_bash
def test_uv_is_asked_where_there_is_no_python(folder):
    done = start(folder, {"uv": 'echo "$# $@"; exit 4'}, "a b")
    assert (done.returncode, done.stdout) == (4, "4 run --script tools/quickstart.py a b\n")


@needs_bash
def test_uv_is_fetched_into_the_folder_where_it_is_missing(folder):
    fetched = "mkdir .uv; echo '#!/bin/sh\necho fetched' > .uv/uv; chmod +x .uv/uv"
    more = {name: f'exec {shutil.which(name)} "$@"' for name in ("sh", "mkdir", "chmod")}
    done = start(
        folder, {"curl": f"cat <<'END'\n{fetched}\nEND", "cat": 'exec /bin/cat "$@"', **more}
    )
    assert done.returncode == 0 and done.stdout.endswith("fetched\n"), done.stderr


@needs_bash
def test_without_python_and_network_it_is_said_what_to_install(folder):
    done = start(folder, {"sh": "exit 1"})
    assert done.returncode == 1
    assert "python.org" in done.stderr and "请先安装" in done.stderr


def test_windows_can_read_its_starters():
    """cmd reads in the code page of the system, Windows PowerShell UTF-8 only behind a mark."""
    assert (ROOT / "quickstart.bat").read_bytes().isascii()
    assert b"quickstart.ps1" in (ROOT / "quickstart.bat").read_bytes()
    assert (ROOT / "quickstart.ps1").read_bytes().startswith(b"\xef\xbb\xbf")
    assert "*.bat text eol=crlf" in (ROOT / ".gitattributes").read_text(encoding="utf-8")
