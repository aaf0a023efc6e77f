"""The forms in which published files write values: empty, 0 for off, 1 for true, lists in one text."""

import pytest
import torch

from library.anima_backend.modelling import attention
from library.anima_runtime.command_line import GROUPS, load_run
from library.errors import ConfigError
from library.settings.flags.cache import CacheOptions
from library.settings.flags.loop import LoopOptions
from library.settings.flags.network import NetworkOptions
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.flags.precision import PrecisionOptions
from library.settings.flags.schedule import ScheduleOptions
from library.settings.options import all_flags
from library.training.optimizers import check_optimizer
from networks import lora_anima
from networks.arguments import parse_network_args, read_list
from tests.helpers.configs import found, read
from tests.helpers.running import config_files, make_trainer

FLAGS = all_flags(GROUPS)


@pytest.mark.parametrize("dest", [dest for dest, flag in FLAGS.items() if flag.ignored])
def test_what_has_no_effect_is_never_refused_for_its_value(tmp_path, dest):
    name = FLAGS[dest].names[0].removeprefix("--")
    for value in ('"no such thing"', "-7.5", "true", "[1]"):
        loaded = read(toml_text=f"{name} = {value}\n", folder=tmp_path)
        assert not found(loaded), value
        default = getattr(next(g for g in loaded.groups.values() if hasattr(g, dest)), dest)
        if dest not in loaded.explicit:
            assert default == FLAGS[dest].default
            assert any(name in note for note in loaded.notes)


@pytest.mark.parametrize("dest", [d for d in FLAGS if d not in ("config_file", "output_config")])
def test_an_empty_text_is_not_given(tmp_path, dest):
    name = FLAGS[dest].names[0].removeprefix("--")
    loaded = read(toml_text=f'{name} = ""\n', folder=tmp_path)
    assert not found(loaded) and not loaded.explicit - {"config_file"} and not loaded.notes


def test_an_empty_text_on_the_command_line_takes_back_what_the_file_says(tmp_path):
    loaded = read("--network_weights", "", toml_text='network_weights = "a"\n', folder=tmp_path)
    assert loaded.groups[NetworkOptions].network_weights is None
    assert not found(loaded)


@pytest.mark.parametrize(("written", "on"), [("1", True), ("0", False), ("true", True)])
def test_switches_may_be_1_and_0(tmp_path, written, on):
    loaded = read(toml_text=f"cache_latents = {written}\n", folder=tmp_path)
    assert loaded.groups[CacheOptions].cache_latents is on
    assert read("--cache_latents", written).groups[CacheOptions].cache_latents is on


@pytest.mark.parametrize("pair", ["1 false", "0 true", "true 0", "false 1"])
def test_an_old_name_written_0_never_switches_off(tmp_path, pair):
    new, old = pair.split()
    text = f"skip_cache_check = {new}\nskip_latents_validity_check = {old}"
    loaded = read(toml_text=text, folder=tmp_path)
    assert loaded.groups[CacheOptions].skip_cache_check and not found(loaded)


@pytest.mark.parametrize(
    "dest", [d for d, flag in FLAGS.items() if 0 in flag.off and flag.default is None]
)
def test_0_means_off_where_nothing_is_the_default(tmp_path, dest):
    name = FLAGS[dest].names[0].removeprefix("--")
    loaded = read(toml_text=f"{name} = 0\n", folder=tmp_path)
    assert not found(loaded)
    assert getattr(next(g for g in loaded.groups.values() if hasattr(g, dest)), dest) is None


def test_no_steps_beside_epochs_are_no_problem_and_alone_they_are(tmp_path):
    loaded = read(toml_text="max_train_steps = 0\nmax_train_epochs = 2", folder=tmp_path)
    assert not found(loaded) and loaded.groups[LoopOptions].max_train_epochs == 2
    for text in ("max_train_steps = 0", "max_train_steps = 0\nmax_train_epochs = 0"):
        ((where, message),) = found(read(toml_text=text, folder=tmp_path)).items()
        assert where == "line 1  max_train_steps = 0" and "max_train_epochs instead" in message


def test_a_value_that_does_nothing_keeps_the_default(tmp_path):
    text = 'dynamo_backend = "torch_xla"\nmax_token_length = 77\n'
    loaded = read(toml_text=text, folder=tmp_path)
    assert loaded.groups[PrecisionOptions] == PrecisionOptions()
    assert [note.split()[0] for note in loaded.notes] == ["dynamo_backend", "max_token_length"]


def test_a_word_for_off_is_no_news_of_a_flag_without_effect(tmp_path):
    loaded = read(toml_text='dynamo_backend = "no"\n', folder=tmp_path)
    assert loaded.notes == () and not found(loaded)


def test_repeated_lists_add_up_and_other_repeats_are_said():
    words = ["--network_args", "a=1", "--network_args", "b=2", "c=3", "--seed", "1", "--seed", "2"]
    loaded = read(*words)
    assert loaded.groups[NetworkOptions].network_args == ("a=1", "b=2", "c=3")
    assert loaded.groups[LoopOptions].seed == 2
    assert loaded.notes == ("--seed is given twice: the last counts, 2.",)
    assert not read("--seed", "1", "--seed", "1").notes


def test_one_text_with_several_arguments_gets_the_list_to_write(tmp_path):
    text = 'optimizer_args = "weight_decay=0.1 betas=(0.9, 0.99)"'
    ((_, message),) = found(read(toml_text=text, folder=tmp_path)).items()
    assert message.endswith('["weight_decay=0.1", "betas=(0.9, 0.99)"].')


@pytest.mark.parametrize("item", ["eps=1e-8 betas=0.9,0.99", "eps=1e-8, betas=0.9,0.99"])
def test_one_item_with_several_arguments_of_the_optimizer(item):
    (problem,) = check_optimizer(OptimizerOptions(optimizer_args=(item,)), ScheduleOptions())
    assert '["eps=1e-8", "betas=0.9,0.99"]' in problem.message


def test_one_item_with_several_arguments_of_the_network():
    with pytest.raises(ConfigError, match=r'\["lokr_factor=8", "train_norm=false"\]'):
        parse_network_args(["lokr_factor=8  train_norm=false"])
    ranks = "network_reg_dims=.*self_attn.*=8, .*mlp.*=4"
    assert parse_network_args([ranks]) == {"network_reg_dims": ranks.partition("=")[2]}


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ("'.*mlp.*'", (".*mlp.*",)),
        ('".*mlp.*"', (".*mlp.*",)),
        ("['.*mlp.*']", (".*mlp.*",)),
        ("('a.*', 'b')", ("a.*", "b")),
        ("'a.*', 'b'", ("a.*", "b")),
        (r"['blocks\.\d+\.mlp']", (r"blocks\.\d+\.mlp",)),
        ("['a', \"b'c\"]", ("a", "b'c")),
        ("[ab].*", ("[ab].*",)),
        ("(a|b).*", ("(a|b).*",)),
        ("__import__('os').getcwd()", ("__import__('os').getcwd()",)),
        ("['a', __import__('os').getcwd()]", ("['a', __import__('os').getcwd()]",)),
    ],
)  # fmt: skip
def test_patterns_are_read_as_sd_scripts_writes_them(value, patterns, recwarn):
    arguments = parse_network_args([f"exclude_patterns={value}"])
    assert read_list(arguments["exclude_patterns"]) == patterns
    assert not recwarn.list


def test_every_argument_may_stand_in_quotes():
    written = {
        "train_norm": "'false'", "rank_dropout": '"0.1"', "norm_export": "'omit'",
        "network_reg_dims": "'.*mlp.*=8'", "target_modules": "'q_proj'",
    }  # fmt: skip
    arguments = parse_network_args([f"{key}={value}" for key, value in written.items()])
    assert not lora_anima.check_network_args(4, 1.0, None, **arguments)
    assert arguments["norm_export"] == "omit"


@pytest.mark.gpu
def test_flash_attention_gives_torchs_result():
    pytest.importorskip("flash_attn")
    shape = {"device": "cuda", "dtype": torch.bfloat16}
    q, k, v = (torch.randn(2, 33, 4, 64, **shape) for _ in range(3))
    flash, own = (attention.attention(q, k, v, None, name) for name in ("flash", "torch"))
    torch.testing.assert_close(flash, own, rtol=2e-2, atol=2e-2)


def test_an_exclusion_that_matches_nothing_is_said_and_trains(demo, run_folder, caplog):
    settings = {"network_args": ["exclude_patterns=['.*_te_layers_.*', '.*mlp.*']"]}
    trainer = make_trainer(config_files(demo, run_folder, settings))
    trainer.prepare_process()
    trainer.check()
    paths = [placement.path for placement in trainer.outline.placements]
    assert paths and not [path for path in paths if ".mlp." in path]


def test_a_published_mixture_starts(demo, run_folder):
    settings = {
        "max_train_steps": 0, "max_train_epochs": 2, "persistent_data_loader_workers": 1,
        "scale_weight_norms": 0.0, "attn_mode": "flash", "dynamo_backend": "no", "resume": "",
        "network_weights": "", "save_every_n_steps": 0, "optimizer_args": [""],
    }  # fmt: skip
    train, _, anima, notes = load_run(config_files(demo, run_folder, settings))
    assert anima.attention_backend == "flash" and train.network.scale_weight_norms is None
    idle = {note.split()[0] for note in notes}
    assert "--max_train_steps" in idle and "dynamo_backend" not in idle
