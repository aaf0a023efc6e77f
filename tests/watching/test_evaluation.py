"""Trained against held-out pictures, and how far the model has moved: what is said of it, and that it is so."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from library.errors import ConfigError
from library.settings.drift_prompts import MOST_PROMPTS, PROMPTS, read_drift_prompts
from library.settings.run_config import EvaluationOptions
from library.watching.drift import SIGMAS, Drift, with_subject
from library.watching.evaluation import Evaluated, Evaluation, auc
from networks.network import replace_submodule
from tests.helpers.dataset_files import catalogue_of, folder_of
from tests.helpers.running import config_files, make_trainer, rows_of

RUN = {
    "max_train_steps": 5, "save_every_n_steps": 2, "save_state": True, "no_metadata": True,
    "network_dropout": 0.2, "learning_rate": 1e-2,
}  # fmt: skip
EVALUATED = ["--evaluate_every_n_steps", "2", "--evaluation_pictures", "3"]


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """A run that is evaluated, its trainer, its command line and what was said at its end."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "pictures").symlink_to(demo / "pictures")
    prompts = folder / "prompts.txt"
    prompts.write_text("# of no picture\na red house\n\n2girls, dancing\n", encoding="utf-8")
    argv = config_files(demo, folder, RUN, dataset="validation_split = 0.3")
    evaluated = [*argv, *EVALUATED, "--drift_prompts", str(prompts)]
    trainer = make_trainer(evaluated)
    trainer.train()
    return folder, trainer, argv, evaluated


def evaluations(trainer):
    return [row for row in rows_of(trainer) if "eval/auc" in row]


def test_a_run_is_evaluated_when_asked_and_at_its_end(runs):
    folder, trainer, *_ = runs
    rows = evaluations(trainer)
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        assert 0 <= row["eval/auc"] <= 1
        for kind in ("trained", "held_out"):
            parts = [
                row[f"eval/difference/{kind}/sigma_{sigma}"] for sigma in ("0.3", "0.5", "0.7")
            ]
            assert row[f"eval/difference/{kind}"] == pytest.approx(sum(parts) / 3, abs=1e-9)
        held_out = row["eval/loss/held_out"] - row["eval/loss/base"]
        assert held_out == pytest.approx(row["eval/difference/held_out"], abs=1e-6) != 0
        assert row["drift/without_subject"] > 0 and row["drift/with_subject"] > 0
    files = trainer.files.files_after([2, 4, 5], trainer.plan)
    names = {2: "run-step00000002", 4: "run-step00000004", 5: "run"}
    assert files == {step: folder / "out" / f"{name}.safetensors" for step, name in names.items()}
    best = min(rows, key=lambda row: row["eval/loss/held_out"])
    (said,) = trainer.evaluation.best(files)
    assert str(files[best["step"]]) in said and f"{best['eval/loss/held_out']:.5f}" in said
    assert said.split(":")[0] in (folder / "out" / "run_report.html").read_text(encoding="utf-8")


def test_training_does_not_see_it_and_a_resumed_run_goes_on(runs):
    folder, trainer, plain, evaluated = runs
    final = folder / "out" / "run.safetensors"
    expected = final.read_bytes()
    make_trainer([*plain, "--output_dir", str(folder / "plain")]).train()
    assert (folder / "plain" / "run.safetensors").read_bytes() == expected
    resumed = make_trainer([*evaluated, "--resume", str(folder / "out" / "run-step00000002-state")])
    resumed.train()
    assert final.read_bytes() == expected
    assert resumed.evaluation.history == trainer.evaluation.history
    ours, whole = ([row for row in evaluations(t) if row["step"] > 2] for t in (resumed, trainer))
    assert ours == whole


def test_the_base_is_the_model_without_its_adapters(runs):
    """Norms are trained here too. Last: it takes the adapters out of the run's model."""
    _, trainer, *_ = runs
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


def test_it_is_due_and_looks_at_as_many_pictures_as_asked(tmp_path):
    catalogue = catalogue_of(folder_of(tmp_path / "all", [(64, 64)] * 9))
    catalogue = replace(catalogue, images=catalogue.images[:5], held_out=catalogue.images[5:])
    due = EvaluationOptions(evaluate_every_n_epochs=2, evaluation_pictures=3)
    evaluation = Evaluation(catalogue, due, seed=1)
    found = [evaluation.is_due_after_epoch(epoch) for epoch in (1, 2, 3, 4)]
    assert found == [False, True, False, True] and not evaluation.is_due_at_step(2)
    keys = list(evaluation.numbers)
    assert len(keys) == 6 and evaluation.trained == 3
    assert set(keys[3:]) < {image.key for image in catalogue.held_out}
    assert list(Evaluation(catalogue, due, seed=1).numbers) == keys
    everything = Evaluation(catalogue, replace(due, evaluation_pictures=99), seed=1)
    assert len(everything.numbers) == 9
    assert not Evaluation(catalogue, EvaluationOptions(), seed=1).numbers
    alone = Evaluation(replace(catalogue, held_out=()), due, seed=1)
    assert not alone.compares and "no picture is held out" in alone.plan_lines()[0]


@pytest.mark.parametrize(
    "trained, held_out, expected",
    [
        ([-3, -2], [-1, 0], 1.0),
        ([1, 2], [-1, 0], 0.0),
        ([0, 0], [0, 0, 0], 0.5),
        ([-1, 0, 2], [-1, 1], 2.5 / 6),
    ],
)
def test_the_auc_counts_pairs_and_ties_half(trained, held_out, expected):
    assert auc(torch.tensor(trained), torch.tensor(held_out)) == pytest.approx(expected)
    assert math.isnan(auc(torch.tensor([math.nan]), torch.tensor([1.0])))


def said_of(*losses, files=(10, 20, 30), base=0.5):
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.history = [Evaluated(10 * n, loss, base, 0.7) for n, loss in enumerate(losses, 1)]
    return evaluation.best({step: Path(f"step{step}") for step in files})


def test_the_last_sentence_names_the_file_and_why():
    (text,) = said_of(0.45, 0.4, 0.42)
    assert re.match(r"Keep step20: .* 0.40000, is the lowest of 3 .*alone: 0.50000; AUC 0.70", text)
    (text,) = said_of(0.45, 0.4, 0.42, files=(10, 30))
    assert text.startswith("Keep step30") and "lower after step 20 (0.40000)" in text
    (text,) = said_of(0.55, math.nan)
    assert text.startswith("No evaluated file has a lower loss") and "step10 comes nearest" in text
    assert said_of(0.4, files=()) == said_of() == []


def subject_of(folder, key, captions=True):
    """Three prompts with the subject of two pictures whose dataset has this key."""
    pictures = folder_of(folder / "pictures", [(64, 64)] * 2, captions)
    return with_subject(["one", "two", "three"], catalogue_of(pictures, subset=key), 1)


def test_the_subject_is_what_the_dataset_calls_it(tmp_path):
    named = subject_of(tmp_path / "a", "trigger_word = 'saber'")
    assert named == ["saber, one", "saber, two", "saber, three"]
    tokens = "class_tokens = 'sks girl'"
    assert subject_of(tmp_path / "b", tokens, captions=False)[0] == "sks girl, one"
    captioned = subject_of(tmp_path / "c", tokens)
    assert sorted(set(captioned)) == ["tag0, a, b, c", "tag1, a, b, c"] and len(captioned) == 3


def test_prompts_come_from_a_file_or_the_list_here(tmp_path):
    assert read_drift_prompts("builtin") == PROMPTS and len(set(PROMPTS)) == 24
    file = tmp_path / "p.txt"
    for content, message in (
        (b"# nothing\n\n", "holds no prompts"),
        ("\n".join(map(str, range(MOST_PROMPTS + 1))).encode(), "at most 64 are taken"),
        (b"\xff\xfe", "is not UTF-8"),
        (None, "no such file"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        (problem,) = EvaluationOptions(drift_prompts=str(file)).problems()
        assert message in problem.message and problem.where == f"drift_prompts = {file}"
    file.write_bytes(b"\xef\xbb\xbfa\r\n  b \r\na\n#c\n")
    assert read_drift_prompts(str(file)) == ("a", "b")
    with pytest.raises(ConfigError, match="no such file"):
        read_drift_prompts("nowhere.txt")


def test_noise_of_a_prompt_is_that_of_its_twin_with_the_subject(tmp_path):
    catalogue = catalogue_of(folder_of(tmp_path / "a", [(64, 96)] * 2))
    drift = Drift(["one", "two"], catalogue, 1)
    shape = drift.shape(16, 8)
    assert shape[1] == shape[2] and shape[1] % 2 == 0 and shape[1] <= 12
    first, second, twin = (drift.noisy(n, shape, torch.device("cpu")).latents for n in (0, 1, 2))
    assert torch.equal(first, twin) and not torch.equal(first, second)
