"""What is said of a network: at its start, of its norms when they are written, and what tells it from others."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from networks.kinds.norm import NormDelta
from networks.network_settings import NetworkSettings
from networks.own_arguments import kind_of_adapter
from networks.placements import Placement, linear_adapters


def summary(settings: NetworkSettings, placements: Sequence[Placement]) -> list[str]:
    """Lines to log: what is adapted, by which pattern, with how many parameters."""
    linears = linear_adapters(placements)
    norms = len(placements) - len(linears)
    mixed = len(settings.used) > 1
    ranks = Counter(
        f"{kind_of_adapter(each, settings.kinds)} of {each.size}" if mixed else each.size
        for each in linears
    )
    sizes = ", ".join(f"{name}: {n}" if len(ranks) > 1 else name for name, n in ranks.items())
    counts = f"{len(linears)} Linears{f' ({sizes})' if sizes else ''} and {norms} norms"
    lines = [f"{settings.name}: {counts}, {numbers(placements):,} trained parameters"]
    if settings.matches:
        matched = "; ".join(f"{pattern} {n}" for pattern, n in settings.matches.items())
        lines.append(f"modules matched by pattern: {matched}")
    if frozen := sum(placement.frozen for placement in placements):
        lines.append(f"{frozen} adapters are frozen by a learning rate of 0")
    return lines


def in_short(settings: NetworkSettings, placements: Sequence[Placement]) -> str:
    trained = sum(not placement.frozen for placement in placements)
    return f"{trained} ({settings.name}), {numbers(placements) / 1e6:.2f} M"


def described(placements: Sequence[Placement]) -> str:
    """How much is adapted, and a hash of where and with which shapes."""
    trained = [placement for placement in placements if not placement.frozen]
    shapes = [
        (placement.path, name, tuple(factor.shape))
        for placement in sorted(trained, key=lambda p: p.path)
        for name, factor in placement.adapter.factors().items()
    ]
    norms = sum(placement.is_norm for placement in trained)
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]
    linears = len(trained) - norms
    return f"{linears} Linears, {norms} norms, {numbers(placements)} parameters, {digest}"


def numbers(placements: Sequence[Placement]) -> int:
    """That train."""
    return sum(
        factor.numel() for p in placements if not p.frozen for factor in p.adapter.factors().values()
    )


def norms_line(placements: Sequence[Placement]) -> str:
    """What share of the norms' changed entries still differs after addition to bf16 weights."""
    counts = [
        placement.adapter.survivors(placement.base)
        for placement in placements
        if isinstance(placement.adapter, NormDelta)
    ]
    changed, survived = (sum(column) for column in zip((0, 0), *counts))
    if not changed:
        return ""
    return (
        f"norm differences: {survived / changed:.1%} of {changed} changed entries survive "
        f"addition to bf16 weights, which is how other programs apply them"
    )
