"""File names, what is due and what is deleted, against sd-scripts' documented behaviour."""

import pytest

from library.checkpoints import CheckpointPlan
from library.options import convert, flags_of
from library.run_config import ResumeOptions, SaveOptions


def plan(epochs=10, **options):
    return CheckpointPlan(SaveOptions(output_dir="out", **options), epochs)


def test_names_are_those_of_sd_scripts():
    named = plan(output_name="saber")
    assert named.step_file(10).name == "saber-step00000010.safetensors"
    assert named.epoch_file(3).name == "saber-000003.safetensors"
    assert named.final_file().name == "saber.safetensors"
    assert plan().step_file(10).name == "at-step00000010.safetensors"
    assert plan().epoch_file(3).name == "epoch-000003.safetensors"
    assert plan().final_file().name == "last.safetensors"


def test_a_file_is_due_every_n_steps_and_every_n_epochs_but_not_after_the_last():
    steps = plan(save_every_n_steps=5)
    assert [step for step in range(1, 21) if steps.due_at_step(step)] == [5, 10, 15, 20]
    epochs = plan(epochs=6, save_every_n_epochs=2)
    assert [epoch for epoch in range(1, 7) if epochs.due_after_epoch(epoch)] == [2, 4]


def test_epoch_ratio_makes_at_least_that_many_files():
    ratio = plan(epochs=10, save_n_epoch_ratio=3)
    assert [epoch for epoch in range(1, 11) if ratio.due_after_epoch(epoch)] == [3, 6, 9]


@pytest.mark.parametrize(
    "keep, step, stale",
    [(10, 5, None), (10, 15, None), (10, 20, 5), (10, 25, 10), (0, 10, 5), (None, 50, None)],
)
def test_step_files_older_than_save_last_n_steps_go(keep, step, stale):
    steps = plan(save_every_n_steps=5, save_last_n_steps=keep)
    assert steps.stale_at_step(step) == (steps.step_file(stale) if stale else None)


def test_only_the_last_n_epoch_files_stay():
    epochs = plan(save_every_n_epochs=2, save_last_n_epochs=2)
    assert [epochs.stale_after_epoch(epoch) for epoch in (2, 4)] == [None, None]
    assert epochs.stale_after_epoch(6) == epochs.epoch_file(2)
    assert epochs.stale_after_epoch(8) == epochs.epoch_file(4)


@pytest.mark.parametrize("name, value", [
    ("save_every_n_epochs", None), ("save_every_n_steps", None), ("save_n_epoch_ratio", None),
    ("save_last_n_epochs", None), ("save_last_n_epochs_state", None),
    ("save_last_n_steps_state", None),  # as sd-scripts: save_last_n_steps decides
    ("save_last_n_steps", 0),  # as sd-scripts: the newest stays
    ("initial_epoch", None), ("initial_step", 0),  # as sd-scripts: given, whatever a state says
])  # fmt: skip
def test_zero_asks_for_what_it_asks_of_sd_scripts(name, value):
    flags = {flag.dest: flag for group in (SaveOptions, ResumeOptions) for flag in flags_of(group)}
    assert convert(flags[name], "0", from_text=True) == value
    numbers = {name for name, flag in flags.items() if flag.type is int}
    assert len(numbers) == 9  # all of them stand above
