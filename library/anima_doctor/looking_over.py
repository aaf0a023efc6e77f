"""What is worth mending in the pictures and captions of a run on Anima."""

from __future__ import annotations

from collections.abc import Iterator

from library.anima_doctor.tag_habits import find_habits, names_nothing
from library.data.catalogue import Catalogue
from library.linting.captions import find_in_captions, triggers_of
from library.linting.duplicates import find_duplicates
from library.linting.findings import Finding, report_lines
from library.linting.written import by_subset, written_for
from library.settings.run_config import TrainConfig

MOST_PICTURES = 1000
"""That a report compares by their looks: each has to be decoded."""


def look_over(
    catalogue: Catalogue, cfg: TrainConfig, *, most_pictures: int | None = None
) -> list[Finding]:
    """Pictures first, then captions. Reads every picture; changes nothing.

    most_pictures: of more than that only copies of the same bytes are found
    """
    written, phrase = written_for(catalogue), cfg.metadata.metadata_trigger_phrase
    triggers = {one.image.subset.trigger_word for one in written}
    for _, own in by_subset(written):
        triggers.update(triggers_of(own, phrase, names_nothing))
    held_out = {image.path for image in catalogue.held_out}
    return [
        *find_duplicates({one.path: one.name for one in written}, held_out, most=most_pictures),
        *find_in_captions(written, phrase, names_nothing),
        *find_habits(written, triggers, weighs=cfg.data.weighted_captions),
    ]


def overview(catalogue: Catalogue, cfg: TrainConfig) -> Iterator[str]:
    """Lines of a report: without any word of a caption, which the page of preview_buckets has."""
    findings = look_over(catalogue, cfg, most_pictures=MOST_PICTURES)
    yield from report_lines(findings)
    if len({image.path for image in (*catalogue.images, *catalogue.held_out)}) > MOST_PICTURES:
        yield f"more than {MOST_PICTURES} pictures: only copies of the same file were looked for"
    if findings:
        yield "tools/preview_buckets.py shows these places with their words and pictures"
    else:
        yield "nothing to mend was found"
