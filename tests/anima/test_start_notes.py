"""What a run is told before anything is loaded: its rates, and what differs from sd-scripts."""

import logging
import re

import pytest

from library.anima_runtime.start_notes import DIFFERENCES
from library.errors import ConfigError
from tests.helpers.paths import ROOT
from tests.helpers.running import config_files, make_trainer, train

QUIET = {
    "network_train_unet_only": True, "train_norm": False,
    "network_args": ["train_llm_adapter=false"],
}  # fmt: skip
LOKR = {"network_module": "networks.lokr_anima"}


@pytest.fixture
def checked(demo, run_folder):
    """A trainer whose options have been checked, nothing loaded."""

    def check(**settings):
        trainer = make_trainer(config_files(demo, run_folder, settings))
        trainer.prepare_process()
        trainer.check()
        return trainer

    return check


def test_a_run_without_a_learning_rate_is_told_the_usual_ones(checked):
    for settings, usual in (
        ({}, "LoRA with AdamW: 2e-5 to 1e-4"),
        (LOKR, "LoKr with AdamW: 1e-4"),
        ({"optimizer_type": "AdamW8bit"}, "LoRA with AdamW8bit: 2e-5 to 1e-4"),
        ({"optimizer_type": "Lion"}, "LoRA with Lion: a third to a tenth"),
        ({"optimizer_type": "torch.optim.SGD"}, "torch.optim.SGD may want another"),
    ):
        (told,) = checked(learning_rate=None, **settings).warnings()
        assert told.startswith("no learning_rate was given: 2e-06, sd-scripts' default")
        assert usual in told


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 2e-6},
        {"learning_rate": None, "unet_lr": 1e-4},
        {"learning_rate": None, "optimizer_type": "Prodigy"},
        {"learning_rate": None, "optimizer_type": "Adafactor"},
        {"learning_rate": None, "network_args": ["network_reg_lrs=.*=1e-4"]},
    ],
)
def test_a_run_with_a_rate_or_an_optimizer_that_finds_one_is_not_told(checked, settings):
    assert checked(**settings).warnings() == []


def test_a_rate_that_no_adapter_uses_is_named(checked):
    (told,) = checked(network_args=["network_reg_lrs=.*=1e-4"], learning_rate=1e-4).warnings()
    assert told.startswith("--learning_rate has no effect: every adapter has a rate of its own")


@pytest.mark.parametrize("settings", [{"learning_rate": 0}, {"unet_lr": 0}])
def test_a_run_that_would_learn_nothing_is_an_error(checked, settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}  is 0, and nothing has"):
        checked(**settings)


def test_a_rate_of_zero_beside_others_is_a_choice(checked):
    checked(learning_rate=0, llm_adapter_lr=1e-4)


@pytest.mark.parametrize(
    "settings, told",
    [
        (QUIET, None),
        ({**QUIET, "train_norm": None}, "norms train too; official sd-scripts leaves them alone"),
        ({**QUIET, "network_args": []}, "layers of the LLM adapter train too"),
        ({**QUIET, **LOKR, "network_args": ["lokr_factor=8"]}, "layers of the LLM adapter train"),
        ({**QUIET, **LOKR}, "lokr_factor is 8; LyCORIS and official networks.lokr take -1"),
        ({**QUIET, "noise_offset": 0.05}, "noise_offset acts here"),
        ({**QUIET, "min_timestep": 0, "max_timestep": 900}, "max_timestep acts here"),
        ({**QUIET, "mlp_lr": 1e-4, "self_attn_lr": 1e-5}, "self_attn_lr, mlp_lr act here"),
        ({**QUIET, "anima_sigmoid_scale": 1.3}, "early Anima fork always shifted it"),
        ({**QUIET, "anima_sigmoid_scale": 1.3, "anima_flow_shift": 3.0}, None),
        ({**QUIET, "loss_type": "huber", "huber_schedule": "exponential"}, "up to 5.8 times"),
        ({**QUIET, "loss_type": "l2", "huber_schedule": "exponential"}, None),
        (
            {**QUIET, "network_train_unet_only": None, "cache_text_encoder_outputs": False},
            "official sd-scripts trains a LoRA on it as well",
        ),
        ({**QUIET, "network_train_unet_only": None}, None),  # there an error, with cached text
    ],
)
def test_each_difference_from_sd_scripts_is_told_where_it_applies(checked, settings, told):
    found = checked(**settings).differences()
    if told is None:
        assert found == []
    else:
        (line,) = found
        assert line.startswith("differs from sd-scripts: ") and told in line


def test_the_documents_mark_each_difference_that_is_told():
    text = (ROOT / "docs" / "anima_train_network.md").read_text(encoding="utf-8")
    tables = [
        re.findall(
            r"^\| (.+?) \| .+? \| .+ \|$", text.split(title)[1].split("\n## ")[0], re.MULTILINE
        )
        for title in ("### 与 sd-scripts 的不同", "### What differs from sd-scripts")
    ]
    assert len(tables[0]) == len(tables[1]) > 20
    marked = [[number for number, row in enumerate(rows) if row.startswith("●")] for rows in tables]
    assert marked[0] == marked[1] and len(marked[0]) == len(DIFFERENCES)


def test_the_start_of_a_run_tells_both(demo, run_folder, caplog):
    caplog.set_level(logging.INFO)
    train(demo, run_folder, {"learning_rate": None, "max_train_steps": 1, "log_with": "none"})
    assert sum("no learning_rate was given" in line for line in caplog.messages) == 1
    assert sum("norms train too" in line for line in caplog.messages) == 1


def test_trained_norms_are_not_left_out_of_the_file_unasked(checked):
    for settings in ({"norm_export": "omit"}, {"network_args": ["norm_export=omit"]}):
        with pytest.raises(ConfigError, match="norms out of the file"):
            checked(**settings)
        checked(**settings, train_norm=False)
    assert checked(norm_export="omit_trained").outline.settings.norm_export.value == "omit_trained"


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"network_dim": 8, "network_alpha": 4}, []),
        ({"network_args": ["lokr_full_matrix=true"], "network_alpha": 4}, ["alpha", "dim"]),
        ({"network_args": ["lokr_full_matrix=true"], "network_dim": 100000}, ["alpha"]),
        (
            {"network_args": ["lokr_decompose_both=true"], "network_dim": 512},
            ["decompose", "alpha"],
        ),
    ],
)
def test_what_full_matrices_do_not_use_is_named(demo, run_folder, caplog, arguments, told):
    trainer = make_trainer(config_files(demo, run_folder, {**LOKR, **arguments}))
    trainer.prepare_process()
    trainer.check()
    trainer.subject.made_for(trainer.empty_model())
    (line,) = [line for line in caplog.messages if "where every matrix is full" in line] or [""]
    assert all(name in line for name in told) and len(line.split(", ")) == max(1, len(told))


def test_a_component_that_is_frozen_is_not_trained_by_a_pattern(checked):
    pattern = "network_reg_lrs=.*self_attn.*=1e-2"
    with pytest.raises(ConfigError, match="self_attn_lr=0  freezes the component, and"):
        checked(self_attn_lr=0, network_args=[pattern])
    checked(self_attn_lr=0, network_args=["network_reg_lrs=.*self_attn.*=0,.*mlp.*=1e-4"])


@pytest.mark.parametrize("name, flag, text", [
    ("norm_export", "diff", "omit_trained"), ("mlp_lr", 1e-4, "1e-5"), ("train_norm", True, "false"),
])  # fmt: skip
def test_a_flag_and_network_args_may_not_differ(checked, name, flag, text):
    with pytest.raises(ConfigError, match=f"{name}={text} differs from the flag"):
        checked(**{name: flag, "network_args": [f"{name}={text}"]})


def test_a_rate_in_network_args_reaches_the_component(checked):
    groups, names = checked(network_args=["mlp_lr=1e-5"]).outline.prepare_optimizer_params(
        None, None, 1e-3
    )
    assert dict(zip(names, (group["lr"] for group in groups)))["unet mlp"] == 1e-5
