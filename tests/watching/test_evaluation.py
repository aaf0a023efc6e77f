"""Trained against held-out pictures, and how far the model has moved: what is said of it, and that it is so."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from library.errors import ConfigError
from library.settings.drift_prompts import MOST_PROMPTS, PROMPTS, read_drift_prompts
from library.settings.flags.evaluation import EvaluationOptions
from library.watching.drift import Drift, with_subject
from library.watching.evaluation import Evaluated, Evaluation, auc
from tests.helpers.dataset_files import catalogue_of, folder_of


def test_it_is_due_and_looks_at_as_many_pictures_as_asked(tmp_path):
    split = "validation_split = 0.4"
    catalogue = catalogue_of(folder_of(tmp_path / "all", [(64, 64)] * 9), dataset=split)
    catalogue = replace(catalogue, images=catalogue.images + catalogue.held_out)
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
    assert not alone.compares and "no picture was held out" in alone.warnings()[0]
    assert not evaluation.warnings() and evaluation.plan_lines() and not alone.plan_lines()


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
