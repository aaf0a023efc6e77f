"""An adapter file's health: everything that is found of it, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from library.anima_workshop import (
    alpha_checks,
    coverage_checks,
    metadata_checks,
    number_checks,
    strength_checks,
)
from library.anima_workshop.checked import Checked
from library.anima_workshop.findings import Finding
from library.anima_workshop.reader_words import comfyui


def readers(checked: Checked) -> Iterator[Finding]:
    for verdict in checked.verdicts:
        if verdict.reader.id == "comfyui" and (found := comfyui(verdict)):
            yield found


CHECKS: tuple[Callable[[Checked], Iterator[Finding]], ...] = (
    number_checks.not_finite,
    strength_checks.unfit,
    strength_checks.other_sizes,
    alpha_checks.alphas,
    number_checks.all_zero,
    strength_checks.standing_out,
    strength_checks.beside_the_base,
    strength_checks.needing_base,
    strength_checks.not_decomposed,
    coverage_checks.left,
    coverage_checks.missing,
    readers,
    number_checks.precision,
    metadata_checks.false_claims,
    metadata_checks.trained,
)


def findings_of(checked: Checked) -> list[Finding]:
    found = [finding for check in CHECKS for finding in check(checked)]
    return sorted(found, key=lambda finding: -finding.severity)
