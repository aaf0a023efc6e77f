"""The flags of a file's metadata."""

from __future__ import annotations

import os
from dataclasses import dataclass

from library.errors import Problem
from library.settings.effects import loses_to
from library.settings.options import flag, word

NO_THUMBNAIL = "none"
NO_METADATA = loses_to(lambda o: o.no_metadata, "no_metadata is set")


@dataclass(frozen=True, kw_only=True)
class MetadataOptions:
    """Metadata"""

    training_comment: str | None = flag(None, "free text", idle=(NO_METADATA,), prose=True)
    metadata_title: str | None = flag(None, "title; output_name if not given", prose=True)
    metadata_author: str | None = flag(None, "author", prose=True)
    metadata_description: str | None = flag(None, "description", prose=True)
    metadata_license: str | None = flag(None, "licence", prose=True)
    metadata_tags: str | None = flag(None, "tags, separated by commas", prose=True)
    metadata_usage_hint: str | None = flag(None, "how to use it", prose=True)
    metadata_thumbnail: str | None = flag(None, "picture file or data: URL; the newest preview if not given; none: no picture", path=True)
    metadata_merged_from: str | None = flag(None, "files it was merged from", prose=True)
    metadata_trigger_phrase: str | None = flag(None, "trigger words", prose=True)
    metadata_preprocessor: str | None = flag(None, "preprocessor", prose=True)
    metadata_is_negative_embedding: str | None = flag(
        None, "true for a negative embedding", read=word
    )

    def problems(self) -> list[Problem]:
        picture = self.metadata_thumbnail
        if picture in (None, "", NO_THUMBNAIL):
            return []
        if not picture.startswith("data:") and not os.path.isfile(picture):
            return [Problem("expected a picture file or a data: URL.", "metadata_thumbnail")]
        return []
