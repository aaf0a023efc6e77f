"""The kernels of attention by the names that the user writes; their functions are attention's.

Nothing heavy is imported here: the flags read this table.
"""

from __future__ import annotations

KERNELS = ("torch", "xformers", "flash")
FORKS_WORDS = {"torch": "torch", "xformers": "xformers"}
SD_SCRIPTS_WORDS = {"torch": "torch", "sdpa": "torch", "xformers": "xformers", "flash": "flash"}
"""What the early fork's flag, and sd-scripts', take -> the kernel."""


def chosen_kernel(asked: set[str]) -> str:
    """The kernel where several flags ask: one beside torch's own before it, xformers before flash."""
    return next((name for name in KERNELS[1:] if name in asked), "torch")
