"""File names, what is due and what is deleted, against sd-scripts' documented behaviour."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from library.saving.checkpoints import Checkpoints, Kept, files_of_run
from library.settings.flag_values import convert
from library.settings.flags.loop import LoopOptions
from library.settings.flags.resume import ResumeOptions
from library.settings.flags.save import SaveOptions
from library.settings.options import flags_of
from library.train_util import StepPlan


def plan(epochs=10, **options):
    return Checkpoints(SaveOptions(**{"output_dir": "out", **options}), epochs)


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
    [(10, 5, []), (10, 15, []), (10, 20, [5]), (10, 25, [5, 10]), (9, 15, [5]), (0, 10, [5]),
     (None, 50, [])],
)  # fmt: skip
def test_step_files_older_than_save_last_n_steps_go(tmp_path, keep, step, stale):
    steps = plan(output_dir=tmp_path, save_every_n_steps=5, save_last_n_steps=keep)
    for number in range(5, step + 1, 5):
        steps.step_file(number).touch()
    assert steps.by_step.stale_files(step) == [steps.step_file(number) for number in stale]


def test_only_the_last_n_epoch_files_stay(tmp_path):
    epochs = plan(output_dir=tmp_path, save_every_n_epochs=2, save_last_n_epochs=2)
    for number in (2, 4, 6, 8):
        epochs.epoch_file(number).touch()
    for epoch, stale in ((2, []), (4, []), (6, [2]), (8, [2, 4])):
        expected = [epochs.epoch_file(number) for number in stale]
        assert epochs.by_epoch.stale_files(epoch) == expected


def test_what_is_not_of_this_runs_rules_stays(tmp_path):
    options = {"save_every_n_steps": 5, "save_last_n_steps": 5, "save_every_n_epochs": 2}
    own = plan(output_dir=tmp_path, output_name="a.b", **options, save_last_n_epochs=1)
    states = ResumeOptions(save_last_n_steps_state=10)
    own = Checkpoints(own.options, 10, states)
    others = [
        "a.b", "a.b-step00000007", "a.b-step5", "a.b-step000000005", "aXb-step00000005",
        "a.b-c-step00000005", "a.b-step00000005-2", "a.b-step00000000", "a.b-000003", "a.b-000004",
        "a.b-2", "a.b-step00000015", "a.b-step00000020", "a.b-step00000025",
    ]  # fmt: skip
    for name in (*others, "a.b-step00000005", "a.b-step00000010", "a.b-000002"):
        (tmp_path / f"{name}.safetensors").touch()
        (tmp_path / f"{name}-state").mkdir()
    assert own.by_step.stale_files(20) == [own.step_file(5), own.step_file(10)]
    assert own.by_step.stale_states(20) == [own.state_folder(own.step_file(5))]
    assert own.by_epoch.stale_files(4) == [own.epoch_file(2)]
    assert own.by_epoch.stale_states(4) == [own.state_folder(own.epoch_file(2))]
    assert plan(output_dir=tmp_path / "gone", **options).by_step.stale_files(20) == []


def saved_one_by_one(checkpoints, length, first_step, keep_steps, keep_epochs):
    """(at the end, at most) of the files that a run writes and deletes before its final one."""
    every, steps, epochs, most = checkpoints.options.save_every_n_steps, [], [], 0
    for step in range(first_step + 1, length.total_steps + 1):
        if every and step % every == 0:
            steps.append(step)
            most = max(most, len(steps + epochs))
            steps = [n for n in steps if keep_steps is None or n >= step - keep_steps]
        epoch, rest = divmod(step, length.steps_per_epoch)
        if rest == 0 and checkpoints.due_after_epoch(epoch):
            epochs.append(epoch)
            most = max(most, len(steps + epochs))
            epochs = epochs[-(keep_epochs or len(epochs)) :]
    return len(steps + epochs), most


def counted(checkpoints, length, first_step):
    """(files, states) of a run."""
    options, states = checkpoints.options, checkpoints.states
    files = options.save_last_n_steps, options.save_last_n_epochs
    own = states.save_last_n_steps_state, states.save_last_n_epochs_state
    of_states = [f if o is None else o for f, o in zip(files, own)]
    counts = [saved_one_by_one(checkpoints, length, first_step, *files), (0, 0)]
    if states.save_state:
        counts[1] = saved_one_by_one(checkpoints, length, first_step, *of_states)
    finals = 1, int(checkpoints.has_final_state)
    pairs = zip(counts, finals)
    return tuple(Kept(at_end + final, max(most, at_end + final)) for (at_end, most), final in pairs)


def test_files_are_counted_as_a_run_writes_and_deletes_them():
    draw = random.Random(3)

    def some(largest, lowest=1):
        return draw.choice([None, draw.randint(lowest, largest)])

    for _ in range(3000):
        batches, epochs = draw.randint(1, 7), draw.randint(1, 9)
        loop = replace(LoopOptions(), max_train_steps=draw.randint(1, batches * epochs))
        length = StepPlan.make(batches, 1, SimpleNamespace(loop=loop))
        options = SaveOptions(
            output_dir="out", save_every_n_steps=some(9), save_every_n_epochs=some(4),
            save_n_epoch_ratio=some(5), save_last_n_steps=some(20, 0), save_last_n_epochs=some(4),
        )  # fmt: skip
        states = ResumeOptions(
            save_state=draw.random() < 0.7, save_state_on_train_end=draw.random() < 0.5,
            save_last_n_steps_state=some(20), save_last_n_epochs_state=some(4),
        )  # fmt: skip
        checkpoints = Checkpoints(options, length.epochs, states)
        first = draw.choice([0, draw.randint(0, length.total_steps)])
        expected = counted(checkpoints, length, first)
        assert files_of_run(checkpoints, length, first) == expected, (options, states, length)


def test_files_of_a_run_without_end_are_counted_without_being_listed():
    epochs = 10**9
    length = StepPlan(3, 3, 3 * epochs, epochs, 3)
    checkpoints = plan(epochs, save_every_n_epochs=1, save_every_n_steps=2, save_last_n_steps=4)
    files, states = files_of_run(checkpoints, length)
    assert files == Kept(epochs - 1 + 3 + 1, epochs - 1 + 4) and states == Kept(0, 0)


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
    numbers = {name for name, flag in flags.items() if flag.type is int and name != "export_rank"}
    assert len(numbers) == 9  # all of them stand above
