"""A font for pictures that people read: one of the system that has Chinese letters, where there is one."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import ImageFont

CJK_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "NotoSansSC-VF.ttf", "SourceHanSansSC-Regular.otf",
    "msyh.ttc", "Deng.ttf", "simhei.ttf", "simsun.ttc", "msgothic.ttc", "malgun.ttf",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc",
    "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc",
)  # fmt: skip
FONTS = (*CJK_FONTS, "DejaVuSans.ttf", "Arial.ttf")
"""The first that the system has is used."""
OLD_FOLDER = ".fonts"  # of a user's home; fontconfig looks there, Pillow where systems keep theirs
NO_LETTERS = "no font with Chinese, Japanese or Korean letters was found; fonts-noto-cjk has them"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def find_font(size: int = 12, names: Sequence[str] = FONTS) -> tuple[str, Font]:
    """The font and its file's name; "" for Pillow's own. size: pixels"""
    for name in names:
        for place in (name, str(Path("~", OLD_FOLDER, name).expanduser())):
            try:
                return name, ImageFont.truetype(place, size)
            except OSError:  # not on this system
                continue
    return "", ImageFont.load_default(size)


@cache
def wide_font(size: int) -> Font | None:
    """A font that has wide letters; None where the system has none."""
    name, font = find_font(size, CJK_FONTS)
    return font if name else None


def is_wide(letter: str) -> bool:
    """Whether a letter is one of Chinese, Japanese or Korean, or as wide as these."""
    return unicodedata.east_asian_width(letter) in "WF"
