"""network_args: how values are read, what is refused, and what stands in the metadata."""

import pytest

from library.errors import ConfigError
from networks import lokr_anima, lora_anima
from networks.arguments import (
    parse_network_args,
    read_bool,
    read_list,
    read_pairs,
)


def problems(module, dim=4, alpha=1, dropout=None, **kwargs):
    found = module.check_network_args(dim, alpha, dropout, **kwargs)
    return [f"{problem.where}: {problem.message}" for problem in found]


@pytest.mark.parametrize("word", ["true", "True", "1", "yes", "on", "Y", True, 1])
def test_many_words_are_true(word):
    assert read_bool(word) is True


@pytest.mark.parametrize("word", ["false", "FALSE", "0", "no", "off", "n", False, 0])
def test_many_words_are_false(word):
    assert read_bool(word) is False


@pytest.mark.parametrize("word", ["maybe", "", "2", None])
def test_other_words_are_no_boolean(word):
    with pytest.raises(ValueError, match="true or false"):
        read_bool(word)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("q_proj, k_proj", ("q_proj", "k_proj")),
        ("re:a{1,2},b", ("re:a{1,2}", "b")),
        ("['a.*', 'b,c']", ("a.*", "b,c")),
        ("[ab].*", ("[ab].*",)),
        (["a", "b"], ("a", "b")),
    ],
)
def test_lists_are_python_lists_or_parted_by_commas_outside_brackets(value, expected):
    assert read_list(value) == expected


def test_pairs_are_split_at_their_last_equals_sign():
    assert read_pairs("(?=a)b=4,c=0.5") == (("(?=a)b", 4.0), ("c", 0.5))
    with pytest.raises(ValueError, match="regex=number"):
        read_pairs("abc")


def test_texts_become_a_mapping_and_bad_ones_are_named_together():
    assert parse_network_args(["a=1", "b = x=y "]) == {"a": "1", "b": "x=y"}
    assert parse_network_args(None) == {}
    with pytest.raises(ConfigError) as caught:
        parse_network_args(["lokr_factor", "a=1", "a=2"])
    assert len(caught.value.problems) == 2


def test_a_misspelt_argument_names_the_nearest_one():
    assert problems(lora_anima, train_nrom="true") == [
        "train_nrom: no such argument. Did you mean train_norm?"
    ]
    assert "Did you mean lokr_factor?" in problems(lokr_anima, lokr_facto="4")[0]


def test_an_argument_of_the_other_module_says_so():
    for name in ("lokr_factor", "factor", "decompose_both"):
        assert "networks.lokr_anima" in problems(lora_anima, **{name: "4"})[0]
    assert "networks.lokr_anima" in problems(lora_anima, lokr_facto="4")[0]
    assert "--network_module" in problems(lokr_anima, algo="lokr")[0]


def test_all_problems_are_told_at_once():
    found = problems(
        lokr_anima, 0, -1, 1.0, lokr_factor=0, rank_dropout="x", module_dropout=1,
        train_norm="maybe", network_reg_dims="a=1.5", mlp_lr=-1, norm_export="both",
        target_modules="", nothing_like_it=1, exclude_patterns="(", network_reg_lrs="[=1",
    )  # fmt: skip
    assert len(found) == 14


@pytest.mark.parametrize("alias", ["rank_dropout", "lokr_rank_dropout"])
def test_aliases_are_read_and_may_not_contradict(alias):
    assert problems(lokr_anima, **{alias: "0.1"}) == []
    assert len(problems(lokr_anima, factor=4, lokr_factor=8)) == 1
    assert problems(lokr_anima, factor=4, lokr_factor="4") == []


def test_arguments_that_are_none_are_not_given():
    assert problems(lora_anima, None, None, None, llm_adapter_lr=None, train_norm=None) == []


def test_a_lora_of_dim_100000_is_an_error_and_a_lokr_is_not():
    assert "networks.lokr_anima" in problems(lora_anima, 100_000)[0]
    assert problems(lokr_anima, 100_000) == []
    assert problems(lora_anima, 99_999) == []
    assert "full matrices" in problems(lora_anima, network_reg_dims="a=100000,b=4")[0]
    assert problems(lokr_anima, network_reg_dims="a=100000") == []
