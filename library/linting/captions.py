"""What is odd about captions whatever the model: empty ones, tags twice, tags of one picture, no trigger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from library.linting.findings import Finding, Kind, Place, found
from library.linting.written import Written, by_subset
from library.reporting.texts import Text

MOST_HAVE_IT = 0.6
"""The share of captions from which on a word at their beginning is taken for the trigger."""
IsCommon = Callable[[str], bool]
"""Whether a tag names nothing of its own, as "1girl" and "best quality"."""
FEW = 3
"""Of fewer pictures nothing is said of words that all or one of them have."""

EMPTY = Kind(
    "empty",
    Text("pictures without a caption", "没有标注的图片"),
    Text(
        "Write captions, or set class_tokens or skip_empty_caption; what is left empty teaches the prompt "
        "without words.",
        "补上标注，或设 class_tokens、skip_empty_caption；空标注训练的是没有文字时的画面。",
    ),
)
REPEATED = Kind(
    "repeated_tag",
    Text("the same tag more than once in a caption", "同一条标注里重复的标签"),
    Text("Keep one of each.", "每个只留一个。"),
)
ONCE = Kind(
    "tag_of_one_picture",
    Text("tags that only one picture has", "只有一张图有的标签"),
    Text(
        "Look for misspellings and for other words for what other captions name too; a tag seen once is "
        "learned as that picture.",
        "看看是否拼错、是否与别的标注里的说法不一致；只出现一次的标签学到的就是那一张图。",
    ),
)
UNNAMED = Kind(
    "trigger_not_named",
    Text("captions that never name the trigger word", "没有写触发词的标注"),
    Text(
        "Add it, or set trigger_word, which puts it before every caption.",
        "补上，或设 trigger_word，它会加在每条标注最前。",
    ),
)
NO_TRIGGER = Kind(
    "no_trigger",
    Text("no word that all captions have", "没有每条标注都有的词"),
    Text(
        "Set trigger_word to a word that calls what is learned. For a style that shall always act it is right "
        "without.",
        "把 trigger_word 设成用来唤出所学内容的词。希望始终起作用的画风则不需要。",
    ),
)


def find_in_captions(
    written: Sequence[Written], phrase: str | None, is_common: IsCommon
) -> Iterator[Finding]:
    """All of this file. phrase: the trigger words that the run's metadata name"""
    empty = (one.place() for one in written if not (one.lines or one.prose or one.added))
    yield from found(EMPTY, empty)
    yield from found(REPEATED, repeated_tags(written))
    yield from found(ONCE, tags_of_one(written, is_common))
    for subset, own in by_subset(written):
        yield from find_trigger(subset, own, phrase, is_common)


def repeated_tags(written: Sequence[Written]) -> Iterator[Place]:
    for one in written:
        twice = [
            tag
            for line in one.lines
            for tag, times in Counter(map(as_one, line)).items()
            if times > 1
        ]
        if twice:
            yield one.place(", ".join(dict.fromkeys(twice)))


def as_one(tag: str) -> str:
    """What is the same in two spellings."""
    return tag.casefold().replace("_", " ")


def tags_of_one(written: Sequence[Written], is_common: IsCommon) -> Iterator[Place]:
    """Those of each picture together. Tags with alternatives in them ({a|b}) are left out."""
    own = [one for one in written if not one.image.subset.is_reg]
    counts = Counter(tag for one in own for tag in one.tags)
    for one in own if len(own) >= FEW else ():
        alone = [
            tag
            for line in one.lines
            for tag in line
            if counts[tag] == 1 and not is_common(tag) and "{" not in tag
        ]
        if alone:
            yield one.place(", ".join(dict.fromkeys(alone)))


def find_trigger(
    subset: str, own: Sequence[Written], phrase: str | None, is_common: IsCommon
) -> Iterator[Finding]:
    """Of one folder: whether something calls what it teaches, and which captions do not name it."""
    own = [one for one in own if one.lines or one.prose]
    words = triggers_of(own, phrase, is_common)
    for word in words:
        without = [one for one in own if not names_all(one, word)]
        yield from found(UNNAMED, (one.place(word) for one in without), subset)
    if not words and sum(bool(one.lines) for one in own) >= FEW:
        yield from found(NO_TRIGGER, [Place((), ())], subset)


def triggers_of(own: Sequence[Written], phrase: str | None, is_common: IsCommon) -> list[str]:
    """What calls the content of one folder; none where nothing does."""
    return [phrase] if phrase else likely_triggers(own, is_common)


def names_all(one: Written, phrase: str) -> bool:
    """Whether a caption has the phrase, or each of its parts between commas."""
    parts = [part.strip() for part in phrase.split(",") if part.strip()]
    return one.names(phrase) or (len(parts) > 1 and all(map(one.names, parts)))


def likely_triggers(own: Sequence[Written], is_common: IsCommon) -> list[str]:
    """Words that all captions have; else the word that most of them begin with; none where there is none."""
    if not own:
        return []
    candidates = [tag for line in (own[0].added, *own[0].lines) for tag in line]
    for tag in candidates:
        if not is_common(tag) and all(one.names(tag) for one in own):
            return [tag]
    first = Counter(tag for one in own for tag in first_tags(one, is_common))
    tag, times = first.most_common(1)[0] if first else ("", 0)
    return [tag] if len(own) >= FEW and times >= MOST_HAVE_IT * len(own) else []


def first_tags(one: Written, is_common: IsCommon) -> set[str]:
    """The tags that its lines begin with, after those that name nothing."""
    firsts = (next((tag for tag in line if not is_common(tag)), None) for line in one.lines)
    return {tag for tag in firsts if tag is not None}
