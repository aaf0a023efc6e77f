"""Types, choices and checks of a single flag."""

import re
from argparse import ArgumentParser
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from library.settings.effects import loses_to, needs
from library.settings.flag_values import convert, value_problem
from library.settings.options import (
    above,
    add_flags,
    at_least,
    between,
    build,
    flag,
    flags_of,
    idle_flags,
    size,
    steps_or_fraction,
    word,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """An example"""

    count: int = flag(1, "a number", check=at_least(1))
    seed: int | None = flag(None, "a seed")
    rate: float = flag(
        0.5,
        "a share, 50% say",
        check=between(0, 1),
        idle=(loses_to(lambda o: o.seed, "seed decides"),),
    )
    scale: float = flag(
        1.0, "a factor", check=above(0), idle=(needs(lambda o: o.count > 1, "count is {o.count}"),)
    )
    kind: str = flag("none", "a kind", choices=("none", "some", "sigmoid"))
    path: str | None = flag(
        None,
        "a path",
        names=("--path", "--file"),
        idle=(loses_to(lambda o: o.seed, "seed decides"),),
    )
    on: bool = flag(False, "a switch")
    off: bool = flag(True, "a switch that is on")
    items: tuple[str, ...] | None = flag(None, "texts")
    rates: tuple[float, ...] | None = flag(None, "numbers")
    steps: float = flag(0, "steps", read=steps_or_fraction)
    later: int | None = flag(None, "a dream", refused="not available", off=(1,))


FLAGS = {each.dest: each for each in flags_of(Options)}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "7", 7),
        ("count", "1e3", 1000),
        ("count", "10.0", 10),
        ("seed", "18446744073709551615", 2**64 - 1),
        ("rate", "1", 1.0),
        ("rate", "-1e-3", -0.001),
        ("on", "true", True),
        ("on", "False", False),
        ("items", ["a=1", "b=2"], ("a=1", "b=2")),
        ("items", [], ()),
        ("rates", ["1", "2e-1"], (1.0, 0.2)),
        ("path", "C:\\x\\new", "C:\\x\\new"),
    ],
)
def test_text_becomes_the_flags_type(name, text, value):
    found = convert(FLAGS[name], text, from_text=True)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 3, 3),
        ("count", 3.0, 3),
        ("seed", 2**60 + 1, 2**60 + 1),
        ("rate", 1, 1.0),
        ("rates", 0.5, (0.5,)),
        ("rates", [1, 0.5], (1.0, 0.5)),
        ("on", True, True),
        ("items", ["a"], ("a",)),
    ],
)
def test_toml_values_become_the_flags_type(name, value, expected):
    found = convert(FLAGS[name], value, from_text=False)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", "3", "a whole number, got text. Remove the quotes"),
        ("rate", "1e-4", "a number, got text. Remove the quotes"),
        ("count", 1.5, "a whole number"),
        ("count", True, "a whole number"),
        ("rate", float("inf"), "a number that is finite"),
        ("rate", float("nan"), "a number that is finite"),
        ("rate", [1], "a number"),
        ("on", "true", "true or false, got text. Remove the quotes"),
        ("on", 2, "true or false"),
        ("path", 3, "text in quotes"),
        ("items", "a=1", 'a list: items = ["a=1"]'),
        ("items", [1], "text in quotes"),
        ("steps", True, "whole steps"),
    ],
)
def test_a_wrong_type_in_toml_says_what_is_expected(name, value, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        convert(FLAGS[name], value, from_text=False)


@pytest.mark.parametrize("text", ["x", "1.5", "nan", "1e400", ""])
def test_text_that_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="a whole number"):
        convert(FLAGS["count"], text, from_text=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "expected 1 or more."),
        ("rate", 1.5, "expected 0 to 1."),
        ("scale", 0.0, "expected more than 0."),
        ("kind", "sigmiod", "expected one of none, some, sigmoid. Did you mean sigmoid?"),
        ("later", 2, "is refused: not available."),
    ],
)
def test_a_value_out_of_bounds_says_what_is_expected(name, value, message):
    assert value_problem(FLAGS[name], value) == message


def test_values_within_bounds_pass():
    assert value_problem(FLAGS["count"], 1) is None
    assert value_problem(FLAGS["later"], 0) is None
    assert value_problem(FLAGS["later"], 1) is None


@pytest.mark.parametrize(
    ("name", "value", "asks"),
    [
        ("seed", 5, True),
        ("seed", 0, False),  # where nothing is the default, 0 asks for nothing
        ("rate", 0.0, True),
        ("rate", 0.5, False),
        ("off", False, False),
        ("on", True, True),
        ("path", "", False),
        ("items", (), False),
        ("rates", (0.0, 0.0), False),
        ("rates", (0.0, 0.1), True),
    ],
)
def test_what_asks_for_something(name, value, asks):
    assert FLAGS[name].asks(value) is asks


@pytest.mark.parametrize(
    ("value", "steps"),
    [("10%", 0.1), ("0.5%", 0.005), (0.1, 0.1), ("0.1", 0.1), (100, 100), (100.0, 100),
     ("100", 100), (1, 1), (0, 0.0), ("0%", 0.0)],
)  # fmt: skip
def test_steps_fractions_and_percentages(value, steps):
    assert steps_or_fraction(value) == steps
    assert isinstance(steps_or_fraction(value), int) == (steps >= 1)


@pytest.mark.parametrize("value", [1.5, "1.5", "100%", "150%", -1, "-5%", "ten", "nan", "inf", [1]])
def test_what_is_neither_steps_nor_a_fraction(value):
    with pytest.raises((ValueError, TypeError)):
        steps_or_fraction(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1024, "1024"), ("1024", "1024"), ("1024, 768", "1024,768"), ([1024, 768], "1024,768")],
)
def test_sizes(value, text):
    assert size(value) == text


@pytest.mark.parametrize("value", ["", "a", "1,2,3", 512.5, True, 0, "-4", [1, 2, 3], {}])
def test_what_is_no_size(value):
    with pytest.raises((ValueError, TypeError)):
        size(value)


def test_words_may_be_booleans():
    assert (word(True), word("auto")) == ("true", "auto")
    with pytest.raises(ValueError):
        word(1)


def test_a_group_is_built_from_its_own_values():
    built = build(Options, {"count": 3, "of another group": 1})
    assert (built.count, built.rate) == (3, 0.5)


def test_a_flag_that_the_others_leave_without_effect_tells_why():
    assert idle(Options(scale=2.0)) == {"scale": "count is 1"}
    assert idle(Options(scale=2.0, count=2)) == {}


def test_the_default_asks_for_nothing_but_can_lose_to_another_value():
    assert idle(Options(scale=1.0)) == {}
    assert idle(Options(seed=5, rate=0.5)) == {"rate": "seed decides"}
    assert idle(Options(seed=5, path="")) == {"rate": "seed decides"}


def idle(options: Options) -> dict[str, str]:
    return idle_flags(flags_of(Options), SimpleNamespace(**vars(options), datasets=None))


def test_a_percent_sign_in_the_help_is_shown():
    parser = ArgumentParser(prog="x")
    add_flags(parser, Options)
    assert "a share, 50% say" in parser.format_help()
