"""The environment that the README's two commands share: Python, .venv, torch, requirements.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from library.system import console
from tools import _torch_choice as torch_choice

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"

commands_run: list[str] = []
"""Every command started through `run`, as one could type it."""


class StepFailed(Exception):
    """A command ended with an error; the text says which and what to do."""


def torch_arguments() -> list[str]:
    """The pip arguments that install the torch of this machine; says which and why."""
    os_name, listing = platform.system(), torch_choice.ask_nvidia_smi()
    amd = not listing.capabilities and torch_choice.has_amd_card()
    choice = torch_choice.choose(
        torch_choice.Machine(os_name, listing.capabilities, listing.driver, amd)
    )
    print(choice.reason + (f"\n({listing.note})" if listing.note else ""), flush=True)
    reachable = choice.build == "cpu" and index_answers()
    return torch_choice.install_arguments(choice.build, os_name, reachable)


def index_answers(url: str = f"{torch_choice.INDEX}/cpu", seconds: float = 5.0) -> bool:
    """Whether `url` answers within `seconds`."""
    request = urllib.request.Request(f"{url}/torch/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def venv_python() -> Path:
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return VENV / inside


def accelerate(python: Path) -> list[str | Path]:
    """The accelerate command that belongs to `python`."""
    beside = shutil.which("accelerate", path=str(python.parent))
    return [beside] if beside else [python, "-m", "accelerate.commands.accelerate_cli"]


def plain_environment() -> dict[str, str]:
    """The user's environment, without the path that the tools' own restart added."""
    env = dict(os.environ)
    kept = [p for p in env.pop("PYTHONPATH", "").split(os.pathsep) if p and Path(p) != ROOT]
    if kept:
        env["PYTHONPATH"] = os.pathsep.join(kept)
    return env


def run(command: Sequence[str | Path], *, advice: str = "") -> None:
    """Run a command in the project's root, showing it first; a failure raises StepFailed."""
    words = [str(word) for word in command]
    shown = subprocess.list2cmdline(words).replace(str(ROOT) + os.sep, "")
    commands_run.append(shown)
    print(f"\n$ {shown}", flush=True)
    code = subprocess.run(words, cwd=ROOT, env=plain_environment(), check=False).returncode
    if code:
        raise StepFailed(f"This command ended with exit code {code}:\n  {shown}\n{advice}".rstrip())


def answers(python: Path, code: str) -> bool:
    """Whether `python -c code` succeeds, without output."""
    command = [str(python), "-c", code]
    env = plain_environment()
    return subprocess.run(command, capture_output=True, env=env, check=False).returncode == 0


def bring_pip(python: Path) -> bool:
    """Give an environment pip that was made without it, as uv makes them; False if that fails."""
    command = [str(python), "-m", "ensurepip"]
    env = plain_environment()
    return subprocess.run(command, capture_output=True, env=env, check=False).returncode == 0


def prepare(requirements: Sequence[str], *, install: bool) -> Path:
    """Make .venv with torch and the requirements files, and return its Python.

    install False: the current environment is used as it is.
    """
    if not install:
        return Path(sys.executable)
    python = venv_python()
    if not (python.exists() and (answers(python, "import pip") or bring_pip(python))):
        run([sys.executable, "-m", "venv", "--clear", VENV], advice="Is the venv module installed?")
    if not answers(python, "import torch"):
        advice = "Is the network up, and is there 5 GB of disk?"
        run([python, "-m", "pip", *torch_arguments()], advice=advice)
    for file in requirements:
        run([python, "-m", "pip", "install", "-q", "-r", file], advice="Is the network up?")
    return python


def say_device(python: Path) -> None:
    """Print which torch was found and whether it sees a CUDA device."""
    code = (
        "import json, torch; ok = torch.cuda.is_available();"
        "print(json.dumps([torch.__version__, torch.cuda.get_device_name(0) if ok else None]))"
    )
    command = [str(python), "-c", code]
    done = subprocess.run(command, env=plain_environment(), stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise StepFailed(f"torch cannot be imported by {python}. Run this without --no-install.")
    version, device = json.loads(done.stdout)
    shown = device or "(the CPU is used / 使用 CPU)"
    print(f"torch {version}, torch.cuda.is_available() = {device is not None} {shown}")
    if device is None and torch_choice.ask_nvidia_smi().capabilities:
        print(
            "An NVIDIA card is there but this torch cannot use it: delete .venv and run "
            "tools/quickstart.py again, see docs/anima_dependency_guide.md / "
            "检测到显卡但 torch 无法使用：删除 .venv 后重新运行 tools/quickstart.py。"
        )


def main_guarded(main) -> int:
    """Run a tool's main; a failed step is told in its own words, without a traceback."""
    console.secure()
    try:
        return main() or 0
    except StepFailed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
