"""Names of dtypes, moving tensors without waiting, and giving memory back to the device."""

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


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` on `device` without making the host wait: from pinned memory where the device is a GPU."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def clean_memory_on_device(device: torch.device | str) -> None:
    """Collect garbage and return cached blocks of the device to the driver."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
