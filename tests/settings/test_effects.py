"""Options that do nothing beside others are named with a reason that is true; those that act are not."""

import pytest

from anima_train_network import load_run
from library.anima_runtime.config_adapter import run_notes
from library.errors import ConfigError
from library.train_util import StepPlan
from tests.helpers.dataset_files import folder_of

NEEDED = ["--anima_transformer", "d", "--vae", "v", "--qwen", "q", "--output_dir", "out"]


@pytest.fixture
def notes(tmp_path):
    """What is told of a dataset file and of flags. {folder} stands for the pictures."""
    folder = folder_of(tmp_path / "pictures", [(64, 64)])

    def read(text: str, *words: str) -> list[str]:
        file = tmp_path / "dataset.toml"
        file.write_text(text.replace("{folder}", str(folder)), encoding="utf-8")
        return load_run([*NEEDED, "--dataset_config", str(file), *words])[3]

    return read


def file_with(general: str = "", dataset: str = "", subset: str = "") -> str:
    return (
        f"[general]\n{general}\n[[datasets]]\nresolution = 64\n{dataset}\n"
        f"[[datasets.subsets]]\nimage_dir = '{{folder}}'\n{subset}\n"
    )


def test_a_flag_that_loses_to_the_file_is_named_though_it_is_the_default(notes):
    words = ["--no-shuffle_caption", "--caption_dropout_rate", "0", "--train_batch_size", "1"]
    general = "shuffle_caption = true\ncaption_dropout_rate = 0.5\nbatch_size = 2"
    told = notes(file_with(general), *words)
    flags = ("train_batch_size", "shuffle_caption", "caption_dropout_rate")
    assert [note.split()[0] for note in told] == [f"--{flag}" for flag in flags]
    assert all("dataset.toml sets" in note for note in told)


def test_a_flag_that_agrees_with_the_file_is_not_named(notes):
    assert not notes(file_with("batch_size = 2"), "--train_batch_size", "2")


def test_a_flag_that_one_subset_leaves_open_acts(notes):
    text = file_with(subset="keep_tokens = 1\nshuffle_caption = true")
    second = "[[datasets.subsets]]\nimage_dir = '{folder}'\nshuffle_caption = true\n"
    assert notes(text, "--keep_tokens", "2")
    assert not notes(text + second, "--keep_tokens", "2")


def test_a_key_that_others_further_inside_replace_is_named_with_its_line(notes):
    (note,) = notes(file_with("flip_aug = true", subset="flip_aug = false"))
    assert note.endswith(
        "dataset.toml, line 2: flip_aug has no effect: what is further inside sets flip_aug everywhere."
    )


def test_a_list_of_resolutions_replaces_a_resolution_further_outside(notes):
    (note,) = notes(
        file_with().replace("resolution = 64", "resolutions = [64]"), "--resolution", "128"
    )
    assert "--resolution has no effect: " in note and "sets resolution everywhere" in note


def test_a_key_without_use_is_named_with_the_reason(notes):
    (note,) = notes(file_with("keep_tokens = 2"))
    assert ", line 2: keep_tokens has no effect: tags are neither shuffled nor dropped" in note
    assert not notes(file_with("keep_tokens = 2", subset="shuffle_caption = true"))
    assert not notes(file_with("keep_tokens = 0"))


def test_a_key_that_no_program_reads_is_named(notes):
    (note,) = notes(file_with(subset="custom_attributes = {a = 1}"))
    assert "custom_attributes has no effect: beside timestep_sampling.offset it is read" in note
    offset = "custom_attributes = {timestep_sampling = {offset = 0.5}}"
    assert not notes(file_with(subset=offset))
    (note,) = notes(file_with(subset=offset), "--timestep_sampling", "uniform")
    assert "timestep_offset has no effect: timestep_sampling is uniform" in note


def test_masks_of_sd_scripts_without_its_switch_are_named(notes):
    (note,) = notes(file_with(subset="conditioning_data_dir = '{folder}'"))
    assert "conditioning_data_dir has no effect: --masked_loss is off" in note
    assert not notes(file_with(subset="conditioning_data_dir = '{folder}'"), "--masked_loss")


def test_a_seed_of_validation_has_a_use_beside_the_file(notes):
    """The file's seed chooses the pictures, the flag's draws their noise."""
    text = file_with(dataset="validation_split = 0.5\nvalidation_seed = 1")
    assert not notes(text, "--validation_seed", "2")


@pytest.mark.parametrize(
    "words, why",
    [
        (["--masked_loss"], "no subset has masks"),
        (["--prior_loss_weight", "0.5"], "there are no regularisation pictures"),
        (["--validate_every_n_steps", "5"], "validation_split is 0"),
        (["--save_last_n_epochs_state", "1"], "save_state is not set"),
        (["--learning_rate", "2e-6", "--unet_lr", "1e-4"], "unet_lr decides"),
        (["--lr_scheduler", "constant", "--lr_scheduler_type", "StepLR"], "lr_scheduler_type decides"),
    ],
)
def test_a_flag_without_use_is_named_with_the_reason(notes, words, why):
    assert notes(file_with(), *words) == [f"{words[0]} has no effect: {why}."]


def test_what_is_due_only_after_the_end_of_the_run_is_named(notes, tmp_path):
    words = ["--save_every_n_steps", "500", "--save_every_n_epochs", "3", "--seed", "1"]
    assert not notes(file_with("caption_dropout_every_n_epochs = 10"), *words)
    argv = [*NEEDED, "--dataset_config", str(tmp_path / "dataset.toml"), *words]
    train, datasets, anima, _ = load_run(argv)
    plan = StepPlan(2, 2, 4, 2, 2)
    told = run_notes(train, anima, train.explicit, datasets, plan)
    assert told[:2] == [
        "--save_every_n_epochs has no effect: the run has 2 epochs.",
        "--save_every_n_steps has no effect: the run has 4 steps.",
    ]
    assert "caption_dropout_every_n_epochs has no effect: the run has 2 epochs." in told[2]


def test_pictures_at_strength_0_are_an_error(notes):
    """No adapter would take part in their loss."""
    with pytest.raises(ConfigError, match="at strength 0 adapters learn nothing"):
        notes(file_with(dataset="network_multiplier = 0"))


def test_a_static_graph_and_accumulation_are_an_error_where_several_train(notes, monkeypatch):
    words = ["--ddp_static_graph", "--gradient_accumulation_steps", "2"]
    assert notes(file_with(), *words) == ["--ddp_static_graph has no effect: one process trains."]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="with gradient_accumulation_steps above 1. Leave it out"):
        notes(file_with(), *words)
    assert not notes(file_with(), "--ddp_static_graph")


@pytest.mark.parametrize("kind", ["ckpt", "pt"])
def test_files_that_can_run_code_are_refused(notes, kind):
    with pytest.raises(ConfigError, match="is refused: only safetensors is written"):
        notes(file_with(), "--save_model_as", kind)
