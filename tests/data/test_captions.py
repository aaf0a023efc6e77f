"""Captions against tables worked out by hand from sd-scripts' rules, and their promises."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.captions import CaptionPosition, CaptionRecipe, process_caption


class FirstChoice(random.Random):
    """Draws that can be followed by hand: shuffle reverses, choice takes the last, dice are given."""

    def __new__(cls, *dice):
        return super().__new__(cls)

    def __init__(self, *dice):
        super().__init__(0)
        self.dice = list(dice)

    def random(self):
        return self.dice.pop(0) if self.dice else 0.5

    def choice(self, sequence):
        return sequence[-1]

    def shuffle(self, sequence):
        sequence.reverse()


TABLE = [
    # text, recipe, expected; tags come reversed, the last of several choices is taken
    ("a, b,  c", {}, "a, b,  c"),
    ("a, b,  c\nsecond line", {}, "a, b,  c"),
    ("\n\n  a, b \n", {}, "a, b"),
    ("", {"class_tokens": "girl"}, ""),
    (None, {"class_tokens": "1girl, solo"}, "1girl, solo"),
    (None, {}, ""),
    ("a, b", {"trigger_word": "sks"}, "sks, a, b"),
    ("", {"trigger_word": "sks"}, "sks"),
    ("a, sks, b", {"trigger_word": "sks"}, "a, sks, b"),
    ("a sks b", {"trigger_word": "sks"}, "sks, a sks b"),
    ("a, b", {"trigger_word": "sks", "shuffle_caption": True}, "sks, b, a"),
    ("a, b", {"trigger_word": "sks", "caption_tag_dropout_rate": 1.0}, "sks"),
    ("a, b", {"trigger_word": "sks", "caption_dropout_rate": 1.0}, ""),
    ("a, b, c, d", {"shuffle_caption": True}, "d, c, b, a"),
    ("a, b, c, d", {"shuffle_caption": True, "keep_tokens": 1}, "a, d, c, b"),
    ("a, b", {"shuffle_caption": True, "keep_tokens": 5}, "a, b"),
    ("a,, b, ", {"shuffle_caption": True}, "b, a"),
    ("a; b, c; d", {"shuffle_caption": True, "caption_separator": ";"}, "d; b, c; a"),
    ("A b, c. D. E", {"shuffle_caption": True, "caption_separator": "."}, "E. D. A b, c"),
    ("A, b. C", {"trigger_word": "sks", "caption_separator": "."}, "sks. A, b. C"),
    ("a, b", {"shuffle_caption": True, "caption_separator": ", "}, "b, a"),
    (
        "a; b | c; d",
        {"keep_tokens_separator": "|", "shuffle_caption": True, "caption_separator": ";"},
        "a; b; d; c",
    ),
    ("a, b\n\nC d.\ne", {"caption_lines": "join"}, "a, b, C d. e"),
    ("a, b,\nc、\n女孩。\nd", {"caption_lines": "join"}, "a, b, c、, 女孩。 d"),
    ("a\nb", {"caption_lines": "join", "caption_separator": ";", "shuffle_caption": True}, "b; a"),
    ("a\nb {x|y}", {"caption_lines": "join", "enable_wildcard": True}, "a, b y"),
    ("a, b\n\nc, d", {"caption_lines": "each", "shuffle_caption": True}, "d, c"),
    ("\n", {"caption_lines": "join"}, ""),
    ("\n", {"caption_lines": "each"}, ""),
    ("a\nb", {"caption_lines": "first", "enable_wildcard": True}, "a"),
    (
        "a, b ||| c, d, e ||| f, g",
        {"shuffle_caption": True, "keep_tokens_separator": "|||"},
        "a, b, e, d, c, f, g",
    ),
    ("a ||| b, c", {"shuffle_caption": True, "keep_tokens_separator": "|||"}, "a, c, b"),
    ("a ||| b, c", {"keep_tokens_separator": "|||"}, "a, b, c"),
    (
        "a, b, c",  # the marker does not occur: keep_tokens counts
        {"shuffle_caption": True, "keep_tokens_separator": "|||", "keep_tokens": 1},
        "a, c, b",
    ),
    ("a, b;;;c, d", {"shuffle_caption": True, "secondary_separator": ";;;"}, "d, b,c, a"),
    ("a;;;b", {"secondary_separator": ";;;"}, "a,b"),
    ("red", {"caption_prefix": "best,", "caption_suffix": ", from side"}, "best, red , from side"),
    ("", {"caption_prefix": "best"}, "best"),
    (
        "a, b",
        {"caption_prefix": "x,", "shuffle_caption": True, "keep_tokens": 1},
        "x, b, a",
    ),
    ("a {red|blue} b", {"enable_wildcard": True}, "a blue b"),
    ("a {red|blue} b", {}, "a {red|blue} b"),
    ("{{not|this}} {one|two}", {"enable_wildcard": True}, "{not|this} two"),
    ("one\n\ntwo {x|y}\n", {"enable_wildcard": True, "caption_suffix": "z"}, "two y z"),
]


@pytest.mark.parametrize("text, recipe, expected", TABLE)
def test_captions_worked_out_by_hand(text, recipe, expected):
    assert process_caption(text, CaptionRecipe(**recipe), FirstChoice()) == expected


def test_tag_dropout_spares_the_fixed_tags():
    recipe = CaptionRecipe(keep_tokens=1, caption_tag_dropout_rate=0.4)
    rng = FirstChoice(0.9, 0.39, 0.4, 0.1)  # the first decides on the whole caption
    assert process_caption("a, b, c, d", recipe, rng) == "a, c"


def test_a_dropped_caption_is_empty_prefix_included():
    recipe = CaptionRecipe(caption_dropout_rate=0.2, caption_prefix="x")
    assert process_caption("a", recipe, FirstChoice(0.19)) == ""
    assert process_caption("a", recipe, FirstChoice(0.2)) == "x a"


def test_every_nth_epoch_counted_from_one_drops_all_captions():
    recipe = CaptionRecipe(caption_dropout_every_n_epochs=3)
    epochs = [process_caption("a", recipe, FirstChoice(), CaptionPosition(e)) for e in range(6)]
    assert epochs == ["a", "a", "", "a", "a", ""]


@pytest.mark.parametrize(
    "step, expected",
    # min 1 of 4 flexible tags, all of them after 6 steps: floor(step * 3 / 6) + 1
    [(0, "k, a"), (1, "k, a"), (2, "k, a, b"), (4, "k, a, b, c"), (5, "k, a, b, c"), (6, "k, a, b, c, d")],
)  # fmt: skip
@pytest.mark.parametrize("warmup, total", [(6, 100), (0.5, 12)])
def test_tags_warm_up_over_the_steps(step, expected, warmup, total):
    recipe = CaptionRecipe(keep_tokens=1, token_warmup_step=warmup)
    position = CaptionPosition(step=step, max_train_steps=total)
    assert process_caption("k, a, b, c, d", recipe, FirstChoice(), position) == expected


tags = st.lists(st.text("abcxyz", min_size=1, max_size=4), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(tags, st.integers(0, 9), st.integers(0, 2**32))
def test_shuffling_keeps_every_tag_and_the_leading_ones_in_place(words, keep, seed):
    recipe = CaptionRecipe(shuffle_caption=True, keep_tokens=keep)
    result = process_caption(", ".join(words), recipe, random.Random(seed)).split(", ")
    assert sorted(result) == sorted(words)
    assert result[:keep] == words[:keep]


@settings(max_examples=100, deadline=None)
@given(tags, st.floats(0, 1), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_caption(words, rate, seed):
    recipe = CaptionRecipe(
        shuffle_caption=True, caption_tag_dropout_rate=rate, caption_dropout_rate=0.1
    )
    text = ", ".join(words)
    first, second = (process_caption(text, recipe, random.Random(seed)) for _ in range(2))
    assert first == second
    assert set(first.split(", ")) <= {*words, ""}
