"""What a run keeps to choose a file by: its ledger, evaluations and averaged weights, in one run for all."""

import csv
import io

import pytest
import torch
from safetensors import safe_open

from library.watching.drift import SIGMAS
from networks.network import replace_submodule
from tests.helpers.running import config_files, exported, make_trainer, rows_of

STEPS, START, EVERY = 5, 2, 2
RUN = {
    "max_train_steps": STEPS, "save_every_n_steps": 1, "save_state": True, "no_metadata": True,
    "network_dropout": 0.2, "learning_rate": 1e-2, "log_every_n_steps": 4,
}  # fmt: skip
KEPT = {
    "ema_decay": 0.6, "ema_start_step": START, "evaluate_every_n_steps": EVERY,
    "evaluation_pictures": 3,
}  # fmt: skip
FILES = ("run.safetensors", "run-ema.safetensors", "run_ledger.csv")


def step_name(step):
    return f"run-step{step:08d}"


@pytest.fixture(scope="module")
def done(demo, tmp_path_factory):
    """The folder of a run, its trainer, and the contents of its last files."""
    folder = tmp_path_factory.mktemp("which")
    (folder / "pictures").symlink_to(demo / "pictures")
    prompts = folder / "prompts.txt"
    prompts.write_text("# of no picture\na red house\n\n2girls, dancing\n", encoding="utf-8")
    settings = {**RUN, **KEPT, "drift_prompts": str(prompts)}
    trainer = make_trainer(
        config_files(demo, folder, settings, dataset="validation_split = 0.3", num_repeats=2)
    )
    trainer.train()
    return folder, trainer, {name: (folder / "out" / name).read_bytes() for name in FILES}


def evaluations(trainer):
    return [row for row in rows_of(trainer) if "eval/auc" in row]


def test_a_run_is_evaluated_when_asked_and_at_its_end(done):
    folder, trainer, _ = done
    rows = evaluations(trainer)
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        assert 0 <= row["eval/auc"] <= 1
        for kind in ("trained", "held_out"):
            parts = [row[f"eval/difference/{kind}/sigma_{s}"] for s in ("0.3", "0.5", "0.7")]
            assert row[f"eval/difference/{kind}"] == pytest.approx(sum(parts) / 3, abs=1e-9)
        held_out = row["eval/loss/held_out"] - row["eval/loss/base"]
        assert held_out == pytest.approx(row["eval/difference/held_out"], abs=1e-6) != 0
        assert row["drift/without_subject"] > 0 and row["drift/with_subject"] > 0
    files = trainer.files.files_after([2, 4, 5], trainer.plan)
    names = {2: step_name(2), 4: step_name(4), 5: "run"}
    assert files == {step: folder / "out" / f"{name}.safetensors" for step, name in names.items()}
    best = min(rows, key=lambda row: row["eval/loss/held_out"])
    (said,) = trainer.evaluation.best(files)
    assert str(files[best["step"]]) in said and f"{best['eval/loss/held_out']:.5f}" in said
    assert said.split(":")[0] in (folder / "out" / "run_report.html").read_text(encoding="utf-8")


def test_a_run_saves_the_average_of_its_weights(done):
    folder, *_ = done
    assert not (folder / "out" / f"{step_name(1)}-ema.safetensors").exists()
    average = exported(folder, step_name(START))
    for step in range(START, STEPS + 1):
        now = exported(folder, step_name(step))
        if step > START:
            update = step - START
            weight = 1 - min(KEPT["ema_decay"], (1 + update) / (10 + update))
            average = {key: torch.lerp(value, now[key], weight) for key, value in average.items()}
        found = exported(folder, f"{step_name(step)}-ema")
        assert found.keys() == now.keys()
        assert all(torch.equal(found[key], value) for key, value in average.items())
    assert any(not torch.equal(found[key], now[key]) for key in now)
    last = exported(folder, "run-ema")
    assert all(torch.equal(last[key], value) for key, value in found.items())


def test_a_run_writes_the_ledger_of_its_pictures(done):
    _, trainer, files = done
    table = list(csv.DictReader(io.StringIO(files["run_ledger.csv"].decode("utf-8-sig"))))
    assert sum(int(row["samples"]) for row in table) == trainer.state.samples_seen
    names = [row.key.partition("/")[2] for row in trainer.files.ledger_rows]
    assert names == [row["picture"] for row in table]


def test_training_does_not_see_any_of_it(demo, done):
    folder, _, files = done
    plain = folder / "plain"
    argv = config_files(demo, folder, RUN, dataset="validation_split = 0.3", num_repeats=2)
    make_trainer([*argv, "--output_dir", str(plain)]).train()
    assert (plain / "run.safetensors").read_bytes() == files["run.safetensors"]
    assert not list(plain.glob("*-ema*"))


def test_a_resumed_run_goes_on_with_all_of_it(demo, done):
    folder, trainer, files = done
    settings = {**RUN, **KEPT, "drift_prompts": str(folder / "prompts.txt")}
    argv = config_files(demo, folder, settings, dataset="validation_split = 0.3", num_repeats=2)
    resumed = make_trainer([*argv, "--resume", str(folder / "out" / f"{step_name(3)}-state")])
    resumed.train()
    assert {name: (folder / "out" / name).read_bytes() for name in FILES} == files
    assert resumed.evaluation.history == trainer.evaluation.history
    ours, whole = ([row for row in evaluations(t) if row["step"] > 3] for t in (resumed, trainer))
    assert ours == whole
    resumed.files.parts.restore(resumed.resumption.state, 1)  # a process that was not there before
    assert [each.step for each in resumed.evaluation.history] == [2]  # skips what the first skips


def test_the_base_is_the_model_without_its_adapters(done):
    """Norms are trained here too. Last: it takes the adapters out of the run's model."""
    _, trainer, _ = done
    evaluation, drift, base = trainer.evaluation, trainer.drift, trainer.base
    shape = drift.shape(trainer.latents_strategy.channels, trainer.latents_strategy.downscale)
    noisy = drift.noisy(1, shape, torch.device("cpu"))
    _, prompt = drift.prompts[1]
    with trainer.as_used(), torch.no_grad():
        now = trainer.predict_caption(noisy, prompt, 1.0)
        for placement in trainer.network.placements:
            adapted = base.get_submodule(placement.path)
            replace_submodule(base, placement.path, adapted.release())
        losses = evaluation.losses(trainer.process_batch, trainer.accelerator)
        plain = trainer.predict_caption(noisy, prompt, 1.0)
    assert any(placement.is_norm for placement in trainer.network.placements)
    assert torch.equal(losses, evaluation.base)
    assert torch.equal(plain, drift.base[1]) and not torch.equal(now, plain)
    assert noisy.sigma.tolist() == pytest.approx(SIGMAS)
    assert torch.allclose(noisy.latents[1] / SIGMAS[1], noisy.velocity[1])  # no picture behind it


def test_an_averaged_file_says_so_and_goes_with_its_own(demo, run_folder):
    settings = {"save_every_n_steps": 1, "save_last_n_steps": 0, "max_train_steps": 3}
    make_trainer(config_files(demo, run_folder, {**settings, "ema_decay": 0.5})).train()
    names = {path.name for path in (run_folder / "out").glob("*.safetensors")}
    kept = ("run-ema", "run", f"{step_name(3)}-ema", step_name(3))
    assert names == {f"{name}.safetensors" for name in kept}
    with safe_open(run_folder / "out" / "run-ema.safetensors", "pt") as file:
        metadata = file.metadata()
    said = [metadata[f"ss_{name}"] for name in ("ema_decay", "ema_updates", "steps")]
    assert said == ["0.5", "2", "3"]
