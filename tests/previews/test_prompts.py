"""Prompts are read as ComfyUI reads them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.errors import ConfigError
from library.previews.prompts import parse_prompt
from tests.helpers.tiny import golden

CASES = json.loads(golden("prompt_cases.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_pieces_and_weights_are_comfyuis(case):
    expected = [(text, float(weight)) for text, weight in case["segments"]]
    if not all(math.isfinite(weight) for _, weight in expected):
        with pytest.raises(ConfigError, match="not finite"):
            parse_prompt(case["text"])
        return
    found = parse_prompt(case["text"])
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@given(st.text(alphabet="()\\:1.5a, ", max_size=60))
def test_any_text_is_read_or_refused_in_words(text):
    try:
        found = parse_prompt(text)
    except ConfigError:
        return
    assert all(piece and math.isfinite(weight) for piece, weight in found)


def test_a_thousand_parentheses_are_refused():
    with pytest.raises(ConfigError, match="more than 100 parentheses"):
        parse_prompt("(" * 1000 + "a" + ")" * 1000)
