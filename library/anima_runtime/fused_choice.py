"""Whether a run computes norms, rotations, gates and residual sums in fused kernels, which Triton makes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from library.anima_backend.modelling.kernel_trial import why_not
from library.anima_runtime.config_adapter import AnimaConfig
from library.errors import ConfigError, Problem

logger = logging.getLogger(__name__)

PLAIN = "torch's kernels are used between the matrix products"


def choose_fused(
    anima: AnimaConfig,
    saved: Mapping[str, Any] | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_main: bool = True,
) -> bool:
    """The same on every process; the first tries them. Raises ConfigError where those asked for fail.

    saved: what the state, if there is one, says of the run that wrote it
    dtype: of a step
    """
    from accelerate.utils import broadcast_object_list

    asked = anima.fused_kernels
    was_plain = saved is not None and not saved.get("fused_kernels")
    if device.type != "cuda":
        if asked == "always":
            logger.warning("fused_kernels are for CUDA: %s.", PLAIN)
        return False
    if asked == "off" or (asked == "auto" and was_plain):
        logger.info("%s, %s", PLAIN, "as asked for" if asked == "off" else "as in the state")
        return False
    found = why_not(device, dtype) if is_main else None
    reason: str | None = broadcast_object_list([found])[0]
    if reason is None:
        logger.info("between the matrix products kernels are fused, by Triton")
        return True
    if asked == "always":
        message = f"they do not work here: {reason}. Leave it out: {PLAIN} then."
        raise ConfigError(Problem(message, "fused_kernels = always"))
    logger.warning("%s, since the fused ones do not work here: %s", PLAIN, reason)
    return False


def are_likely(anima: AnimaConfig, dtype: torch.dtype) -> bool:
    """Whether a run in a dtype uses them on this machine's card; on any with Triton where there is none here."""
    if anima.fused_kernels == "off":
        return False
    return not torch.cuda.is_available() or why_not(torch.device("cuda"), dtype) is None
