"""train_args.toml and the command line: precedence, places of problems, all of them at once."""

import json
import logging
from pathlib import Path

import pytest
import toml

import anima_train_network
from anima_train_network import load_run
from library.errors import ConfigError
from library.settings.flags.cache import CacheOptions
from library.settings.flags.data import DataOptions
from library.settings.flags.loop import LoopOptions
from library.settings.flags.network import NetworkOptions
from library.settings.flags.save import SaveOptions
from library.settings.written_config import write_config
from tests.helpers.configs import found, read
from tests.helpers.running import model_paths, write_dataset, write_toml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


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


def test_a_problem_found_between_flags_stands_at_its_line(run_files):
    argv = run_files(optimizer_args=["betas"], anima_flow_shift=3, timestep_sampling="uniform")
    with pytest.raises(ConfigError) as error:
        load_run(argv)
    places = [p.where.partition("  ")[2].partition(" =")[0] for p in error.value.problems]
    assert places == ["optimizer_args", "timestep_sampling"]


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
