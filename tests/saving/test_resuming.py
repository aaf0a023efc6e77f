"""Going on from a state: the same bits, for every optimizer, schedule and place in a run."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from library.errors import ConfigError, ResumeError
from library.saving.state_contents import (
    class_name,
    first_position,
    identical,
    random_states,
    restore_optimizer,
    restore_random_states,
    restore_schedule,
)
from library.settings.flags.resume import ResumeOptions
from library.settings.optimizer_names import OPTIMIZERS
from library.training.optimizers import create_optimizer, optimizer_train_mode
from tests.helpers.optimizing import (
    SCHEDULES,
    make_parameters,
    needs,
    options,
    rates,
    saved_optimizer,
    schedule_over,
    through_a_file,
)
from tests.helpers.running import config_files, make_trainer, train

PAIRS = [(name, dtype) for name in OPTIMIZERS for dtype in (torch.float32, torch.bfloat16)]


def updates(optimizer, parameters, steps):
    """Noisy pulls towards 1; the noise is a function of the step."""
    for step in steps:
        torch.manual_seed(step)
        noise = [torch.randn_like(p) for p in parameters]
        sum(((p - 1 + 0.1 * z) ** 2).sum() for p, z in zip(parameters, noise)).backward()
        optimizer.step()
        optimizer.zero_grad()


def optimizer_over(name, dtype):
    parameters = [torch.nn.Parameter(p.detach().to(dtype)) for p in make_parameters()]
    lr = 1.0 if OPTIMIZERS[name].finds_own_lr else 1e-2
    groups = [{"params": parameters[:1], "lr": lr}, {"params": parameters[1:]}]
    optimizer = create_optimizer(options(name, lr=lr), groups)
    optimizer_train_mode(optimizer)
    return optimizer, parameters


@pytest.mark.parametrize("name, dtype", PAIRS, ids=lambda v: str(v).removeprefix("torch."))
def test_every_optimizer_goes_on_to_the_bit(name, dtype):
    pytest.importorskip(OPTIMIZERS[name].path.partition(".")[0])
    if needs(name):
        pytest.skip("paged optimizers need a CUDA device")
    optimizer, parameters = optimizer_over(name, dtype)
    updates(optimizer, parameters, range(5))
    saved = saved_optimizer(optimizer)
    weights = [p.detach().clone() for p in parameters]
    updates(optimizer, parameters, range(5, 10))
    resumed, again = optimizer_over(name, dtype)
    with torch.no_grad():
        for parameter, weight in zip(again, weights):
            parameter.copy_(weight)
    restore_optimizer(resumed, saved)
    updates(resumed, again, range(5, 10))
    assert identical(parameters, again)


def test_8_bit_states_are_restored_in_8_bits():
    pytest.importorskip("bitsandbytes")
    optimizer, parameters = optimizer_over("AdamW8bit", torch.float32)
    updates(optimizer, parameters, range(2))
    resumed, again = optimizer_over("AdamW8bit", torch.float32)
    restore_optimizer(resumed, saved_optimizer(optimizer))
    assert resumed.state[again[0]]["state1"].dtype == torch.uint8  # 5120 elements
    assert resumed.state[again[1]]["state1"].dtype == torch.float32  # 7


class Forgetful(torch.optim.SGD):
    """An optimizer that does not take back all that it gives."""

    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "state": {}})


def test_an_optimizer_that_forgets_is_not_resumed_as_if_it_did_not():
    parameters = make_parameters()
    optimizer = Forgetful(parameters, lr=0.1, momentum=0.9)
    updates(optimizer, parameters, range(2))
    saved = saved_optimizer(optimizer)
    with pytest.raises(ResumeError, match="Forgetful.*unchanged"):
        restore_optimizer(Forgetful(make_parameters(), lr=0.1, momentum=0.9), saved)


def test_other_groups_are_told_before_anything_is_loaded():
    parameters = make_parameters()
    saved = saved_optimizer(torch.optim.SGD(parameters, lr=0.1))
    groups = [{"params": [parameter]} for parameter in parameters]
    for other in (torch.optim.SGD(groups, lr=0.1), torch.optim.Adam(parameters, lr=0.1)):
        with pytest.raises(ResumeError, match="torch.optim.sgd.SGD.*--resume_ignore_optimizer"):
            restore_optimizer(other, saved)


def test_arguments_that_differ_are_those_of_the_resumed_run():
    parameters = make_parameters()
    first = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5, betas=(0.8, 0.9))
    updates(first, parameters, range(2))
    saved = saved_optimizer(first, ["weight_decay=0.5", "betas=(0.8,0.9)"])
    second = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.25)
    restore_optimizer(second, saved, ("weight_decay=0.25",))
    (group,) = second.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.25, (0.9, 0.999))
    assert second.state[parameters[0]]["step"] == 2


def continued(name, **changes):
    """The rates of 20 steps: 7 with one schedule, 13 with a fresh one that takes over."""
    optimizer, scheduler = schedule_over(name)
    first = rates(optimizer, scheduler, 7)
    saved = through_a_file({"class": class_name(scheduler), "state": scheduler.state_dict()})
    kept = saved_optimizer(optimizer)
    optimizer, scheduler = schedule_over(name, **changes)
    restore_optimizer(optimizer, kept)
    restore_schedule(scheduler, saved, 7)
    return first + rates(optimizer, scheduler, 13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on_to_the_bit(name):
    assert continued(name) == rates(*schedule_over(name), 20)


@pytest.mark.parametrize("name", ["constant", "cosine", "polynomial", "piecewise_constant"])
def test_a_new_learning_rate_and_length_count_from_the_first_step_on(name):
    new = {"total": 40, "lr": 3e-2}
    assert continued(name, **new)[7:] == rates(*schedule_over(name, **new), 20)[7:]


def test_a_schedule_that_builds_on_its_last_rate_scales_with_a_new_learning_rate():
    name = "torch.optim.lr_scheduler.CosineAnnealingLR"
    new = {"lr": 3e-2}
    assert continued(name, **new)[7:] == pytest.approx(rates(*schedule_over(name, **new), 20)[7:])


def test_random_generators_go_on_where_they_were():
    import random

    import numpy

    def draws():
        return torch.rand(3).tolist(), random.gauss(0, 1), numpy.random.normal(size=3).tolist()

    draws()
    kept = random_states()
    expected = draws()
    draws()
    restore_random_states(kept)
    assert draws() == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, (0, 0, 0)),
        ({"initial_epoch": 1}, (0, 0, 0)),
        ({"initial_epoch": 3}, (20, 2, 0)),
        ({"initial_step": 24}, (24, 2, 0)),
        ({"initial_step": 24, "skip_until_initial_step": True}, (24, 2, 12)),
        ({"initial_step": 24, "initial_epoch": 9}, (24, 2, 0)),
    ],
)
def test_a_run_begins_where_the_flags_say(given, expected):
    plan = SimpleNamespace(steps_per_epoch=10)
    begun = first_position(ResumeOptions(**given), None, plan, accumulation=3, processes=1)
    assert (begun.step, begun.epoch, begun.batch_in_epoch) == expected


SHARES = {"tags": 1, "sentences": 1, "tags_sentences": 1, "sentences_tags": 1}
VARIED = {"shuffle_caption": True, "caption_dropout_rate": 0.3, "flip_aug": True}
VARIED |= {"caption_shares": SHARES}
RUN = {
    "max_train_steps": None,
    "max_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "save_state": True,
    "save_every_n_steps": 1,
    "save_every_n_epochs": 1,
    "network_dropout": 0.2,
    "no_metadata": True,
    "lr_scheduler": "cosine",
    "cache_latents_to_disk": True,
    "cache_text_encoder_outputs_to_disk": True,
}


def test_from_every_state_a_run_ends_in_the_same_bytes(demo, run_folder):
    for caption in sorted((run_folder / "pictures").glob("*.txt"))[::2]:
        sentences = caption.with_name(f"{caption.stem}_nl.txt")
        sentences.write_text(f"A picture, {caption.stem}, of a girl.", encoding="utf-8")
    argv = config_files(demo, run_folder, RUN, **VARIED)
    whole = make_trainer(argv)
    whole.train()
    out = run_folder / "out"
    expected = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    states = sorted(path.name for path in out.glob("*-state"))
    assert len(states) == 2 * whole.plan.steps_per_epoch + 1 + 1
    for name in states:
        folder = run_folder / name
        (out / name).rename(folder)
        for path in out.glob("*.safetensors"):
            path.unlink()
        resumed = make_trainer([*argv, "--resume", str(folder)])
        resumed.train()
        found = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
        assert "run.safetensors" in found
        for file, value in found.items():
            assert value == expected[file], (name, file)
        assert resumed.state == whole.state


def test_the_files_of_a_resumed_run_tell_of_the_run_as_one(demo, run_folder):
    def told():
        with safe_open(run_folder / "out" / "run.safetensors", "pt") as file:
            return file.metadata()

    settings = {"save_state": True, "save_every_n_steps": 2}
    train(demo, run_folder, settings)
    first = told()
    state = str(run_folder / "out" / "run-step00000002-state")
    train(demo, run_folder, {**settings, "resume": state})
    second = told()
    assert {key for key in first if first[key] != second[key]} == {"ss_training_finished_at"}


def test_a_resumed_run_continues_its_logs(demo, run_folder):
    settings = {"save_state": True, "save_every_n_steps": 2, "max_train_steps": 6}
    whole = train(demo, run_folder, settings)
    state = str(run_folder / "out" / "run-step00000004-state")
    resumed = train(demo, run_folder, {**settings, "resume": state})
    lines = [
        (trainer.trackers.run_dir / "loss.jsonl").read_text().splitlines()
        for trainer in (whole, resumed)
    ]
    assert len(lines[1]) == 2
    for ours, theirs in zip(lines[1], lines[0][4:]):
        assert ours.partition("host/")[0] == theirs.partition("host/")[0]
    assert resumed.monitor.history.samples == whole.monitor.history.samples


def test_a_seed_that_was_drawn_is_taken_from_the_state(demo, run_folder):
    settings = {"seed": None, "save_state_on_train_end": True}
    first = train(demo, run_folder, settings)
    state = str(run_folder / "out" / "run-state")
    second = train(demo, run_folder, {**settings, "resume": state, "max_train_steps": 6})
    assert second.seed == first.seed and second.state.step == 6


def test_a_state_at_the_end_of_its_run_still_gives_the_final_file(demo, run_folder):
    train(demo, run_folder, {"save_state_on_train_end": True, "no_metadata": True})
    final = run_folder / "out" / "run.safetensors"
    expected = final.read_bytes()
    final.unlink()
    state = str(run_folder / "out" / "run-state")
    train(demo, run_folder, {"resume": state, "no_metadata": True})
    assert final.read_bytes() == expected
    with pytest.raises(ConfigError, match="begins at step 4.*would end at step 3"):
        train(demo, run_folder, {"resume": state, "max_train_steps": 3})


def test_old_states_go_as_asked(demo, run_folder):
    settings = {
        "save_state": True, "save_every_n_steps": 1, "save_last_n_steps": 2,
        "save_last_n_steps_state": 1, "save_every_n_epochs": 1,
    }  # fmt: skip
    train(demo, run_folder, {**settings, "max_train_steps": None, "max_train_epochs": 1})
    names = [path.name for path in (run_folder / "out").iterdir() if "step" in path.name]
    files = sorted(name.removesuffix(".safetensors") for name in names if "state" not in name)
    states = sorted(name for name in names if name.endswith("-state"))
    assert len(files) == 3 and states == [f"{name}-state" for name in files[1:]]


class Killed(BaseException):
    """As SIGKILL: nothing of the run is put in order."""


def test_what_a_run_killed_before_deleting_left_goes_with_the_one_that_goes_on(demo, run_folder):
    settings = {"save_state": True, "save_every_n_steps": 1, "save_every_n_epochs": 1}
    settings |= {"save_last_n_steps": 1, "save_last_n_epochs": 1, "no_metadata": True}
    settings |= {"max_train_steps": None, "max_train_epochs": 2}
    argv, out = config_files(demo, run_folder, settings, batch_size=4), run_folder / "out"

    def content():
        return {p.name: p.is_dir() or p.read_bytes() for p in out.glob("run*[!l]")}  # not .html

    def killed_at(step, *resume):
        """The state to go on from, of a run that wrote the one of `step` and deleted none then."""
        trainer = make_trainer([*argv, *resume])
        trainer.prepare()
        discard = trainer.files.discard

        def discard_or_die(series, number):
            if number == step and series.prefix == "run-step":
                raise Killed
            discard(series, number)

        trainer.files.discard = discard_or_die
        with pytest.raises(Killed):
            trainer.run_epochs()
        return "--resume", str(out / f"run-step{step:08d}-state")

    whole = make_trainer(argv)
    whole.train()
    expected = content()
    for path in out.glob("run*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resume = killed_at(3)
    resume = killed_at(whole.plan.total_steps, *resume)
    assert "run-step00000004.safetensors" in content()
    make_trainer([*argv, *resume]).train()
    assert content() == expected


def test_initial_step_with_skip_trains_on_the_data_of_those_steps(demo, run_folder):
    whole = train(demo, run_folder, {"max_train_steps": 5})
    settings = {"initial_step": 3, "skip_until_initial_step": True, "max_train_steps": 5}
    late = train(demo, run_folder, settings)
    assert late.state.step == 5 and late.state.batch_in_epoch == whole.state.batch_in_epoch
    sigmas = [[pair[0] for pair in t.monitor.history.samples] for t in (whole, late)]
    assert sigmas[1] == sigmas[0][-len(sigmas[1]) :] and len(sigmas[1]) < len(sigmas[0])
