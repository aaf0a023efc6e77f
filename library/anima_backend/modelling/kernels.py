"""The kernels of attention by the names that the user writes; their functions are attention's.

Nothing heavy is imported here: the flags read this table.
"""

from __future__ import annotations

AUTO = "auto"
KERNELS = ("torch", "cudnn", "efficient", "xformers", "flash", "flash3")
FORKS_WORDS = {"torch": "torch", "xformers": "xformers"}
SD_SCRIPTS_WORDS = {AUTO: AUTO, "sdpa": "torch", **{name: name for name in KERNELS}}
"""What the early fork's flag, and sd-scripts', take -> the kernel, or AUTO: the fastest."""


def chosen_kernel(asked: set[str]) -> str:
    """The kernel where several flags ask: one that is named before AUTO, torch's own after the others."""
    order = (*KERNELS[1:], KERNELS[0])
    return next((name for name in order if name in asked), AUTO)
