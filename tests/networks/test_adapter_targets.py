"""networks.lora_anima and lokr_anima on the model at true size, without weights (meta device)."""

import pytest
import torch
from torch import nn

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import PUBLISHED
from library.errors import ConfigError
from networks import lokr_anima, lora_anima
from networks.contract import REQUIRED_NAMES, check_network_module


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        model = Anima(PUBLISHED)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_091_068_928
    return model


def created(model, module=lora_anima, dim=4, alpha=1, **kwargs):
    return module.create_network(1.0, dim, alpha, None, None, model, **kwargs)


def counts(network):
    norms = sum(placement.is_norm for placement in network.placements)
    return len(network.placements) - norms, norms


@pytest.mark.parametrize("module", [lora_anima, lokr_anima])
def test_the_default_is_340_linears_and_156_norms(model, module):
    network = created(model, module)
    assert counts(network) == (340, 156)
    adapter = [p for p in network.placements if p.path.startswith("llm_adapter.")]
    assert sum(p.is_norm for p in adapter) == 43 and len(adapter) == 60 + 43


def test_both_off_switches_leave_what_official_sd_scripts_trains(model):
    assert counts(created(model, train_llm_adapter="false")) == (280, 113)
    assert counts(created(model, train_norm=False)) == (340, 0)
    assert counts(created(model, train_llm_adapter="no", train_norm="no")) == (280, 0)
    assert counts(created(model, target_modules="none")) == (0, 156)


@pytest.mark.parametrize("module", [lora_anima, lokr_anima])
def test_the_modulations_of_the_blocks_are_a_group_of_their_own(model, module):
    network = created(model, module, train_adaln="true", train_llm_adapter="false", mod_lr=1e-5)
    assert counts(network) == (280 + 28 * 3 * 2, 113)
    own = [p for p in network.placements if "adaln_modulation" in p.path]
    assert len(own) == 168 and {p.lr for p in own} == {1e-5}
    assert network.network_args["train_adaln"] == "true"
    assert counts(created(model, train_adaln=True, target_modules="mlp.layer1"))[0] == 28 + 168


def test_what_an_inclusion_adds_to_the_default_is_said(model, caplog):
    caplog.set_level("INFO")
    network = created(model, include_patterns="llm_adapter.*")
    assert counts(network)[0] == 341
    (line,) = [line for line in caplog.messages if "include_patterns" in line]
    assert "llm_adapter.out_proj" in line and "(Linears: 1)" in line


@pytest.mark.parametrize(("alpha", "expected"), [(None, 4.0), (0, 4.0), (1, 1.0), (100_000, 1e5)])
def test_rank_is_4_when_not_given_and_alpha_0_or_none_is_the_rank(model, alpha, expected):
    network = created(model, dim=None, alpha=alpha, train_norm=False)
    assert {(p.adapter.rank, p.adapter.alpha) for p in network.placements} == {(4, expected)}


def test_alpha_zero_follows_the_rank_of_each_module(model):
    network = created(model, alpha=0, network_reg_dims=r".*mlp.*=16", train_norm=False)
    assert {(p.adapter.rank, p.adapter.scale) for p in network.placements} == {(4, 1.0), (16, 1.0)}


def test_the_sentinel_forces_full_matrices_and_logs_the_line(model, caplog):
    caplog.set_level("INFO")
    network = created(model, lokr_anima, dim=100_000, alpha=7, lokr_decompose_both=True)
    assert "network_dim=100000 >= 100000, forcing lokr_full_matrix=true" in caplog.messages
    for placement in network.placements:
        if not placement.is_norm:
            assert placement.adapter.scale == placement.adapter.alpha == 1.0
            assert set(placement.adapter.factors()) == {"lokr_w1", "lokr_w2"}
    assert network.network_args["lokr_full_matrix"] == "true"


def test_rank_dropout_without_a_rank_is_said_once(model, caplog):
    created(model, lokr_anima, lokr_full_matrix=True, lokr_rank_dropout=0.1)
    assert len([line for line in caplog.messages if "has no effect on 340 of 340" in line]) == 1
    caplog.clear()
    created(model, lokr_anima, lokr_rank_dropout=0.1)
    assert not caplog.messages


def test_metadata_arguments_are_effective_and_are_texts(model):
    network = created(model, lokr_anima, factor="4", exclude_patterns=r".*\.27\..*", mlp_lr=1e-5)
    assert network.network_args == {
        "train_norm": "true", "train_llm_adapter": "true", "norm_export": "diff",
        "exclude_patterns": r".*\.27\..*", "mlp_lr": "1e-05", "lokr_factor": "4",
        "lokr_full_matrix": "false", "lokr_decompose_both": "false",
    }  # fmt: skip


def test_the_metadata_has_the_rank_and_alpha_that_train(model):
    assert (created(model, dim=None, alpha=0).dim, created(model, dim=None, alpha=0).alpha) == (
        4,
        4,
    )
    sentinel = created(model, lokr_anima, dim=100_000, alpha=100_000)
    assert (sentinel.dim, sentinel.alpha) == (100_000, 1.0)
    assert created(model, target_modules="none").alpha is None


def test_the_summary_says_what_is_adapted_and_what_each_pattern_matched(model):
    lines = created(model, target_modules="self_attn.q_proj,mlp.0", train_norm="0").summary()
    assert lines[0].startswith("LoRA: 40 Linears (rank 4) and 0 norms, ")
    assert "self_attn.q_proj 34" in lines[1] and "mlp.0 6" in lines[1]


def test_a_target_that_matches_nothing_is_an_error_naming_the_nearest(model):
    with pytest.raises(ConfigError, match="Did you mean q_proj"):
        created(model, target_modules="q_prj")


def test_a_network_is_made_for_the_true_size_model_and_attaches(model):
    network = created(model)
    network.apply_to(None, model)
    try:
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert len(trainable) == 340 * 2 + 156
    finally:
        network.remove()
    assert not any("adapter.lora" in name for name, _ in model.named_parameters())


def test_what_a_network_module_lacks_is_named_in_one_error():
    assert check_network_module(lora_anima) is lora_anima
    with pytest.raises(ConfigError) as caught:
        check_network_module(nn)
    assert all(name in str(caught.value) for name in REQUIRED_NAMES)
