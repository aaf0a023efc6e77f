"""How a run's texts are padded: with rows of zeros that are attended to, or with zeros that are counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from library.anima_backend.modelling.kernels import AUTO
from library.anima_backend.modelling.padded_text import STEP, row_count
from library.anima_runtime.config_adapter import AnimaConfig
from library.training.compiling import has_any_size

if TYPE_CHECKING:
    from library.data.catalogue import Catalogue
    from library.settings.flags.precision import PrecisionOptions

ROWS, FOLD = "rows", "fold"
LETTERS = 3  # of a caption for a row of its text, of tags about so many and of sentences more


@dataclass(frozen=True)
class Padding:
    """form: ROWS, FOLD, or "" where a trial has to tell; why: it is so."""

    form: str
    why: str


def settled(
    anima: AnimaConfig, saved: Mapping[str, Any] | None, device: torch.device, needs_rows: str
) -> Padding:
    """How texts are padded by what is known without a trial.

    saved:      what the state, if there is one, says of the run that wrote it; one from before zeros
                could be counted says nothing
    needs_rows: of why_rows
    """
    if anima.text_padding != AUTO:
        return Padding(anima.text_padding, "as asked for")
    if saved is not None:
        return Padding(saved.get("text_padding", ROWS), "as in the state")
    if needs_rows:
        return Padding(ROWS, needs_rows)
    if device.type == "cpu":
        return Padding(FOLD, "which is less to compute on a CPU")
    if device.type != "cuda":
        return Padding(ROWS, f"since zeros are not counted on {device.type}")
    return Padding("", "")


def why_rows(precision: PrecisionOptions, catalogue: Catalogue, device: torch.device) -> str:
    """Why texts should all have one length in a run; "" if they need not."""
    if precision.cuda_graphs and device.type == "cuda":
        return "since cuda_graphs would record each length of text"
    if precision.compile and not has_any_size(precision, catalogue):
        return "since compile would make graphs for each length of text"
    return ""


def usual_rows(letters: Iterable[int], batch: int, least: int) -> int:
    """As many rows as half of the batches have of their longest text, where its zeros are counted.

    letters: of each caption; batch: captions; least: rows with those of zeros, of which some are left
    """
    ordered = sorted(letters)
    middle = ordered[math.ceil(0.5 ** (1 / batch) * len(ordered)) - 1]
    return row_count(max(1, middle // LETTERS), least - STEP)
