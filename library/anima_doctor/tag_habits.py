"""How Anima was taught to read tags, and which captions are written otherwise.

By the model's card: quality, meta, year and safety tags, then how many people there are, then character,
series and artist, then all else; artists with @ before their name; blanks where a booru has underscores,
but in score_1 to score_9. Unless weighted_captions is on, captions are not read as ComfyUI reads prompts: a
backslash before a parenthesis goes, and weights are letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from library.linting.findings import Finding, Kind, Place, found
from library.linting.written import Written
from library.reporting.texts import Text

QUALITY = {
    *("masterpiece", "best quality", "good quality", "normal quality", "low quality"),
    *("worst quality", "highres", "absurdres", "anime screenshot", "jpeg artifacts"),
    *("official art", "newest", "recent", "mid", "early", "old"),
    *("safe", "sensitive", "nsfw", "explicit"),
}
QUALITY_FORM = re.compile(r"score_\d|year \d{4}")
COUNT_FORM = re.compile(r"\d\+?(girl|boy|other)s?|multiple (girls|boys|others)|no humans")
WITHOUT_A_NAME = {"solo"}
EMOTICON = re.compile(r"\W*\w{0,2}_\w{0,2}\W*")  # as ^_^, @_@ and o_o
UNDERSCORE = re.compile(r"[^\W_]_[^\W_(\\]|\w_\\?\(")
WEIGHT = re.compile(r"(?<!\\)\([^()]*:\s*-?\d*\.?\d+\s*(?<!\\)\)")
PLAIN_PARENTHESES = re.compile(r"(?<!\\)[()]")

ARTIST = Kind(
    "artist",
    Text("artists that are not written as @name", "没有写成 @名字 的画师"),
    Text(
        "Write one tag, @ and the name with nothing between: the model knows artists by it.",
        "写成单独一个标签，@ 后面直接是名字：模型靠它认画师。",
    ),
)
PARENTHESES = Kind(
    "parentheses",
    Text("parentheses that no prompt can name", "提示词写不出来的括号"),
    Text(
        "Write both of a pair, not of full width, with one backslash or none: name \\(series\\) is how ComfyUI's "
        "prompts write it.",
        "成对写半角括号，前面一个反斜杠或不写：ComfyUI 的提示词写作 name \\(series\\)。",
    ),
)
WEIGHTS = Kind(
    "weights",
    Text("weights in captions, which are trained as letters", "标注里的权重，会被当作文字训练"),
    Text(
        "Write the tag without parentheses and number, or turn on weighted_captions.",
        "去掉括号和数字，或打开 weighted_captions。",
    ),
)
WEIGHED = Kind(
    "weighed_parentheses",
    Text(
        "parentheses that weighted_captions takes for weights",
        "被 weighted_captions 当作权重的括号",
    ),
    Text("Write name \\(series\\) where they are letters.", "括号是字的地方写 name \\(series\\)。"),
)
ORDER = Kind(
    "tag_order",
    Text("tags in another order than Anima was trained with", "标签顺序与 Anima 训练时不同"),
    Text(
        "Quality, meta, year and safety first, then how many people (1girl), character, series, @artist, "
        "then all else.",
        "先质量、元信息、年份、分级，再人数（1girl）、角色、作品、@画师，最后其他。",
    ),
)
UNDERSCORES = Kind(
    "underscores",
    Text("tags with underscores", "带下划线的标签"),
    Text(
        "Write blanks: Anima was trained with them, but in score_1 to score_9.",
        "改成空格：Anima 训练时用的是空格，只有 score_1 到 score_9 例外。",
    ),
)


def names_nothing(tag: str) -> bool:
    """Whether a tag is of those that stand in any caption."""
    return tag in WITHOUT_A_NAME or section_of(tag) in (0, 1)


def section_of(tag: str) -> int | None:
    """Where a tag belongs: 0 quality and its like, 1 how many people, 2 artist; None of those in between."""
    if tag in QUALITY or QUALITY_FORM.fullmatch(tag):
        return 0
    if COUNT_FORM.fullmatch(tag):
        return 1
    return 2 if is_artist(tag) else None


def is_artist(tag: str) -> bool:
    return tag.startswith("@") and not EMOTICON.fullmatch(tag)


def find_habits(
    written: Sequence[Written], triggers: Collection[str], *, weighs: bool
) -> Iterator[Finding]:
    """All of this file.

    triggers: words of the user's own, which may be spelled in any way
    weighs:   whether parentheses in captions are weights
    """
    artists = {tag[1:].strip() for one in written for tag in one.tags if is_artist(tag)} - {""}

    def wrong_artist(tag: str) -> bool:
        return tag not in triggers and is_wrong_artist(tag, artists)

    def underscored(tag: str) -> bool:
        return tag not in triggers and has_underscores(tag)

    yield from found(ARTIST, of_tags(written, wrong_artist))
    yield from found(PARENTHESES, of_tags(written, has_odd_parentheses))
    if weighs:
        yield from found(WEIGHED, of_tags(written, is_weighed_by_chance))
    else:
        yield from found(WEIGHTS, of_tags(written, has_weights))
    yield from found(ORDER, out_of_order(written))
    yield from found(UNDERSCORES, of_tags(written, underscored))


def of_tags(written: Sequence[Written], is_wrong: Callable[[str], bool]) -> Iterator[Place]:
    """The captions with such tags."""
    for one in written:
        wrong = [tag for line in one.lines for tag in line if is_wrong(tag)]
        if wrong:
            yield one.place(", ".join(dict.fromkeys(wrong)))


def is_wrong_artist(tag: str, artists: Collection[str]) -> bool:
    """Named as boorus do, with a blank after the @, after other words, or without @ where others have it."""
    if EMOTICON.fullmatch(tag):
        return False
    name = re.fullmatch(r"(?i)artist:\s*(.+)", tag)
    return bool(name) or re.search(r"@(\s|$)|[^\s@]\s+@\w", tag) is not None or tag in artists


def has_odd_parentheses(tag: str) -> bool:
    """A backslash too many, one of a pair alone, or those of full width."""
    if is_face(tag):
        return False
    plain = re.sub(r"\\([()])", r"\1", tag)
    is_one_alone = plain.count("(") != plain.count(")")
    return is_one_alone or "\\" in plain or bool(set(tag) & set("（）"))


def is_face(tag: str) -> bool:
    """As :) and (o)_(o): of letters it has one or two."""
    return sum(letter.isalnum() for letter in tag) < 3


def has_weights(tag: str) -> bool:
    """Whether a prompt would weigh the whole tag, or part of it by a number."""
    is_stressed = tag.startswith("(") and tag.endswith(")") and not tag.endswith("\\)")
    return not is_face(tag) and (is_stressed or WEIGHT.search(tag) is not None)


def is_weighed_by_chance(tag: str) -> bool:
    """Whether parentheses that stand behind a name weigh what is in them."""
    return not is_face(tag) and not has_weights(tag) and PLAIN_PARENTHESES.search(tag) is not None


def has_underscores(tag: str) -> bool:
    """Whether blanks belong there instead."""
    if QUALITY_FORM.fullmatch(tag) or EMOTICON.fullmatch(tag):
        return False
    return UNDERSCORE.search(tag) is not None


def out_of_order(written: Sequence[Written]) -> Iterator[Place]:
    """Captions that are trained in the order in which they are written, and have another than the model's.

    Characters, series and what is left cannot be told apart, and are not judged; nor is the trigger.
    """
    for one in written:
        if one.image.subset.shuffle_caption:
            continue
        wrong = [words for line in one.lines for words in misplaced(line)]
        if wrong:
            yield one.place("; ".join(wrong))


def misplaced(line: Sequence[str]) -> Iterator[str]:
    """Each tag that belongs before an earlier one: "1girl after @name"."""
    last, section = "", 0
    for tag in line:
        own = section_of(tag)
        if own is not None and own < section:
            yield f"{tag} after {last}"
        elif own is not None:
            last, section = tag, own
