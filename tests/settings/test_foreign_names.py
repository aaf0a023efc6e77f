"""What other programs call an option: every answer exists, and no suggestion changes the meaning."""

import dataclasses
import json

import pytest

from library.anima_runtime.command_line import GROUPS, setup_parser
from library.config_util import load_dataset_config
from library.errors import ConfigError
from library.settings import foreign_names
from library.settings.config_file import read_config
from library.settings.dataset_keys import KEYS
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.flags.save import SaveOptions
from library.settings.flags.schedule import ScheduleOptions
from library.settings.options import all_flags
from library.settings.paths import PathError, expand_path
from library.settings.user_classes import is_installed
from library.training.optimizers import check_optimizer
from library.training.schedulers import check_schedule
from library.utils import nearest_name
from networks._anima_arguments import ALIASES, AdapterArguments
from networks.kinds.lokr import LoKrArguments
from networks.kinds.lora import LoRAArguments
from networks.kinds.oft import OFTArguments
from tests.helpers.configs import found, read

FLAGS = all_flags(GROUPS)
NAMES = {name.removeprefix("--") for flag in FLAGS.values() for name in flag.names}


def test_every_name_leads_to_a_flag_or_key_and_is_none_itself():
    assert set(foreign_names.FLAGS.values()) <= NAMES
    assert not set(foreign_names.FLAGS) & (NAMES | set(KEYS))
    assert set(foreign_names.DATASET_KEYS.values()) <= set(KEYS)
    assert not set(foreign_names.DATASET_KEYS) & set(KEYS)
    choices = {str(c) for flag in FLAGS.values() for c in flag.choices or ()}
    assert {word for words in foreign_names.VALUES.values() for word in words} <= choices


def test_what_decides_the_adapter_is_known_by_every_name():
    classes = (AdapterArguments, LoKrArguments, LoRAArguments, OFTArguments)
    known = {field.name for cls in classes for field in dataclasses.fields(cls)}
    known |= {*LoKrArguments.ALIASES, *LoRAArguments.ALIASES, *ALIASES}
    assert set(foreign_names.NETWORK_ARGS.values()) <= known
    assert known - NAMES - {"verbose"} <= set(foreign_names.NETWORK_ARGS)


@pytest.mark.parametrize("name", foreign_names.NETWORK_ARGS)
def test_an_argument_of_the_adapter_at_the_top_is_an_error(tmp_path, name):
    ((_, message),) = found(read(toml_text=f"{name} = 0.25\n", folder=tmp_path)).items()
    assert f'"{foreign_names.NETWORK_ARGS[name]}=0.25"' in message


@pytest.mark.parametrize("name", foreign_names.OPTIMIZER_ARGS)
def test_an_argument_of_the_optimizer_at_the_top_is_an_error(tmp_path, name):
    text = f'optimizer_type = "Prodigy"\noptimizer_args = ["a=1"]\n{name} = 0.25\n'
    ((where, message),) = found(read(toml_text=text, folder=tmp_path)).items()
    assert where.startswith("line 3")
    assert f'["a=1", "{foreign_names.OPTIMIZER_ARGS[name]}=0.25"]' in message


@pytest.mark.parametrize("value", ["1", "'a=1 b=2'", "[1]", "{a = 1}"])
@pytest.mark.parametrize("beside", ["", "use_lokr = true\n", "betas = [0.9]\n"])
def test_lines_to_write_leave_out_what_cannot_be_read(tmp_path, value, beside):
    text = f"{beside}network_module = 3\noptimizer_args = {value}\nnetwork_args = {value}\n"
    problems = found(read(toml_text=text, folder=tmp_path))
    assert any("network_module" in where for where in problems)


# the preset of LyCORIS is an item of network_args; at the top of a file the word is a flag
@pytest.mark.parametrize("name", [*sorted({*foreign_names.LYCORIS_ONLY} - NAMES), "use_lokr", "use_loha"])
def test_what_has_no_counterpart_is_an_error_where_it_asks(tmp_path, name):
    ((_, message),) = found(read(toml_text=f"{name} = true\n", folder=tmp_path)).items()
    assert "decides the adapter" in message
    assert not found(read(toml_text=f"{name} = false\n", folder=tmp_path))


def test_arguments_of_an_optimizer_that_is_not_chosen_are_a_note(tmp_path):
    loaded = read(toml_text='prodigy_d_coef = "2.0"\n', folder=tmp_path)
    assert not found(loaded)
    assert loaded.notes == ("prodigy_d_coef has no effect: optimizer_type is AdamW.",)


@pytest.mark.parametrize("name", sorted(foreign_names.OWN - set(foreign_names.KINDS)))
def test_a_programs_own_key_gets_no_suggestion(tmp_path, name):
    loaded = read(toml_text=f'{name} = "x"\n', folder=tmp_path)
    assert not found(loaded)
    (note,) = loaded.notes
    assert note.endswith(f"{name} is not an option of this trainer and was ignored.")


@pytest.mark.parametrize("name", foreign_names.FLAGS)
def test_another_name_is_told_in_the_file_and_when_typed(tmp_path, name):
    ours = foreign_names.FLAGS[name]
    ((_, message),) = found(read(toml_text=f'{name} = "x"\n', folder=tmp_path)).items()
    assert message == f"is called {ours} here."
    assert found(read(f"--{name}", "x"))[f"--{name}"].endswith(f"called --{ours} here.")


def test_many_keys_of_another_program_are_one_note(tmp_path):
    loaded = read(toml_text="zebra = 1\nyak = 2\nemu = 3\n", folder=tmp_path)
    (note,) = loaded.notes
    assert note.endswith("zebra, yak and emu are not options of this trainer and were ignored.")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("leanring_rate", "learning_rate"), ("learningrate", "learning_rate"),
        ("max_train_epoch", "max_train_epochs"), ("network_dims", "network_dim"),
        ("save_every_epochs", "save_every_n_epochs"), ("output_dri", "output_dir"),
        ("lora_type", None), ("caption_mode", None), ("caching_batch_size", None),
        ("text_encoder_file", None), ("base_config", None), ("sample_scheduled", None),
    ],
)  # fmt: skip
def test_letters_suggest_only_what_is_alike_word_by_word(name, meant):
    assert nearest_name(name, NAMES) == meant


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vae_batch_size = 4", "belongs in train_args.toml, or on the command line."),
        ("cache_latents = true", "belongs in train_args.toml, or on the command line."),
        ("qwen3_path = 'x'", "belongs in train_args.toml, as qwen3, or on the command line."),
        ("repeats = 4", "is called num_repeats here."),
        ("train_batch_size = 4", "is called batch_size here."),
        ("num_repeat = 4", "no such option. Did you mean num_repeats?"),
        ("caption_mode = 'x'", "no such option."),
    ],
)
def test_a_key_that_the_dataset_file_does_not_know(tmp_path, line, message):
    text = (
        f"[general]\n{line}\n[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '.'"
    )
    (tmp_path / "d.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_dataset_config(tmp_path / "d.toml", {})
    assert message in [p.message for p in caught.value.problems]


def test_options_given_as_the_dataset_file_are_one_problem(tmp_path):
    (tmp_path / "t.toml").write_text("learning_rate = 1\noutput_dir = 'x'\nseed = 1\n")
    with pytest.raises(ConfigError, match="Give it as --config_file"):
        load_dataset_config(tmp_path / "t.toml", {})


def test_classes_are_reached_by_a_path_that_is_one():
    for name, path in foreign_names.CLASSES.items():
        assert name == name.lower() and path.count(".") >= 1


@pytest.mark.parametrize("name", ["CAME", "came", "ProdigyPlusScheduleFree", "StableAdamW"])
def test_a_bare_class_of_a_known_package_gets_its_path(name):
    path = foreign_names.CLASSES[name.lower()]
    options = OptimizerOptions(optimizer_type=name)
    (problem, *_) = check_optimizer(options, ScheduleOptions())
    assert f'Write optimizer_type = "{path}".' in problem.message
    package = path.partition(".")[0]
    pip = f"pip install {foreign_names.PACKAGES[package]}"
    assert is_installed(package) or pip in problem.message


def test_missing_packages_are_told_before_anything_is_imported():
    options = OptimizerOptions(optimizer_type="no_such_package.optim.Best")
    schedule = ScheduleOptions(lr_scheduler_type="no_such_package.Slow")
    (problem,) = check_optimizer(options, ScheduleOptions())
    assert "Run: pip install no_such_package" in problem.message
    (problem,) = check_schedule(schedule)
    assert "Run: pip install no_such_package" in problem.message


PATH_FLAGS = [dest for dest, flag in FLAGS.items() if flag.path and not flag.many]


@pytest.mark.parametrize(
    "dest", [d for d in PATH_FLAGS if d not in ("config_file", "sample_prompts")]
)
def test_every_path_is_expanded_and_its_escapes_are_noticed(tmp_path, monkeypatch, dest):
    monkeypatch.setenv("PICTURES", "/p")
    name = FLAGS[dest].names[0].removeprefix("--")
    for written in ("$PICTURES/a", "${PICTURES}/a", "%PICTURES%/a"):
        loaded = read(toml_text=f"{name} = '{written}'\n", folder=tmp_path)
        group = next(g for g in loaded.groups.values() if hasattr(g, dest))
        assert getattr(group, dest) == "/p/a"
    text = json.dumps("D:\new\train")
    assert "escape" in found(read(toml_text=f"{name} = {text}", folder=tmp_path)).popitem()[1]
    unset = found(read(toml_text=f"{name} = '$NOT_SET_HERE/a'", folder=tmp_path)).popitem()[1]
    assert unset.startswith("NOT_SET_HERE is not set")


def test_every_text_that_names_a_place_is_a_path():
    words = ("path", "dir", "file")
    named = {d for d in FLAGS if any(d.endswith(f"_{w}") for w in words) and FLAGS[d].type is str}
    others = {"pretrained_model_name_or_path", "tokenizer_cache_dir", "huggingface_path_in_repo"}
    ignored = {d for d in named if FLAGS[d].ignored}
    assert {d for d in named - others - ignored if not FLAGS[d].path} == set()


def test_a_name_that_exists_as_it_is_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$x").mkdir()
    assert expand_path("$x") == "$x"
    monkeypatch.setenv("HOME", "/h")
    assert expand_path("~/a") == "/h/a"
    assert expand_path("50%") == "50%" and expand_path("\\\\host\\c$\\a") == "\\\\host\\c$\\a"
    with pytest.raises(PathError, match="escape"):
        expand_path("a\tb")


def test_a_names_escapes_are_noticed_and_a_text_may_have_lines(tmp_path):
    loaded = read(toml_text='output_name = "a\\tb"\n', folder=tmp_path)
    assert "escape" in found(loaded).popitem()[1]
    assert not found(read(toml_text='training_comment = "a\\nb"\n', folder=tmp_path))
    assert loaded.groups[SaveOptions].output_name is None


@pytest.mark.parametrize("key", ["image_dir", "metadata_file", "mask_path"])
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_paths_of_the_dataset_file_too(tmp_path, monkeypatch, key, suffix):
    def problems(value: str) -> list[str]:
        subset = {"image_dir": ".", key: value}
        document = {"datasets": [{"resolution": 64, "subsets": [subset]}]}
        lines = [f"{name} = {json.dumps(text)}" for name, text in subset.items()]
        text = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\n" + "\n".join(lines)
        file = tmp_path / f"d{suffix}"
        file.write_text(json.dumps(document) if suffix == ".json" else text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_dataset_config(file, {})
        return [p.message for p in caught.value.problems]

    assert any("escape" in message for message in problems("D:\new\train"))
    assert any("NOT_SET_HERE is not set" in message for message in problems("$NOT_SET_HERE/a"))


def test_a_configuration_by_a_variable_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("SETTINGS", str(tmp_path))
    (tmp_path / "a.toml").write_text("seed = 3")
    loaded = read_config(setup_parser(), ["--config_file", "$SETTINGS/a"], GROUPS)
    assert "seed" in loaded.explicit
