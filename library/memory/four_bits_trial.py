"""Whether weights can be stored in 4 bits here: by bitsandbytes, which need not be installed."""

from __future__ import annotations

import re
from importlib import metadata

import torch

from library.memory.quantised import BLOCK, kind_of
from library.memory.trials import apart_from
from library.settings.user_classes import missing_package
from library.utils import quiet_libraries

PACKAGE, OLDEST = "bitsandbytes", (0, 50)
REQUIREMENT = f"{PACKAGE}>={'.'.join(map(str, OLDEST))}"
OTHERWISE = f"Run: pip install --upgrade {PACKAGE}; or use fp8_base or int8_base, without packages."
FURTHEST = 0.15  # |found - given| / |given| of values that are normally distributed: NF4's is 0.09


def why_not(device: torch.device) -> str | None:
    """Why weights cannot be stored in 4 bits and made again on `device`, and what to do; None: they can."""
    if message := missing_package(PACKAGE, REQUIREMENT):
        return message
    try:
        if message := why_too_old(metadata.version(PACKAGE)):
            return message
        declare_operators()
        apart = distance(device)
    except (ImportError, OSError, RuntimeError, NotImplementedError, AttributeError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"bitsandbytes does not work on {device} ({told}). {OTHERWISE}"
    if apart > FURTHEST:
        return f"bitsandbytes computes wrongly on {device}. {OTHERWISE}"
    return None


def why_too_old(version: str) -> str | None:
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers >= OLDEST:
        return None
    return f'bitsandbytes {version} is too old. Run: pip install --upgrade "{REQUIREMENT}"'


def declare_operators() -> None:
    """Import the package, which is slow."""
    quiet_libraries()
    import bitsandbytes  # noqa: F401


def distance(device: torch.device) -> float:
    """Of a random matrix as it is stored from itself, relative."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(BLOCK, 2 * BLOCK, generator=generator)
    stored = kind_of("nf4").of(given.to(device), "nf4")
    return apart_from(stored.dense(torch.float32).cpu(), given)
