"""Choosing modules: pattern forms, exclusion, per-pattern values, and what matches nothing."""

import pytest
from torch import nn

from library.errors import ConfigError
from networks.targets import TargetRules, matches_target, select_targets

PATHS = [
    "blocks.0.self_attn.q_proj",
    "blocks.0.self_attn.output_proj",
    "blocks.1.cross_attn.q_proj",
    "blocks.1.mlp.layer1",
    "front.blocks.0.self_attn.q_proj",
    "front.blocks.0.mlp.0",
]
NORMS = ["blocks.0.self_attn.q_norm", "front.norm"]


def chosen(*targets, norms=(), **rules):
    linears = {path: nn.Linear(2, 2) for path in PATHS}
    selection = select_targets(
        linears, {path: nn.RMSNorm(2) for path in norms}, TargetRules(targets, **rules)
    )
    return selection


def paths(selection):
    return [target.path for target in selection.linears]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("q_proj", [0, 2, 4]),
        ("self_attn.q_proj", [0, 4]),
        ("blocks.0.self_attn.q_proj", [0, 4]),
        ("transformer.mlp.layer1", [3]),
        ("blocks.*.q_proj", [0, 2]),
        ("*.mlp.?", [5]),
        ("transformer.blocks.0.*", [0, 1]),
        (r"re:^blocks\.\d\.(mlp|cross)", [2, 3]),
        ("re:output", [1]),
    ],
)
def test_a_pattern_is_an_ending_a_glob_of_the_whole_path_or_a_regex(pattern, expected):
    assert paths(chosen(pattern)) == [PATHS[index] for index in expected]


def test_an_ending_matches_whole_names_only():
    assert not matches_target("proj", "blocks.0.self_attn.q_proj")
    assert not matches_target("attn.q_proj", "blocks.0.self_attn.q_proj")


def test_exclusion_takes_away_and_inclusion_wins_over_it():
    selection = chosen("q_proj", exclude=(r".*self_attn.*",), include=(r"front\..*q_proj",))
    assert paths(selection) == [PATHS[2], PATHS[4]]


def test_inclusion_adds_what_no_target_names():
    selection = chosen("layer1", include=(r".*\.0\.mlp\.0", ".*layer1"))
    assert paths(selection) == [PATHS[3], PATHS[5]] and selection.added == (PATHS[5],)


def test_exclude_patterns_match_the_whole_path_and_apply_to_norms():
    selection = chosen("q_proj", exclude=(r"front\..*",), norms=NORMS)
    assert paths(selection) == [PATHS[0], PATHS[2]]
    assert [target.path for target in selection.norms] == NORMS[:1]


def test_nothing_below_an_excluded_prefix_is_adapted():
    selection = chosen("q_proj", prefixes=("front.",), norms=NORMS)
    assert paths(selection) == [PATHS[0], PATHS[2]]
    assert [target.path for target in selection.norms] == NORMS[:1]


def test_no_target_at_all_leaves_the_norms():
    selection = chosen(norms=NORMS)
    assert not selection.linears and len(selection.norms) == 2


def test_the_first_matching_rank_alpha_and_rate_win_and_rank_zero_leaves_out():
    selection = chosen(
        "q_proj",
        dims=((r"front\..*", 0), (r".*self_attn.*", 8), (r"blocks\.0.*", 16)),
        alphas=((r".*cross.*", 2.0),),
        lrs=((r"blocks\.0.*", 1e-5),),
        norms=NORMS,
    )
    found = [(t.path, t.rank, t.alpha, t.lr) for t in selection.linears]
    assert found == [(PATHS[0], 8, None, 1e-5), (PATHS[2], None, 2.0, None)]
    assert [t.lr for t in selection.norms] == [1e-5, None]


def test_how_many_modules_each_pattern_matched_is_told():
    assert chosen("q_proj", "layer1").matches == {
        "target_modules layer1": 1,
        "target_modules q_proj": 3,
    }


def test_every_pattern_that_matches_nothing_is_named_in_one_error():
    with pytest.raises(ConfigError) as caught:
        chosen("q_porj", "mlp.layer1", exclude=("q_proj",), dims=((".*nothing.*", 4),))
    text = str(caught.value)
    assert "3 problems in network_args" in text
    assert "target_modules 'q_porj'" in text and "Did you mean q_proj?" in text
    assert "exclude_patterns 'q_proj'" in text and "network_reg_dims '.*nothing.*'" in text


def test_every_pattern_that_is_no_regex_is_named_in_one_error():
    with pytest.raises(ConfigError) as caught:
        chosen("re:(", exclude=("[",), lrs=(("*a", 1.0),))
    assert len(caught.value.problems) == 3
