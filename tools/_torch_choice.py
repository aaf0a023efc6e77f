"""Which build of torch a machine gets: by its cards, their driver and its system.

`choose` is a table and its reading; `ask_nvidia_smi` finds the facts. Standard library only: this runs
before anything is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

INDEX = "https://download.pytorch.org/whl"
PLAIN_TORCH = "torch==2.13.0"  # where PyTorch's CPU index does not answer
SECONDS_FOR_NVIDIA_SMI = 20
QUERY = ("--query-gpu=compute_cap,driver_version", "--format=csv,noheader")
CARD = re.compile(r"\s*(\d+)\.(\d+)\s*,\s*(\d+(?:\.\d+)*)\s*")
Version = tuple[int, ...]


@dataclass(frozen=True)
class Build:
    """A build of torch for CUDA: the compute capabilities it has code for, and the first driver.

    Capabilities: as PyTorch's release workflows list them. Drivers: NVIDIA's CUDA release notes, the
    first that was made for this CUDA, by platform.system(); older ones of the same CUDA 12 would do for
    much, but not for code that is compiled while it runs.
    """

    name: str
    first: Version
    last: Version
    drivers: dict[str, Version]


BUILDS = (  # the first that fits is taken
    Build("cu130", (7, 5), (99, 9), {"Linux": (580, 65), "Windows": (580,)}),
    Build("cu128", (7, 5), (12, 9), {"Linux": (570, 26), "Windows": (570, 65)}),
    Build("cu126", (5, 0), (9, 9), {"Linux": (525, 60), "Windows": (528, 33)}),
)


@dataclass(frozen=True)
class Machine:
    """os_name: platform.system(). capabilities: of each NVIDIA card. amd: an AMD card can compute."""

    os_name: str
    capabilities: tuple[Version, ...] = ()
    driver: Version = ()
    amd: bool = False


@dataclass(frozen=True)
class Choice:
    """build: of BUILDS, or "cpu". reason: in both languages, one line each."""

    build: str
    reason: str


def choose(machine: Machine) -> Choice:
    """The build for the newest of the machine's cards, else the one for the CPU."""
    if not machine.capabilities:
        return without_nvidia(machine)
    newest = max(machine.capabilities)
    card = f"compute capability {dotted(newest)}, driver {dotted(machine.driver)}"
    usable = [b for b in BUILDS if machine.os_name in b.drivers and b.first <= newest <= b.last]
    for build in usable:
        if machine.driver >= build.drivers[machine.os_name]:
            return Choice(build.name, f"torch for CUDA, {build.name}: {card} / 显卡版 torch")
    if not usable:
        return Choice(
            "cpu", f"torch for the CPU: no build has code for this card ({card}) / CPU 版 torch"
        )
    wanted = dotted(usable[-1].drivers[machine.os_name])
    return Choice(
        "cpu",
        f"torch for the CPU: the NVIDIA driver is too old ({card}); update it to {wanted} or newer, delete "
        f".venv and run this again.\nCPU 版 torch：NVIDIA 驱动太旧，请更新到 {wanted} 以上，删除 .venv 后重新运行。",
    )


def without_nvidia(machine: Machine) -> Choice:
    if machine.os_name == "Darwin":
        why = "Apple's MPS is not supported for training / 不支持用苹果的 MPS 训练"
    elif machine.amd:
        why = "AMD's ROCm is not supported / 不支持 AMD 的 ROCm"
    else:
        why = "no NVIDIA card was found / 没有找到 NVIDIA 显卡"
    return Choice("cpu", f"torch for the CPU: {why}")


def install_arguments(build: str, os_name: str, reachable: bool) -> list[str]:
    """The pip arguments that install a build. reachable: PyTorch's CPU index answers.

    PyPI's torch is for CUDA 13 on Linux, which spares a second index, and for the CPU elsewhere.
    """
    if build == "cu130" and os_name == "Linux":
        return ["install", "torch"]
    if build != "cpu":
        return ["install", "torch", "--index-url", f"{INDEX}/{build}"]
    if reachable and os_name != "Darwin":
        return ["install", "torch", "--index-url", f"{INDEX}/cpu"]
    return ["install", PLAIN_TORCH]


@dataclass(frozen=True)
class Listing:
    """What nvidia-smi says. note: why it says nothing of a card; "" where it does."""

    capabilities: tuple[Version, ...] = ()
    driver: Version = ()
    note: str = ""


def read_listing(text: str) -> Listing:
    """The cards in the output of `nvidia-smi` to QUERY: lines such as "8.6, 560.35.03"."""
    found = [match for line in text.splitlines() if (match := CARD.fullmatch(line))]
    if not found:
        said = " ".join(text.split())[:120] or "nothing"
        return Listing(note=f"nvidia-smi names no card that could be read; it says: {said}")
    capabilities = tuple((int(match[1]), int(match[2])) for match in found)
    return Listing(capabilities, tuple(map(int, found[0][3].split("."))))


def ask_nvidia_smi(command: Sequence[str] | None = None) -> Listing:
    """The machine's NVIDIA cards. command: in place of the nvidia-smi of the path."""
    program = shutil.which("nvidia-smi")
    if command is None and program is None:
        return Listing(note="nvidia-smi, which the NVIDIA driver brings, is not there")
    try:
        done = subprocess.run(
            [*(command or [str(program)]), *QUERY],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_FOR_NVIDIA_SMI,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Listing(note=f"nvidia-smi did not answer: {type(error).__name__}")
    return read_listing(done.stdout if done.returncode == 0 else f"{done.stdout} {done.stderr}")


def has_amd_card() -> bool:
    """Whether AMD's compute driver is loaded (Linux)."""
    return os.path.exists("/dev/kfd")


def dotted(version: Version) -> str:
    return ".".join(map(str, version))
