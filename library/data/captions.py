"""The caption recipe: from the texts of a picture's files to the text a sample is trained with.

Pure functions of (texts, recipe, rng, position), as sd-scripts' code works. Deviations, each marked
where it occurs: empty tags and empty lines are left out; prefix and suffix go to whichever line of
a multi-line caption is chosen; keep_tokens_separator never stays in the caption; of a separator that
ends in white space no further blank follows. trigger_word, caption_lines and sentences are our own.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from library.settings.dataset_keys import CAPTION_FORMS, default_of

WILDCARD = re.compile(r"\{([^}]+)\}")
MARKS = (*".!?,;:", *"。！？，；：")
"""After one of these at the end of a line, a blank alone joins the next."""
PARTS = {form: tuple(form.split("_")) for form in CAPTION_FORMS}
"""Form of a caption -> its parts in order."""


@dataclass(frozen=True, kw_only=True)
class CaptionRecipe:
    """What is done to a caption; names of sd-scripts.

    keep_tokens:       leading tags that are neither shuffled nor dropped
    token_warmup_step: steps until all tags are used; a fraction of the run when below 1
    class_tokens:      the caption of pictures without a caption file
    caption_lines:     what is made of several lines, one of dataset_keys.CAPTION_LINES; None is first, and each
                       with enable_wildcard, as in sd-scripts
    trigger_word:      stands before every caption that is not dropped as a whole, outside all shuffling
                       and dropping; a caption that still has it as a tag, or in its sentences, keeps that
    caption_shares:    how often each form of dataset_keys.CAPTION_FORMS is trained, of pictures that have tags
                       and sentences; None: tags alone, and files of sentences are not read
    """

    shuffle_caption: bool = default_of("shuffle_caption")
    caption_separator: str = default_of("caption_separator")
    keep_tokens: int = default_of("keep_tokens")
    keep_tokens_separator: str = default_of("keep_tokens_separator")
    secondary_separator: str = default_of("secondary_separator")
    enable_wildcard: bool = default_of("enable_wildcard")
    caption_prefix: str = default_of("caption_prefix")
    caption_suffix: str = default_of("caption_suffix")
    caption_dropout_rate: float = default_of("caption_dropout_rate")
    caption_dropout_every_n_epochs: int = default_of("caption_dropout_every_n_epochs")
    caption_tag_dropout_rate: float = default_of("caption_tag_dropout_rate")
    token_warmup_min: int = default_of("token_warmup_min")
    token_warmup_step: float = default_of("token_warmup_step")
    class_tokens: str = default_of("class_tokens")
    trigger_word: str = default_of("trigger_word")
    caption_lines: str | None = default_of("caption_lines")
    caption_shares: tuple[float, ...] | None = default_of("caption_shares")

    @property
    def use_of_lines(self) -> str:
        """What is done; never None."""
        return self.caption_lines or ("each" if self.enable_wildcard else "first")

    @property
    def forms(self) -> dict[str, float]:
        """The forms that are trained, with their shares."""
        shares = self.caption_shares or (1.0,)
        return {form: share for form, share in zip(CAPTION_FORMS, shares) if share}

    @property
    def asks_for_sentences(self) -> bool:
        return any("sentences" in PARTS[form] for form in self.forms)

    @property
    def asks_for_tags(self) -> bool:
        return any("tags" in PARTS[form] for form in self.forms)


@dataclass(frozen=True)
class CaptionPosition:
    """When a caption is used: epoch and step from 0, and the length of the run in steps."""

    epoch: int = 0
    step: int = 0
    max_train_steps: int = 0


def process_caption(
    text: str | None,
    recipe: CaptionRecipe,
    rng: random.Random,
    position: CaptionPosition = CaptionPosition(),
    sentences: str | None = None,
) -> str:
    """The caption of one sample. Prefix and suffix go to its first and last part.

    text, sentences: contents of the files of tags and of sentences, None when there is none
    """
    if is_dropped(recipe, rng, position.epoch):
        return ""
    form = PARTS[choose_form(text, sentences, recipe, rng)]
    found: dict[str, str] = {}
    for part in form:
        if part == "tags":
            line = choose_line(recipe.class_tokens if text is None else text, recipe, rng)
        else:
            line = choose_sentences(sentences or "", recipe, rng)
        before = recipe.caption_prefix if part == form[0] else ""
        after = recipe.caption_suffix if part == form[-1] else ""
        found[part] = " ".join(each.strip() for each in (before, line, after) if each.strip())
        if recipe.enable_wildcard:
            found[part] = expand_wildcards(found[part], rng)
        if part == "tags":
            found[part] = process_tags(found[part], recipe, rng, position)
            if recipe.secondary_separator:
                separators = recipe.secondary_separator, recipe.caption_separator
                found[part] = found[part].replace(*separators)
    return add_trigger(found, recipe)


def choose_form(
    text: str | None, sentences: str | None, recipe: CaptionRecipe, rng: random.Random
) -> str:
    """One of CAPTION_FORMS, by chance where there are several; what a picture lacks cannot be chosen."""
    if not (sentences or "").strip():
        return "tags"
    if not (text or "").strip():
        return "sentences"
    forms = recipe.forms
    if len(forms) == 1:  # nothing is drawn: what follows is as without this choice
        return next(iter(forms))
    return rng.choices(tuple(forms), tuple(forms.values()))[0]


def add_trigger(parts: Mapping[str, str], recipe: CaptionRecipe) -> str:
    """The parts as one caption with the trigger word in front, unless it is a tag or in the sentences."""
    word, separator = recipe.trigger_word, recipe.caption_separator
    caption = join_lines([part for part in parts.values() if part], separator)
    if not word or word in split_tags(parts.get("tags", ""), separator):
        return caption
    if names_word(parts.get("sentences", ""), word):
        return caption
    return join_tags([word, caption], separator) if caption else word


def names_word(text: str, word: str) -> bool:
    """Whether a text has these words, not only as a part of others."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def is_dropped(recipe: CaptionRecipe, rng: random.Random, epoch: int) -> bool:
    """Whether the whole caption is dropped: by chance, or in every n-th epoch (counted from 1)."""
    by_chance = rng.random() < recipe.caption_dropout_rate
    period = recipe.caption_dropout_every_n_epochs
    return by_chance or (period > 0 and (epoch + 1) % period == 0)


def choose_line(text: str, recipe: CaptionRecipe, rng: random.Random) -> str:
    """The line that is used: the only one, or one by chance."""
    choices = variants(text, recipe)
    if recipe.use_of_lines == "each" and choices:
        return rng.choice(choices)
    return choices[0] if choices else ""


def choose_sentences(text: str, recipe: CaptionRecipe, rng: random.Random) -> str:
    """The sentences that are used, whole lines: never cut, shuffled or dropped in parts."""
    choices = sentence_variants(text, recipe)
    return rng.choice(choices) if len(choices) > 1 else "".join(choices)


def sentence_variants(text: str, recipe: CaptionRecipe) -> list[str]:
    """As `variants`; all lines together where nothing else is said, a blank between them."""
    lines = caption_lines(text)
    if recipe.use_of_lines == "each":
        return lines
    return lines[:1] if recipe.caption_lines == "first" else [" ".join(lines)] if lines else []


def variants(text: str, recipe: CaptionRecipe) -> list[str]:
    """What a caption file's text may be trained as, by its lines; none when all of them are empty."""
    lines = caption_lines(text)
    if recipe.use_of_lines == "join" and lines:
        return [join_lines(lines, recipe.caption_separator)]
    return lines[:1] if recipe.use_of_lines == "first" else lines


def caption_lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def join_lines(lines: list[str], separator: str) -> str:
    """One caption: lines divided by the separator, or by a blank where one ends in a mark."""
    text = ""
    for line in lines:
        is_ended = text.endswith((separator.strip() or separator, *MARKS))
        text = (
            f"{text} {line}" if is_ended else join_tags([text, line] if text else [line], separator)
        )
    return text


def join_tags(tags: Sequence[str], separator: str) -> str:
    """Joined by the separator and a blank, as sd-scripts does since June 2026; ", " by default."""
    return (separator if separator[-1:].isspace() else f"{separator} ").join(tags)


def expand_wildcards(caption: str, rng: random.Random) -> str:
    """Replace each {a|b|c} by one of its choices; {{ and }} stand for single braces."""
    hidden = caption.replace("{{", "\x00").replace("}}", "\x01")
    chosen = WILDCARD.sub(lambda match: rng.choice(match[1].split("|")), hidden)
    return chosen.replace("\x00", "{").replace("\x01", "}")


def process_tags(
    caption: str, recipe: CaptionRecipe, rng: random.Random, position: CaptionPosition
) -> str:
    """Warm up, shuffle and drop tags between the fixed head and tail; joined by the separator.

    A caption to which none of this applies is returned untouched.
    """
    marked = bool(recipe.keep_tokens_separator) and recipe.keep_tokens_separator in caption
    active = recipe.shuffle_caption or recipe.token_warmup_step or recipe.caption_tag_dropout_rate
    if not (marked or active):
        return caption
    head, flexible, tail = split_fixed(caption, recipe, marked)
    flexible = flexible[: warmed_up_tags(len(flexible), recipe, position)]
    if recipe.shuffle_caption:
        rng.shuffle(flexible)
    if recipe.caption_tag_dropout_rate > 0:
        flexible = [tag for tag in flexible if rng.random() >= recipe.caption_tag_dropout_rate]
    return join_tags([*head, *flexible, *tail], recipe.caption_separator)


def split_fixed(
    caption: str, recipe: CaptionRecipe, marked: bool
) -> tuple[list[str], list[str], list[str]]:
    """Head, flexible part and tail, by keep_tokens_separator where it occurs, else keep_tokens."""
    if marked:
        head, flexible, *rest = caption.split(recipe.keep_tokens_separator, 2)
        tail = rest[0] if rest else ""
        separator = recipe.caption_separator
        return (
            split_tags(head, separator),
            split_tags(flexible, separator),
            split_tags(tail, separator),
        )
    tags = split_tags(caption, recipe.caption_separator)
    return tags[: recipe.keep_tokens], tags[recipe.keep_tokens :], []


def split_tags(text: str, separator: str) -> list[str]:
    """The tags of a text, stripped; sd-scripts keeps empty ones, which are left out here."""
    return [tag.strip() for tag in text.split(separator) if tag.strip()]


def warmed_up_tags(count: int, recipe: CaptionRecipe, position: CaptionPosition) -> int:
    """How many of `count` flexible tags are used: from token_warmup_min, growing linearly."""
    steps = recipe.token_warmup_step
    if steps < 1:
        steps = math.floor(steps * position.max_train_steps)
    if not steps or position.step >= steps:
        return count
    growth = (count - recipe.token_warmup_min) / steps
    return math.floor(position.step * growth) + recipe.token_warmup_min
