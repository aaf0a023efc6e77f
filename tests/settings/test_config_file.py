"""train_args.toml and the command line: precedence, places of problems, all of them at once."""

import json
import logging
from pathlib import Path

import pytest
import toml

import anima_train_network
from anima_train_network import load_run
from library.errors import ConfigError, format_problems
from library.settings.config_file import LoadedConfig
from library.settings.flags.cache import CacheOptions
from library.settings.flags.data import DataOptions
from library.settings.flags.loop import LoopOptions
from library.settings.flags.network import NetworkOptions
from library.settings.flags.save import SaveOptions
from library.settings.written_config import write_config
from tests.helpers.configs import found, read
from tests.helpers.processes import python
from tests.helpers.running import model_paths, write_dataset, write_toml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

NEEDED = {
    "anima_transformer": "d",
    "vae": "v",
    "qwen": "q",
    "output_dir": "o",
    "dataset_config": "s",
}


@pytest.fixture
def run_files(run_folder, demo):
    """train_args.toml and dataset.toml of a run that would start; a test changes the first."""

    def write(**settings) -> list[str]:
        values = {**model_paths(demo), "output_dir": str(run_folder / "out"), **settings}
        train = write_toml(run_folder / "train_args.toml", values)
        dataset = write_dataset(run_folder)
        return ["--config_file", str(train), "--dataset_config", str(dataset)]

    return write


def write_bare_dataset(folder: Path) -> None:
    """A dataset file that leaves everything but the pictures to the flags."""
    image_dir = json.dumps(str(folder / "pictures"))
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = {image_dir}\n"
    (folder / "dataset.toml").write_text(text, encoding="utf-8")


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    text = "max_train_steps = 20\nseed = 1\n"
    loaded = read("--seed", "2", toml_text=text, folder=tmp_path)
    loop = loaded.groups[LoopOptions]
    assert (loop.max_train_steps, loop.seed, loop.gradient_accumulation_steps) == (20, 2, 1)
    assert {"seed", "max_train_steps", "config_file"} == loaded.explicit


def test_a_switch_of_the_file_can_be_switched_off(tmp_path):
    loaded = read("--no-cache_latents", toml_text="cache_latents = true", folder=tmp_path)
    assert not loaded.groups[CacheOptions].cache_latents


def test_a_value_that_equals_the_default_counts_as_set():
    assert "max_train_steps" in read("--max_train_steps", "1600").explicit


def test_sections_are_flattened_and_their_names_mean_nothing(tmp_path):
    text = "[anything]\nseed = 3\n[Network_Arguments]\nnetwork_dim = 8\n"
    loaded = read(toml_text=text, folder=tmp_path)
    assert loaded.groups[LoopOptions].seed == 3
    assert loaded.groups[NetworkOptions].network_dim == 8
    assert not loaded.notes


def test_the_extension_may_be_left_out(tmp_path):
    (tmp_path / "a.toml").write_text("seed = 3")
    loaded = read("--config_file", str(tmp_path / "a"))
    assert loaded.groups[LoopOptions].seed == 3


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfseed = 3")
    assert read("--config_file", str(tmp_path / "a.toml")).groups[LoopOptions].seed == 3


@pytest.mark.parametrize("value", ["1024", '"1024"', "[1024, 1024]", '"1024,1024"'])
def test_the_resolution_in_its_usual_spellings(tmp_path, value):
    loaded = read(toml_text=f"resolution = {value}", folder=tmp_path)
    assert loaded.groups[DataOptions].resolution in ("1024", "1024,1024")


def test_typed_values_in_their_forms():
    words = ["--seed=7", "--network_args", "a=1", "b=x=2", "--network_alpha", "-0", "--vae=a b.st",
             "--noise_offset", "-1e-3", "--cache_latents", "true", "--base_weights"]  # fmt: skip
    loaded = read(*words)
    assert loaded.groups[LoopOptions].seed == 7
    assert loaded.groups[NetworkOptions].network_args == ("a=1", "b=x=2")
    assert loaded.groups[NetworkOptions].base_weights == ()
    assert loaded.groups[CacheOptions].cache_latents
    assert not found(loaded)


def test_the_last_of_a_repeated_flag_counts():
    assert read("--seed", "1", "--seed", "2").groups[LoopOptions].seed == 2


@pytest.mark.parametrize("old", ["caption_extention", "caption_extension"])
def test_the_old_spelling_of_caption_extension_takes_effect(tmp_path, old):
    loaded = read(toml_text=f'{old} = ".caption"', folder=tmp_path)
    assert loaded.groups[DataOptions].caption_extension == ".caption"


def test_the_old_name_of_skip_cache_check_takes_effect_and_never_switches_off(tmp_path):
    assert read("--skip_latents_validity_check").groups[CacheOptions].skip_cache_check
    for order in ("true false", "false true"):
        new, old = order.split()
        text = f"skip_cache_check = {new}\nskip_latents_validity_check = {old}"
        loaded = read(toml_text=text, folder=tmp_path)
        assert loaded.groups[CacheOptions].skip_cache_check
        assert not found(loaded)


def test_a_cache_on_disk_is_a_cache():
    cache = read("--cache_latents_to_disk").groups[CacheOptions]
    assert cache.cache_latents
    assert not cache.cache_text_encoder_outputs
    assert CacheOptions(cache_text_encoder_outputs_to_disk=True).cache_text_encoder_outputs


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


def test_problems_of_both_files_come_at_once(run_files, run_folder):
    argv = run_files(learning_rate="1e-4", optimizer_type="AdamX", lr_scheduler="cosin")
    (run_folder / "dataset.toml").write_text("[[datasets]]\nresolutoin = 5\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_run([*argv, "--tpyo"])
    text = str(error.value)
    for part in ("--tpyo", "learning_rate", "AdamX", "cosin", "Did you mean resolution?"):
        assert part in text
    for source in ("the command line", "train_args.toml", "dataset.toml"):
        assert source in text


def test_a_missing_dataset_file_is_found_beside_an_unreadable_config(tmp_path):
    (tmp_path / "a.toml").write_text("= 3")
    with pytest.raises(ConfigError) as error:
        load_run(["--config_file", str(tmp_path / "a"), "--dataset_config", "nowhere.toml"])
    assert [p.source for p in error.value.problems] == [str(tmp_path / "a.toml"), "nowhere.toml"]


def test_a_problem_found_between_flags_stands_at_its_line(run_files):
    argv = run_files(optimizer_args=["betas"], anima_flow_shift=3, timestep_sampling="uniform")
    with pytest.raises(ConfigError) as error:
        load_run(argv)
    places = [p.where.partition("  ")[2].partition(" =")[0] for p in error.value.problems]
    assert places == ["optimizer_args", "timestep_sampling"]


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


def test_each_flag_without_effect_is_one_note_with_its_reason(tmp_path):
    text = "blocks_to_swap = 0\nv2 = false\nsplit_attn = true\nmultires_noise_iterations = 6\n"
    notes = read("--min_snr_gamma", "5", toml_text=text, folder=tmp_path).notes
    assert [note.split(" has no effect: ")[0] for note in sorted(notes)] == [
        "--min_snr_gamma", "multires_noise_iterations", "split_attn",
    ]  # fmt: skip
    assert all(note.endswith(".") for note in notes)


def test_what_other_flags_leave_without_effect_is_named(run_files):
    argv = run_files(
        huber_c=0.2, vae_batch_size=4, loss_type="l1", max_train_steps=3, max_train_epochs=2,
        save_last_n_steps=5, tensorboard_port=7000, mode_scale=2.0, no_metadata=True,
        training_comment="x", wandb_run_name="x", noise_offset_random_strength=True,
        dim_from_weights=False, train_batch_size=4, log_with="tensorboard",
    )  # fmt: skip
    notes = load_run(argv)[3]
    assert sorted(note.split(" ")[0] for note in notes) == [
        "--huber_c", "--max_train_steps", "--mode_scale",
        "--noise_offset_random_strength", "--save_last_n_steps", "--tensorboard_port",
        "--train_batch_size", "--training_comment", "--vae_batch_size", "--wandb_run_name",
    ]  # fmt: skip


def test_a_run_as_it_should_be_has_no_notes(run_files):
    settings = {
        "huber_schedule": "snr",
        "huber_c": 0.1,
        "vae_batch_size": 1,
        "log_with": "tensorboard",
    }
    assert load_run(run_files(**settings, blocks_to_swap=0, noise_offset=0.0))[3] == []


def test_bucket_sizes_without_buckets_are_named(run_files, run_folder):
    argv = run_files(min_bucket_reso=64, resolution=128)
    write_bare_dataset(run_folder)
    assert load_run(argv)[3] == ["--min_bucket_reso has no effect: enable_bucket is off."]


def test_flags_fill_what_the_dataset_file_leaves_open(run_files, run_folder):
    argv = run_files(
        resolution="128,192", train_batch_size=3, dataset_repeats=2, caption_extention=".caption",
        keep_tokens_separator="|||", token_warmup_step=10, caption_dropout_rate=0.5, flip_aug=True,
    )  # fmt: skip
    write_bare_dataset(run_folder)
    _, group, _, notes = load_run(argv)
    (dataset,) = group.datasets
    (subset,) = dataset.subsets
    assert (dataset.resolution, dataset.batch_size) == ((128, 192), 3)
    assert (subset.num_repeats, subset.caption_extension, subset.flip_aug) == (2, ".caption", True)
    assert (subset.keep_tokens_separator, subset.token_warmup_step) == ("|||", 10.0)
    assert subset.caption_dropout_rate == 0.5
    assert notes == []


def test_notes_are_warnings_of_the_log(run_files, capsys):
    anima_train_network.make_trainer([*run_files(), "--v2"])
    logging.getLogger().handlers[0].flush()
    assert capsys.readouterr().err.count("--v2 has no effect") == 1


def test_a_written_config_reads_back_the_same(tmp_path):
    paths = ["C:\\x\\new", "it's C:\\uni", 'a "b"', "训练\\x", "tail\\"]
    words = ["--vae", paths[0], "--qwen", paths[1], "--output_name", "n", "--seed", "5",
             "--learning_rate", "1e-5", "--network_args", "a=1", *paths, "--no-train_norm",
             "--lr_warmup_steps", "10%", "--cache_latents", "--base_weights_multiplier", "0.5", "1",
             "--console_log_file", paths[2], "--log_prefix", paths[4],
             "--logging_dir", paths[3]]  # fmt: skip
    before = read(*words, "--output_config", "--config_file", str(tmp_path / "out"))
    written = write_config(before)
    assert written == tmp_path / "out.toml"
    text = written.read_text(encoding="utf-8")
    assert tomllib.loads(text) == toml.loads(text)
    after = read("--config_file", str(written))
    assert {k: v for k, v in after.groups.items() if k.__name__ != "ConfigOptions"} == {
        k: v for k, v in before.groups.items() if k.__name__ != "ConfigOptions"
    }
    assert not set(tomllib.loads(text)) & {"config_file", "output_config", "max_train_steps"}


def test_writing_ends_the_program_well_and_never_overwrites(tmp_path, capsys):
    words = ["--output_config", "--config_file", str(tmp_path / "a.toml"), "--seed", "3"]
    with pytest.raises(SystemExit) as end:
        load_run(words)
    assert not end.value.code
    assert "a.toml" in capsys.readouterr().out
    assert (tmp_path / "a.toml").read_text() == "seed = 3\n"
    with pytest.raises(ConfigError, match="exists already"):
        load_run([*words[:-1], "4"])
    assert (tmp_path / "a.toml").read_text() == "seed = 3\n"


def test_writing_needs_a_name_and_right_values(tmp_path):
    with pytest.raises(ConfigError, match="--config_file"):
        load_run(["--output_config"])
    with pytest.raises(ConfigError, match="whole number"):
        load_run(["--output_config", "--config_file", str(tmp_path / "a"), "--seed", "x"])
    with pytest.raises(ConfigError, match="cannot be written"):
        load_run(["--output_config", "--config_file", str(tmp_path / "no" / "a")])
    assert list(tmp_path.iterdir()) == []


def test_output_config_inside_a_file_is_named(tmp_path):
    loaded = read(toml_text="output_config = true\nseed = 1\n", folder=tmp_path)
    assert loaded.groups[LoopOptions].seed == 1
    (note,) = loaded.notes
    assert "belongs on the command line" in note


def test_groups_outside_the_file_keep_their_defaults():
    assert read().groups[SaveOptions] == SaveOptions()


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
