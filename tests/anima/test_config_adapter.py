"""Anima's flags and their other names, resolved into the shared options."""

import pytest

from library.anima_runtime.command_line import GROUPS as ALL_GROUPS
from library.anima_runtime.command_line import setup_parser
from library.anima_runtime.config_adapter import (
    FLOW_ALIASES,
    MODULES,
    AnimaConfig,
    adapt,
    network_problems,
    run_notes,
)
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.data.dataset_config import DatasetGroupConfig
from library.settings.config_file import read_config
from library.settings.flags.flow import FlowOptions
from library.settings.run_config import TrainConfig
from networks.lokr_anima import check_network_args as check_lokr
from networks.lora_anima import check_network_args as check_lora

NEEDED = ["--anima_transformer", "dit", "--vae", "vae", "--qwen", "qwen"]
NO_DATA = DatasetGroupConfig(datasets=(), source="dataset.toml")


def adapted(*words: str, needed=NEEDED):
    """The adapted groups and the problems of the adapter and of Anima's own group."""
    loaded = read_config(setup_parser(), [*needed, *words], ALL_GROUPS)
    train = TrainConfig(**{name: loaded.groups[group] for name, group in SHARED_GROUPS.items()})
    anima = loaded.groups[AnimaConfig]
    train, anima, problems = adapt(train, anima, loaded.explicit)
    return train, anima, [*problems, *anima.problems()]


def flow_of(*words: str) -> FlowOptions:
    train, _, problems = adapted(*words)
    assert not problems
    return train.flow


def messages(*words: str, needed=NEEDED) -> list[str]:
    return [f"{p.where}: {p.message}" for p in adapted(*words, needed=needed)[2]]


def notes_of(*words: str) -> list[str]:
    loaded = read_config(setup_parser(), [*NEEDED, *words], ALL_GROUPS)
    train, anima, _ = adapted(*words)
    return run_notes(train, anima, loaded.explicit, NO_DATA)


@pytest.mark.parametrize("name", ["anima_transformer", "pretrained_model_name_or_path"])
def test_either_name_of_the_dit_sets_both(name):
    train, anima, problems = adapted(needed=[f"--{name}", "a", *NEEDED[2:]])
    assert train.paths.pretrained_model_name_or_path == anima.anima_transformer == "a"
    assert not problems


def test_two_different_dits_are_an_error_and_the_same_twice_is_not():
    (message,) = messages("--pretrained_model_name_or_path", "other")
    assert "is dit, but pretrained_model_name_or_path is other. Keep one." in message
    assert not messages("--pretrained_model_name_or_path", "dit")


def test_what_is_needed_is_named_at_once():
    found = messages(needed=[])
    assert [message.split(":")[0] for message in found] == ["anima_transformer", "vae", "qwen"]
    assert all("is needed" in message for message in found)


def test_the_official_names_are_aliases():
    _, anima, problems = adapted("--t5_tokenizer_path", "t5", needed=[*NEEDED[:4], "--qwen3", "q"])
    assert (anima.qwen, anima.t5_tokenizer_dir, problems) == ("q", "t5", [])


def test_one_limit_of_tokens_holds_for_both_kinds_unless_each_has_its_own():
    assert adapted()[1].qwen_max_length is adapted()[1].t5_max_length is None
    _, anima, _ = adapted("--anima_seq_len", "512", "--t5_max_token_length", "256")
    assert (anima.qwen_max_length, anima.t5_max_length) == (512, 256)


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        ([], "auto"),
        (["--attn_mode", "auto"], "auto"),
        (["--attn_mode", "auto", "--sdpa"], "torch"),
        (["--sdpa"], "torch"),
        (["--attn_mode", "sdpa"], "torch"),
        (["--attn_mode", "flash"], "flash"),
        (["--attn_mode", "flash", "--sdpa"], "flash"),
        (["--attn_mode", "xformers"], "xformers"),
        (["--anima_attention_backend", "xformers"], "xformers"),
        (["--xformers"], "xformers"),
        (["--xfomers"], "xformers"),
        (["--xformers", "--no-xfomers"], "xformers"),
        (["--xfomers", "--no-xformers"], "xformers"),
        (["--no-xformers", "--anima_attention_backend", "xformers"], "xformers"),
        (["--no-xfomers", "--attn_mode", "xformers"], "xformers"),
        (["--no-xfomers"], "auto"),
        (["--sdpa", "--xformers"], "xformers"),
    ],
)
def test_a_false_alias_never_switches_another_off(words, backend):
    _, anima, problems = adapted(*words)
    assert anima.attention_backend == backend
    assert not problems


@pytest.mark.parametrize(
    "words",
    [
        ["--attn_mode", "torch", "--xformers"],
        ["--attn_mode", "sdpa", "--anima_attention_backend", "xformers"],
        ["--anima_attention_backend", "torch", "--xfomers"],
    ],
)
def test_two_backends_are_an_error(words):
    (message,) = messages(*words)
    assert "name different backends. Keep one." in message


def test_attention_that_only_draws_names_what_trains():
    loaded = read_config(setup_parser(), [*NEEDED, "--attn_mode", "sageattn"], ALL_GROUPS)
    assert any("write auto or torch" in p.message for p in loaded.problems)


def test_sdpa_beside_another_kernel_is_named():
    assert notes_of("--sdpa", "--xformers") == ["--sdpa has no effect: xformers is chosen."]
    assert notes_of("--sdpa", "--attn_mode", "flash") == ["--sdpa has no effect: flash is chosen."]
    assert not notes_of("--sdpa")


@pytest.mark.parametrize(
    ("words", "sampling", "shift"),
    [
        ([], "sigmoid", 1.0),
        (["--anima_timestep_sampling", "logit_normal"], "sigmoid", 1.0),
        (["--anima_timestep_sampling", "uniform"], "uniform", 1.0),
        (["--anima_flow_shift", "3"], "shift", 3.0),
        (["--anima_flow_shift", "1"], "sigmoid", 1.0),
        (["--anima_timestep_sampling", "logit_normal", "--anima_flow_shift", "3"], "shift", 3.0),
        (["--anima_timestep_sampling", "uniform", "--anima_flow_shift", "1"], "uniform", 1.0),
        (["--timestep_sampling", "shift", "--anima_flow_shift", "2.5"], "shift", 2.5),
        (["--timestep_sampling", "shift", "--discrete_flow_shift", "3", "--anima_timestep_sampling",
          "logit_normal"], "shift", 3.0),
        (["--discrete_flow_shift", "3", "--anima_flow_shift", "3"], "shift", 3.0),
    ],
)  # fmt: skip
def test_the_forks_names_of_sampling(words, sampling, shift):
    flow = flow_of(*words)
    assert (flow.timestep_sampling, flow.discrete_flow_shift) == (sampling, shift)


def test_the_forks_names_of_scale_and_noise():
    flow = flow_of("--anima_sigmoid_scale", "1.5", "--anima_noise_offset", "0.05")
    assert (flow.sigmoid_scale, flow.noise_offset) == (1.5, 0.05)


@pytest.mark.parametrize(
    "words",
    [
        ["--anima_flow_shift", "3", "--timestep_sampling", "sigmoid"],
        ["--anima_flow_shift", "3", "--timestep_sampling", "uniform"],
        ["--anima_flow_shift", "3", "--discrete_flow_shift", "2"],
        ["--anima_flow_shift", "1", "--discrete_flow_shift", "3", "--timestep_sampling", "shift"],
        ["--anima_timestep_sampling", "uniform", "--timestep_sampling", "sigmoid"],
        ["--anima_sigmoid_scale", "2", "--sigmoid_scale", "1"],
        ["--anima_noise_offset", "0.1", "--noise_offset", "0.2"],
    ],
)
def test_both_names_with_different_values_are_an_error(words):
    (message,) = messages(*words)
    assert "Keep one." in message


def test_shifting_a_uniform_draw_is_an_error():
    (message,) = messages("--anima_flow_shift", "3", "--anima_timestep_sampling", "uniform")
    assert message.startswith("anima_flow_shift = 3.0: has no effect with anima_timestep_sampling")


def test_what_the_sampling_does_not_read_is_named_as_the_user_wrote_it():
    words = ["--anima_timestep_sampling", "uniform", "--anima_sigmoid_scale", "2"]
    assert notes_of(*words) == [
        "--anima_sigmoid_scale has no effect: timestep_sampling is uniform."
    ]
    assert notes_of("--sigmoid_scale", "2", "--timestep_sampling", "uniform") == [
        "--sigmoid_scale has no effect: timestep_sampling is uniform."
    ]
    assert notes_of("--discrete_flow_shift", "3") == [
        "--discrete_flow_shift has no effect: timestep_sampling is sigmoid."
    ]
    assert notes_of("--anima_flow_shift", "3", "--anima_sigmoid_scale", "2") == []
    assert notes_of("--anima_sigmoid_scale", "1", "--timestep_sampling", "uniform") == []


def test_every_alias_is_a_flag_and_means_a_shared_option():
    for name, shared in FLOW_ALIASES.items():
        assert getattr(AnimaConfig(), name) is None
        assert hasattr(FlowOptions(), shared)


def test_lora_is_the_default_module():
    assert adapted()[0].network.network_module == "networks.lora_anima"


@pytest.mark.parametrize("module", MODULES)
def test_both_modules_are_taken(module):
    assert not messages("--network_module", module)


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("networks.lora", "Write networks.lora_anima."),
        ("networks.lokr", "Write networks.lokr_anima."),
        ("networks.loha", "Write networks.loha_anima."),
        ("my.module", "(OFT)."),
    ],
)
def test_another_module_is_an_error_naming_both(module, advice):
    (message,) = messages("--network_module", module)
    assert message.endswith(advice)
    assert all(name in message for name in MODULES)


@pytest.mark.parametrize("algo", ["diag-oft", "boft"])
def test_lycoris_words_of_an_oft_are_answered_with_ours(algo):
    words = [f"algo={algo}", "constraint=1e-4", "rescaled=true", "factor=8"]
    (message,) = messages("--network_module", "lycoris.kohya", "--network_args", *words)
    assert 'network_module = "networks.oft_anima"' in message
    assert '"constraint=1e-4"' in message and "Without counterpart: rescaled" in message
    assert ('"boft=true"' in message) is (algo == "boft") and "lokr_factor" not in message


def test_lycoris_is_answered_with_the_equivalent_lines():
    words = ["algo=lokr", "factor=8", "decompose_both=true", "rank_dropout=0.1", "dropout=0.2",
             "preset=full", "use_tucker=true"]  # fmt: skip
    (message,) = messages("--network_module", "lycoris.kohya", "--network_args", *words)
    assert 'network_module = "networks.lokr_anima"' in message
    arguments = ("lokr_factor=8", "train_norm=false", "train_llm_adapter=false",
                 "lokr_decompose_both=true", "rank_dropout=0.1")  # fmt: skip
    assert f"network_args = [{', '.join(map(quoted, arguments))}]" in message
    assert "network_dropout = 0.2." in message
    assert message.endswith("Without counterpart: preset, use_tucker.")
    assert not check_lokr(4, 1.0, None, **dict(each.split("=") for each in arguments))


def quoted(text: str) -> str:
    return f'"{text}"'


def test_lycoris_without_arguments_is_lora_without_norms():
    (message,) = messages("--network_module", "lycoris.kohya")
    assert (
        'Write network_module = "networks.lora_anima" and '
        'network_args = ["train_norm=false", "train_llm_adapter=false"].'
        in message
    )
    assert not check_lora(4, 1.0, None, train_norm="false")


def test_the_factor_of_lycoris_has_another_default():
    (message,) = messages("--network_module", "lycoris.kohya", "--network_args", "algo=lokr")
    assert '"lokr_factor=-1"' in message


@pytest.mark.parametrize("algo", ["ia3", "full"])
def test_other_kinds_of_lycoris_do_not_exist_here(algo):
    (message,) = messages("--network_module", "lycoris.kohya", "--network_args", f"algo={algo}")
    assert f"{algo} does not exist" in message


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        ([], True),
        (["--no-train_norm"], False),
        (["--network_args", "train_norm=false"], False),
        (["--network_args", "train_norm = No"], False),
        (["--network_args", "train_norm=true", "--train_norm"], True),
        (["--network_args", "train_norm=yes", "--train_norm"], True),
        (["--network_args", "train_norm=0", "--no-train_norm"], False),
    ],
)
def test_train_norm_of_flag_and_arguments(words, trained):
    _, anima, problems = adapted(*words)
    assert not problems
    assert anima.network_kwargs()["train_norm"] is trained


@pytest.mark.parametrize(
    "words",
    [
        ["--train_norm", "--network_args", "train_norm=false"],
        ["--no-train_norm", "--network_args", "train_norm=1"],
    ],
)
def test_train_norm_of_flag_and_arguments_may_not_differ(words):
    (message,) = messages(*words)
    assert message.startswith("network_args: train_norm=")
    assert "differs from the flag train_norm = " in message


def test_an_unreadable_train_norm_is_an_error():
    (message,) = messages("--network_args", "train_norm=maybe")
    assert message == "network_args: train_norm=maybe: expected true or false."


def test_component_rates_reach_the_network_when_given():
    kwargs = adapted("--llm_adapter_lr", "0", "--mod_lr", "1e-5")[1].network_kwargs()
    assert (kwargs["llm_adapter_lr"], kwargs["mod_lr"]) == (0.0, 1e-5)
    assert "mlp_lr" not in kwargs


def test_several_arguments_in_one_text_are_told_once():
    train, anima, problems = adapted("--network_args", "train_norm=false verbose=true")
    (problem,) = [*problems, *network_problems(train, anima)]
    assert "holds 2 arguments" in problem.message


def test_lycoris_arguments_in_one_text_get_the_lines_for_all_of_them():
    words = ["--network_module", "lycoris.kohya", "--network_args", "algo=lokr factor=8"]
    (shown,) = [m for m in messages(*words) if "lycoris" in m]
    assert 'networks.lokr_anima"' in shown and '"lokr_factor=8"' in shown
