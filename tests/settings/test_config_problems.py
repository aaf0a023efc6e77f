"""What is wrong with train_args.toml or the command line: where it stands, all of it at once."""

import pytest

from anima_train_network import load_run
from library.errors import ConfigError, format_problems
from library.settings.config_file import LoadedConfig
from tests.helpers.configs import found, read
from tests.helpers.processes import python


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('learning_rate = "1e-4"', "expected a number, got text. Remove the quotes."),
        ("max_train_steps = 1.5", "expected a whole number."),
        ("cache_latents = 2", "expected true or false."),
        ('network_args = "a=1"', 'expected a list: network_args = ["a=1"].'),
        ('mixed_precision = "bf61"', "expected one of no, fp16, bf16. Did you mean bf16?"),
        ('lr_warmup_steps = "many"', "expected whole steps, a fraction below 1, or a percentage"),
        ("train_batch_size = 0", "expected 1 or more."),
        ("deepspeed = true", "is refused: every process holds all that trains here."),
        ("leanring_rate = 1e-4", "no such option. Did you mean learning_rate?"),
        ("batch_size = 2", "belongs in the dataset file; the flag of that meaning is"),
        ('image_dir = "a"', "belongs in the dataset file."),
        ("full_bf16 = true", "needs mixed_precision = bf16."),
        ("fp8_base = true", "needs mixed_precision = bf16 or fp16."),
        ("min_timestep = 1000", "expected less than max_timestep (1000)."),
        ("dim_from_weights = true", "needs network_weights."),
        ("base_weights_multiplier = [1]", "has more numbers than base_weights."),
        ('save_model_as = "ckpt"', "is refused: only safetensors is written"),
        ("text_encoder_lr = [1e-4, 1e-4]", "expected one rate: there is one text encoder."),
        ('metadata_thumbnail = "no.png"', "expected a picture file or a data: URL."),
    ],
)
def test_a_problem_says_its_line(tmp_path, line, message):
    loaded = read(toml_text=f"# a comment\n\n[section]\n{line}\n", folder=tmp_path)
    ((where, text),) = found(loaded).items()
    assert where == f"line 4  {line}"
    assert text.startswith(message)


@pytest.mark.parametrize(
    ("words", "where", "message"),
    [
        (["--seed"], "--seed", "expected a value."),
        (["--seed", "x"], "--seed x", "expected a whole number."),
        (["--vae", "my", "file"], "--vae my file", "expected one value, got 2. Put a text with"),
        (["--cache_latents", "perhaps"], "--cache_latents perhaps", "expected true or false."),
        (["--no-cache_latents", "x"], "--no-cache_latents x", "takes no value."),
        (["--sed", "1"], "--sed", "no such option. Did you mean --seed?"),
        (["--no-train_nrom"], "--no-train_nrom", "no such option. Did you mean --no-train_norm?"),
        (["-seed", "1"], "-seed", "no such option. Did you mean --seed?"),
        (["--zzz"], "--zzz", "no such option."),
        (["stray", "words"], " stray words", "does not belong to an option."),
        (
            ["--mixed_precision", "bf16", "--fp8_base_unet", "--nf4_base"], "--fp8_base_unet",
            "weights have one form: keep one of fp8_base_unet, nf4_base. Only fp8_base_unet leaves the LLM adapter",
        ),
        (["--log_with", "wandbx"], "--log_with wandbx", "expected one of none, tensorboard, wandb"),
    ],
)
def test_a_problem_of_the_command_line_says_its_words(words, where, message):
    ((place, text),) = found(read(*words)).items()
    assert place == where
    assert text.startswith(message)


def test_two_names_of_one_flag_may_not_differ(tmp_path):
    text = 'qwen = "a"\nqwen3 = "b"\n'
    ((where, message),) = found(read(toml_text=text, folder=tmp_path)).items()
    assert (where, message) == ('line 2  qwen3 = "b"', 'contradicts line 1  qwen = "a". Keep one.')
    assert not found(read(toml_text='qwen = "a"\nqwen3 = "a"\n', folder=tmp_path))
    assert "contradicts" in found(read("--qwen", "a", "--qwen3", "b"))["--qwen3 b"]
    loaded = read("--qwen3", "b", toml_text='qwen = "a"\n', folder=tmp_path)
    assert not found(loaded)


def test_a_key_in_two_sections_may_not_differ(tmp_path):
    text = "[a]\nseed = 1\n[b]\nseed = 2\n"
    ((where, message),) = found(read(toml_text=text, folder=tmp_path)).items()
    assert (where, message) == ("line 4  seed = 2", "contradicts line 2  seed = 1. Keep one.")


def test_a_section_that_should_be_a_list_says_how_to_write_it(tmp_path):
    loaded = read(toml_text="[network_args]\nlokr_factor = 8\n", folder=tmp_path)
    message = 'is a list here. Write network_args = ["lokr_factor=8"].'
    assert found(loaded) == {"line 1  [network_args]": message}


def test_an_unknown_key_far_from_any_flag_is_one_note(tmp_path):
    loaded = read(toml_text="zebra_count = 1\n", folder=tmp_path)
    assert not found(loaded)
    (note,) = loaded.notes
    assert note.endswith("zebra_count is not an option of this trainer and was ignored.")


def test_all_problems_of_a_file_and_the_command_line_come_at_once(tmp_path):
    text = 'learning_rate = "1e-4"\nleanring_rate = 1\nmin_timestep = 9\nmax_timestep = 3\n'
    loaded = read("--dataset_confg", "x", "--seed", toml_text=text, folder=tmp_path)
    with pytest.raises(ConfigError) as error:
        loaded.require()
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  --")] == [
        "--dataset_confg", "--seed",
    ]  # fmt: skip
    numbers = [int(line.split()[1]) for line in lines if line.startswith("  line")]
    assert numbers == [1, 2, 3]
    assert "is needed" in str(error.value)


def test_what_follows_from_a_problem_is_not_another_problem(tmp_path):
    text = "qwen = 3\noutput_dri = 'x'\nmin_timestep = 9\nmax_timestep = 'x'\n"
    loaded = read(toml_text=text, folder=tmp_path)
    assert not [p for p in loaded.problems if "is needed" in p.message]
    assert len(loaded.problems) == 3


def test_a_missing_dataset_file_is_found_beside_an_unreadable_config(tmp_path):
    (tmp_path / "a.toml").write_text("= 3")
    with pytest.raises(ConfigError) as error:
        load_run(["--config_file", str(tmp_path / "a"), "--dataset_config", "nowhere.toml"])
    assert [p.source for p in error.value.problems] == [str(tmp_path / "a.toml"), "nowhere.toml"]


def only_problem(loaded: LoadedConfig) -> str:
    (problem,) = loaded.problems
    return format_problems("ConfigError", [problem])


def test_a_missing_file_is_the_only_problem():
    text = only_problem(read("--config_file", "nowhere"))
    assert "--config_file nowhere.toml  no such file. It is looked for in" in text


def test_a_windows_path_in_double_quotes_is_explained(tmp_path):
    text = only_problem(read(toml_text='seed = 1\nvae = "C:\\models\\vae"\n', folder=tmp_path))
    assert "is not valid TOML" in text
    assert "The line: vae = " in text
    assert "single quotes" in text


def test_a_broken_line_is_shown(tmp_path):
    text = only_problem(read(toml_text="seed = \n", folder=tmp_path))
    assert "The line: seed =" in text
    assert "single quotes" not in text


def test_a_file_in_another_encoding_is_explained(tmp_path):
    (tmp_path / "a.toml").write_bytes("output_name = '训练'".encode("gbk"))
    assert "is not UTF-8 text" in only_problem(read("--config_file", str(tmp_path / "a.toml")))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.toml").mkdir()
    assert "cannot be read" in only_problem(read("--config_file", str(tmp_path / "a.toml")))


def test_a_root_style_file_is_recognised(tmp_path):
    text = "[model]\nvae_path = 'a'\n[training]\nleanring_rate = 1\n"
    shown = only_problem(read(toml_text=text, folder=tmp_path))
    assert "is a root-style configuration (it has [model] and [training])" in shown


def test_a_dataset_file_is_told_where_it_belongs(tmp_path):
    text = "[general]\nbatch_size = 1\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"
    shown = only_problem(read(toml_text=text, folder=tmp_path))
    assert "is a dataset file" in shown and "--dataset_config" in shown


def test_an_empty_file_is_a_file(tmp_path):
    loaded = read(toml_text="", folder=tmp_path)
    assert all("is needed" in p.message for p in loaded.problems)


def test_a_problem_ends_the_program_with_code_2_and_loads_no_model_library(tmp_path):
    (tmp_path / "a.toml").write_text('learning_rate = "1e-4"\n')
    code = (
        "import sys, anima_train_network as entry\n"
        "from library.system.program import run_main\n"
        "for words in (['--help'], ['--config_file', sys.argv[1]]):\n"
        "    sys.argv[1:] = words\n"
        "    try:\n        run_main(entry.main)\n"
        "    except SystemExit as end:\n        print('ended with', end.code)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = python("-c", code, tmp_path / "a")
    *_, second, loaded = done.stdout.splitlines()
    assert done.stdout.count("ended with 0\n") == 1 and second == "ended with 2"
    heavy = {"transformers", "diffusers", "accelerate", "tensorboard", "bitsandbytes", "wandb"}
    assert not set(loaded.split()) & heavy
    assert done.stderr.startswith("ConfigError: ") and "Traceback" not in done.stderr
