"""What of this machine may stand in a run's way: compilers, page-locked memory, drivers, proxies.

Each rule is a function of facts; below them is how the facts are found.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.request import getproxies

import psutil
import torch

from library.anima_doctor.page import program_says, size_text
from library.settings.flags.precision import PrecisionOptions

CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
VSWHERE = ("Microsoft Visual Studio", "Installer", "vswhere.exe")
CPP_TOOLS = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
SPILL = (
    "where it is full the driver moves it into the system's memory, unsaid, and steps get many times "
    "slower. NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback Policy: Prefer No Sysmem "
    "Fallback makes it an error that names the place"
)


@dataclass(frozen=True)
class Compilers:
    """triton: can be imported. cl: MSVC is on the path. visual_studio: a folder with it, or ""."""

    triton: bool
    cl: bool
    visual_studio: str = ""


def compile_warnings(found: Compilers, on_cuda: bool) -> Iterator[str]:
    """What --compile lacks on Windows, where neither compiler comes with torch."""
    if on_cuda and not found.triton:
        yield (
            "compile: triton is not installed, and torch's inductor needs it for the GPU. "
            "pip install triton-windows, in the release for this torch; or leave compile out."
        )
    if found.cl:
        return
    if found.visual_studio:
        yield (
            f"compile: MSVC is in {found.visual_studio}, but cl.exe is not on the path. Start the run in "
            "Visual Studio's x64 Native Tools Command Prompt; or leave compile out."
        )
    else:
        yield (
            "compile: MSVC's cl.exe was not found, and torch's inductor compiles C++ with it. Install "
            "Build Tools for Visual Studio with Desktop development with C++; or leave compile out."
        )


def pinned_warning(pinned: float, ram: float) -> str | None:
    """Where `pinned` of `ram` bytes will be page-locked, and that is more than a half."""
    if pinned <= ram / 2:
        return None
    return (
        f"{size_text(pinned)} will be page-locked for swapped blocks and parked inputs: more than half of "
        f"the memory ({size_text(ram)}). Windows does not grant that, and other programs are short of it. "
        "Swap fewer blocks, or let activations be computed again instead."
    )


def spills(os_name: str, release: str) -> bool:
    """Whether this system's NVIDIA driver spills: on Windows, and below it WSL. Of platform's texts."""
    return os_name == "Windows" or "microsoft" in release.lower()


def network_rows(
    proxies: Mapping[str, str], environ: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """What downloads go through: proxies without names and passwords, and files of certificates."""
    for scheme, address in sorted(proxies.items()):
        name = "no proxy for" if scheme == "no" else f"proxy for {scheme}"
        yield name, address if scheme == "no" else without_login(address)
    for name in CERTIFICATES:
        if place := environ.get(name):
            missing = (
                "" if Path(place).exists() else ": does not exist, downloads over https will fail"
            )
            yield f"certificates ({name})", f"{place}{missing}"


def without_login(address: str) -> str:
    """A proxy's address without user, password, path and query."""
    scheme, mark, rest = address.rpartition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{'***@' if at else ''}{host.partition('/')[0].partition('?')[0]}"


def warnings_of_compiling(options: PrecisionOptions) -> list[str]:
    """What compile would lack here."""
    wanted = options.compile and options.compile_backend == "inductor"
    if not wanted or platform.system() != "Windows":
        return []
    return list(compile_warnings(compilers(), torch.cuda.is_available()))


def compilers() -> Compilers:
    """Those of this Windows."""
    programs = os.environ.get("ProgramFiles(x86)", "")
    vswhere = Path(programs, *VSWHERE)
    visual_studio = ""
    if programs and vswhere.exists():
        asked = ("-latest", "-products", "*", "-requires", CPP_TOOLS)
        said = program_says(str(vswhere), *asked, "-property", "installationPath")
        visual_studio = "" if said == "unknown" else said
    return Compilers(find_spec("triton") is not None, bool(shutil.which("cl")), visual_studio)


def memory_rows() -> Iterator[tuple[str, str]]:
    """For the table of the environment."""
    if torch.cuda.is_available() and spills(platform.system(), platform.release()):
        yield "GPU memory", SPILL


def pinned_here(pinned: float) -> str | None:
    """`pinned_warning` for this machine; a run on the CPU locks nothing."""
    return (
        pinned_warning(pinned, psutil.virtual_memory().total) if torch.cuda.is_available() else None
    )


def network_here() -> list[tuple[str, str]]:
    return list(network_rows(getproxies(), os.environ))
