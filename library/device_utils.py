"""Names of dtypes, and giving memory back to the device."""

from __future__ import annotations

import gc

import torch

PRECISIONS = {
    "no": torch.float32,
    "float": torch.float32,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def precision_dtype(name: str) -> torch.dtype:
    """The dtype of a precision name as sd-scripts spells it: no, float, fp32, fp16, bf16."""
    return PRECISIONS[name]


def clean_memory_on_device(device: torch.device | str) -> None:
    """Collect garbage and return cached blocks of the device to the driver."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
