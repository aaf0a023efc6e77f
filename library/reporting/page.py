"""One HTML file that holds everything it shows: styles, program and data; it works without a network.

What others named or wrote (pictures, captions, prompts) is data for the page, never part of its text:
it stands in a block of JSON in which no mark of HTML is left, and the page shows it as text only. The
page's own policy lets nothing run but the program that is named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from library.errors import as_utf8
from library.system.text_files import json_text

ASSETS = Path(__file__).parent / "assets"
GENERATOR = "training report v1"
"""In every page about runs, so that a file of somebody else is not taken for one."""
MARKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def page(
    title: str, program: str, blocks: Mapping[str, Any], *, live: bool = False,
    generator: str = GENERATOR,
) -> str:  # fmt: skip
    """The page as text.

    program:   the file of assets/ that draws it, after those that all pages share
    blocks:    the data by the name under which the program looks for it
    live:      it may ask the server it came from
    generator: what kind of page it is
    """
    style, script = asset("page.css"), asset("shared.js", "charts.js", program)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{digest(script)}'",
            f"style-src 'sha256-{digest(style)}'",
            "img-src data:",
            f"connect-src {chr(39)}self{chr(39)}" if live else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    data = "".join(
        f'<script type="application/json" id="{name}">{data_text(value)}</script>\n'
        for name, value in blocks.items()
    )
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="generator" content="{generator}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{html.escape(as_utf8(title))}</title>\n{data}"
        f"<style>{style}</style>\n</head>\n<body>\n<main></main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


@cache
def asset(*names: str) -> str:
    return "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names)


def digest(text: str) -> str:
    """As a policy names a text that may run or style."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_text(value: object) -> str:
    """The value as JSON that can stand anywhere in HTML; what is not finite must be None already."""
    return json_text(value, allow_nan=False, separators=(",", ":")).translate(MARKS)


def blocks_of(text: str) -> Iterator[tuple[str, Any]]:
    """(name, data) of the blocks in a page's text, or in its beginning, one after the other."""
    for found in re.finditer(
        r'<script type="application/json" id="(\w+)">([^<]*)</script>', text
    ):
        yield found[1], json.loads(found[2])
