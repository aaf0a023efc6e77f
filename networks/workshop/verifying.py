"""A written adapter file against the adapters that are in memory: does it hold what was trained?

The file is read as any adapter file is, by its keys. Where it has the adapter's own factors, they are
compared number by number, as far as the precision of the file allows; a LoRA made of something else is
compared by the norm of what is between the two deltas, which are never built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from library.errors import AdapterFileError
from networks.codec import KeyDecoder, decode_tensors
from networks.kinds.adapter import Adapter
from networks.kinds.decomposed import without_magnitudes
from networks.kinds.linear import AdditiveAdapter
from networks.kinds.lora import LORA_DOWN, LORA_UP
from networks.kinds.stored import ALPHA, Factors, stored_scale
from networks.network import AdapterNetwork
from networks.precision import MOST_ROUNDED
from networks.workshop.deltas import Delta, Kronecker, LowRank
from networks.workshop.universal import delta_of_adapter

SCALES_APART = 1e-6  # relative: alpha is written in float32
HALF_STEP = 0.51  # of finfo.eps: half of the distance between neighbouring numbers, and a little
ERRORS_APART = 1e-4  # of a relative error: singular values are float32


@dataclass(frozen=True)
class Written:
    """What a file should hold.

    dtype:            of the factors; float32 is right too
    has_norms:        whether norms are in it
    has_text_encoder: whether what is of the text encoder is
    errors:           path -> relative error that was told of a LoRA in place of another delta
    """

    dtype: torch.dtype
    has_norms: bool = True
    has_text_encoder: bool = True
    errors: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def differences(
    network: AdapterNetwork, tensors: Mapping[str, Tensor], written: Written
) -> list[str]:
    """Where a file's tensors are not what the adapters hold now; phrases that begin with a path or key."""
    settings = network.settings
    decoder = KeyDecoder(settings.paths, norms=settings.norms, kinds=settings.kinds)
    try:
        file = decode_tensors(tensors, decoder, "the file")
    except AdapterFileError as error:
        return [f"{problem.where} {problem.message}" for problem in error.problems]
    expected = {
        placement.path: placement.adapter
        for placement in network.exported()
        if (written.has_norms or not placement.is_norm)
        and (written.has_text_encoder or not placement.is_of_text_encoder)
    }
    found = [f"{path} is not in the file" for path in expected if path not in file.modules]
    for path, factors in file.modules.items():
        if path not in expected:
            found.append(f"{path} should not be in the file")
            continue
        try:
            phrases = list(compared(expected[path], factors, written, written.errors.get(path)))
        except ValueError as error:
            phrases = [str(error)]
        found += [f"{path} {phrase}" for phrase in phrases]
    return found


def compared(
    adapter: Adapter, factors: Factors, written: Written, error: float | None
) -> Iterator[str]:
    """What is wrong with a module's factors, as the rest of a sentence. Raises ValueError as reading does.

    error: told of a LoRA that stands in place of the adapter's own factors; None where they are written
    """
    stored = {name: tensor for name, tensor in factors.items() if name != ALPHA}
    if error is not None:
        yield from approximated(adapter, stored, written, error)
        return
    own = adapter.stored()
    if stored.keys() != own.keys():
        yield f"has {', '.join(sorted(stored))} instead of {', '.join(sorted(own))}"
        return
    additive = without_magnitudes(adapter)
    scale = additive.scale if isinstance(additive, AdditiveAdapter) else 1.0
    found_scale = stored_scale(factors, adapter.rank)
    folded = ALPHA not in factors  # then the scale is inside the factor that starts at zero
    if not folded and not math.isclose(found_scale, scale, rel_tol=SCALES_APART):
        yield f"has scale {found_scale:g} instead of {scale:g}"
    for name, parameter in own.items():
        inside = scale / found_scale if folded and name == adapter.zero_factor else 1.0
        expected = inside * parameter.to("cpu", torch.float32)
        if wrong := moved(stored[name], expected, written.dtype):
            yield f"has {name} {wrong}"


def moved(found: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    """What is wrong with a tensor that should be `expected` (float32) rounded to `dtype`; "" for nothing."""
    if found.shape != expected.shape:
        return f"of shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    limits = torch.finfo(dtype)
    apart = (found.float() - expected).abs()
    allowed = expected.abs().mul_(HALF_STEP * limits.eps).add_(limits.smallest_normal * limits.eps)
    far = torch.linalg.vector_norm(apart, dtype=torch.float64)
    size = torch.linalg.vector_norm(expected, dtype=torch.float64)
    if bool((apart <= allowed).all()) and bool(far <= MOST_ROUNDED * size):
        return ""
    wrong = int((~(apart <= allowed)).sum())
    share = float(far / size) if size else math.inf
    return f"that differs by {share:.2g} of its norm ({wrong} of {found.numel()} numbers)"


def approximated(
    adapter: Adapter, stored: Factors, written: Written, error: float
) -> Iterator[str]:
    """Of a LoRA in place of the adapter's delta: whether it is as far from it as was told."""
    assert isinstance(adapter, AdditiveAdapter), "nothing else is approximated"
    if stored.keys() != {LORA_DOWN, LORA_UP}:
        yield f"has {', '.join(sorted(stored))} instead of a LoRA without alpha"
        return
    delta = doubled(delta_of_adapter(adapter))
    lora = LowRank(stored[LORA_UP].double(), stored[LORA_DOWN].double())
    if lora.shape != delta.shape or len(lora.down) != lora.up.shape[1]:
        yield f"is for a weight of shape {lora.shape} instead of {delta.shape}"
        return
    size = delta.norm()
    rest = math.sqrt(max(0.0, size**2 - 2 * delta.inner(lora) + lora.norm() ** 2))
    found = rest / size if size else rest
    if not found <= math.hypot(error, torch.finfo(written.dtype).eps) + ERRORS_APART:
        yield f"is a LoRA with an error of {found:.2%} instead of {error:.2%}"


def doubled(delta: Delta) -> Delta:
    """In float64: small differences of large norms are looked at."""
    if isinstance(delta, Kronecker):
        return Kronecker(delta.first.double(), delta.second.double())
    assert isinstance(delta, LowRank)
    return LowRank(delta.up.double(), delta.down.double())
