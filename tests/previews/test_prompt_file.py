"""Files of prompts: every form, every option, every mistake in words; anything else is refused, never a crash."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from library.errors import ConfigError
from library.previews.prompt_file import (
    BY_KEY,
    BY_LETTER,
    COMFYUIS_NEGATIVE,
    SETTINGS,
    USUAL,
    PreviewPrompt,
    read_prompts,
)
from library.previews.samplers import INSTEAD_OF, SAMPLERS, SD_SCRIPTS_NAMES, resolve_sampler
from library.settings.flags.preview import SAMPLERS as NAMES_OF_THE_FLAG


def read(tmp_path, text, name="prompts.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_prompts(path)


def problems(tmp_path, text, name="prompts.txt"):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, name)
    return [f"{p.where}: {p.message}" for p in caught.value.problems]


def test_a_line_is_a_picture_with_comfyuis_settings(tmp_path):
    (prompt,) = read(tmp_path, "# a comment\n\n  1girl, saber (fate) -- smiling\n")
    assert prompt == PreviewPrompt(prompt="1girl, saber (fate) -- smiling")
    shown = (prompt.sampler, prompt.scheduler, prompt.steps, prompt.cfg, prompt.shift)
    assert shown == ("er_sde", "simple", 30, 4.0, 3.0)
    assert prompt.negative == COMFYUIS_NEGATIVE


def test_every_inline_option_of_sd_scripts_is_read(tmp_path):
    line = "a cat --n bad, --worse hands --w 832 --h 1216 --d 42 --s 20 --l 5.5 --fs 2 --ss k_euler_a --sc beta --am 0.5"
    (prompt,) = read(tmp_path, line.replace("--worse ", ""))
    assert prompt == PreviewPrompt(
        prompt="a cat", negative="bad, hands", width=832, height=1216, seed=42, steps=20, cfg=5.5,
        shift=2.0, sampler="euler_ancestral", scheduler="beta", multiplier=0.5,
    )  # fmt: skip
    assert read(tmp_path, "a cat --g 3")[0].cfg == 3
    assert read(tmp_path, "a cat --n")[0].negative == ""


def test_a_picture_that_names_no_sampler_has_the_callers(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a\nb --ss ddim\n")
    usual = replace(USUAL, sampler="heun", steps=7, negative="")
    found = read_prompts(path, usual)
    assert [each.sampler for each in found] == ["heun", "ddim"]
    assert {(each.steps, each.negative) for each in found} == {(7, "")}


def test_toml_and_json_say_the_same(tmp_path):
    toml = """
        [prompt]
        width = 512
        scale = 6
        [[prompt.subset]]
        prompt = "a cat"
        seed = 1
        [[prompt.subset]]
        prompt = "a dog"
        width = 640
        negative_prompt = ""
    """
    subsets = [
        {"prompt": "a cat", "seed": 1},
        {"prompt": "a dog", "width": 640, "negative_prompt": ""},
    ]
    tables = {"prompt": {"width": 512, "scale": 6, "subset": subsets}}
    expected = [
        PreviewPrompt(prompt="a cat", width=512, cfg=6.0, seed=1),
        PreviewPrompt(prompt="a dog", width=640, cfg=6.0, negative=""),
    ]
    assert read(tmp_path, toml, "p.toml") == expected
    assert read(tmp_path, json.dumps(tables), "p.json") == expected
    plain = ["a cat --w 512 --l 6 --d 1", {"prompt": "a dog", "width": 640, "cfg": 6, "negative": ""}]
    assert read(tmp_path, json.dumps(plain), "p.json") == expected
    (alone,) = read(tmp_path, '[prompt]\nprompt = "a cat"\n', "p.toml")
    assert alone == PreviewPrompt(prompt="a cat")


def test_all_mistakes_are_told_at_once_with_their_places(tmp_path):
    text = "a --w 500 --s x\n\nb --ss eulr\nc --k 3\nd (e:inf)\nf --l 3 --g 4\n --w 512"
    assert problems(tmp_path, text) == [
        "line 1  --w 500: expected a multiple of 8: 496 or 504.",
        "line 1  --s x: expected a whole number from 1 to 1000.",
        "line 3  --ss eulr: no such sampler. Did you mean euler?",
        f"line 4  --k: no such option. There are {', '.join(f'--{x}' for x in BY_LETTER)}.",
        "line 5: prompt 'd (e:inf)': the weight of 'e' is not finite.",
        "line 6  --g: is guidance too, with another value. Keep one of them.",
    ]


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("p.txt", "# nothing\n", "holds no prompt"),
        ("p.txt", "a --sc kl_optimal --s 1", "at least two steps"),
        ("p.toml", "a = 1", "no [prompt] table"),
        ("p.toml", "[prompt", "not valid TOML"),
        ("p.toml", '[prompt]\nsubset = "a"', "not a list"),
        ("p.toml", "[prompt]\n[[prompt.subset]]\nwidth = 512", "has no prompt"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", "[1]", "neither a text nor a table"),
        ("p.json", '[{"prompt": 3}]', "expected text"),
        ("p.json", '[{"prompt": "a", "seed": true}]', "whole number"),
        ("p.json", '[{"prompt": "a", "scale": NaN}]', "expected a number"),
        ("p.json", '[{"prompt": "a", "scale": 1e999}]', "expected a number"),
        ("p.json", '[{"prompt": "a", "stepz": 3}]', "Did you mean steps?"),
    ],
)
def test_other_mistakes(tmp_path, name, text, told):
    assert told in "\n".join(problems(tmp_path, text, name))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path)


def test_what_has_no_use_is_named(tmp_path):
    (prompt,) = read(tmp_path, "a --cn x.png --ss pndm")
    assert prompt.sampler == "lms"
    assert prompt.notes == (
        "line 1: --cn has no use here and was passed over.",
        "line 1: pndm means nothing for flow matching; lms is used instead.",
    )


def test_every_sampler_of_the_flag_has_an_answer():
    for name in NAMES_OF_THE_FLAG:
        used, note = resolve_sampler(name)
        assert used in SAMPLERS
        assert bool(note) is (name in INSTEAD_OF)
    assert not set(SD_SCRIPTS_NAMES) & set(SAMPLERS)


def test_each_field_can_be_set():
    assert {s.field for s in SETTINGS} | {"notes"} == {f.name for f in fields(PreviewPrompt)}


TEXTS = st.text(alphabet="abw 1.5()\\:-#\n=[]{}\",'", max_size=80)


@pytest.mark.parametrize("name", ["p.txt", "p.toml", "p.json"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_any_text_is_read_or_refused_in_words(tmp_path, name, text):
    try:
        found = read(tmp_path, text, name)
    except ConfigError:
        return
    assert all(isinstance(prompt, PreviewPrompt) for prompt in found)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*BY_KEY, "x"]), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_any_json_is_read_or_refused_in_words(tmp_path, value):
    for document in (value, [value], {"prompt": {"subset": [value]}}):
        try:
            read(tmp_path, json.dumps(document), "p.json")
        except ConfigError:
            continue
