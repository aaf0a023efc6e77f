"""What must agree between a state and the run that goes on from it, and how differences are told."""

import json
import logging
from dataclasses import replace

import pytest

from library.data.data_types import RunPosition
from library.data.dataset_config import SubsetConfig
from library.errors import ResumeError
from library.saving.snapshot import DEFAULTS, Snapshot, changed, compare, differences_of
from library.saving.state_contents import moved
from library.saving.state_folder import SavedState
from library.saving.state_manifest import MANIFEST, SEAL, SNAPSHOT, seal_of
from library.settings.flags.resume import ResumeOptions
from library.train_util import StepPlan
from library.utils import sha256_of_file
from tests.helpers.running import config_files, make_trainer, train

SCHEMA = "family_resume_snapshot/v2"
SAVED = Snapshot(
    critical={"seed": 1, "num_processes": 2, "optimizer_type": "A", "dataset.0.flip_aug": True},
    soft={"torch": "1.0"},
    changeable={"learning_rate": 0.1},
)


def differences(*, strict=False, saved=SAVED, options=None, **changes):
    """field -> message of what keeps a run with some fields changed from going on."""
    kinds = {}
    for kind in ("critical", "soft", "changeable"):
        values = dict(getattr(SAVED, kind))
        kinds[kind] = {name: changes.get(name, value) for name, value in values.items()}
        kinds[kind] = {name: value for name, value in kinds[kind].items() if value is not None}
    own = Snapshot(**kinds).document(SCHEMA)
    options = ResumeOptions(resume="x", **(options or {}))
    problems = compare(saved.document(SCHEMA), own, options, strict=strict)
    return {problem.where: problem.message for problem in problems}


def test_equal_settings_are_no_problem_whenever_they_were_made():
    assert differences() == differences(strict=True) == {}


def test_critical_differences_come_together_with_both_values():
    assert differences(seed=2, optimizer_type="B") == {
        "seed": "1 in the state, 2 now.",
        "optimizer_type": "A in the state, B now.",
    }


def test_soft_and_changeable_differences_are_told_and_strict_makes_them_errors(caplog):
    caplog.set_level(logging.INFO)
    changes = {"torch": "2.0", "learning_rate": 0.2}
    assert differences(**changes) == {}
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "torch: 1.0 in the state, 2.0 now; taken as it is now.",
        "learning_rate: 0.1 in the state, 0.2 now; applied from here on.",
    ]
    assert set(differences(strict=True, **changes)) == {"torch", "learning_rate"}


@pytest.mark.parametrize("given", [("seed,dataset",), ("seed", "dataset.0.flip_aug")])
def test_what_is_allowed_by_name_is_told_and_taken(given, caplog):
    changes = {"seed": 2, "dataset.0.flip_aug": None}
    assert differences(**changes)["dataset.0.flip_aug"] == "true in the state, the default now."
    assert differences(options={"resume_allow": given}, **changes) == {}
    assert "seed: 1 in the state, 2 now; allowed." in caplog.text


def test_an_unknown_name_to_allow_is_told_with_the_nearest():
    found = differences(options={"resume_allow": ("sede",)})
    assert found == {"resume_allow sede": "no such field. Did you mean seed?"}


def test_another_optimizer_is_allowed_by_its_own_flag():
    options = {"resume_ignore_optimizer_mismatch": True}
    assert differences(optimizer_type="B", options=options) == {}
    assert set(differences(optimizer_type="B", seed=2, options=options)) == {"seed"}


def test_a_field_that_older_versions_did_not_write_is_no_difference():
    older = Snapshot({"seed": 1, "num_processes": 2, "optimizer_type": "A"}, {}, {})
    assert set(differences(saved=older)) == {"dataset.0.flip_aug"}


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("fp8_base", True, "false in the state, true now"),
        ("int8_base", True, "false in the state, true now"),
        ("nf4_base", True, "false in the state, true now"),
        ("loss_type", "huber", "l2 in the state, huber now"),
    ],
)
def test_an_option_that_a_state_does_not_name_was_at_its_default(name, value, told):
    def own(value):
        return Snapshot({"seed": 1, name: value}).document(SCHEMA)

    older = Snapshot({"seed": 1}).document(SCHEMA)
    assert differences_of(older, own(value), "critical") == {name: told}
    assert differences_of(older, own(DEFAULTS[name]), "critical") == {}


def test_what_is_made_of_caption_lines_has_to_agree_where_it_is_set():
    def document(subset):
        fields = {f"dataset.0.subset.0.{k}": v for k, v in changed(subset).items()}
        return Snapshot(critical=fields).document(SCHEMA)

    before = document(SubsetConfig())
    assert before["critical"] == {}  # as in states written before there was a choice
    assert differences_of(before, before, "critical") == {}
    now = document(SubsetConfig(caption_lines="each"))
    assert list(differences_of(before, now, "critical")) == ["dataset.0.subset.0.caption_lines"]
    shared = document(SubsetConfig(caption_shares=(1.0, 2.0, 0.0, 0.0), sentence_suffix="_said"))
    read = json.loads(json.dumps(shared))
    assert differences_of(read, shared, "critical") == {}
    names = ["dataset.0.subset.0.caption_shares", "dataset.0.subset.0.sentence_suffix"]
    assert sorted(differences_of(before, shared, "critical")) == names


def test_another_number_of_processes_says_what_it_changes(tmp_path, caplog):
    assert set(differences(num_processes=1)) == {"num_processes"}
    assert differences(num_processes=1, options={"resume_allow": ("num_processes",)}) == {}
    assert "2 processes before, 1 now: a step is 0.5 times as many pictures" in caplog.text
    position = RunPosition(step=9, epoch=2, batch_in_epoch=7)
    state = SavedState(tmp_path, position, {"num_processes": 2}, {})
    plan = StepPlan(14, 14, 42, 3, 14)
    for processes, batches in ((1, 14), (2, 7), (3, 4), (4, 3)):
        assert moved(state, processes, plan) == replace(position, batch_in_epoch=batches)
    assert "counts as done" not in caplog.text
    assert moved(state, 1, replace(plan, batches_per_epoch=12)).batch_in_epoch == 12
    assert "stands at batch 14 of its epoch, and an epoch has 12 now" in caplog.text


STATE = {"save_state": True, "save_every_n_steps": 2}


@pytest.fixture
def state(demo, run_folder):
    """A state of step 2 of 4."""
    train(demo, run_folder, STATE)
    return run_folder / "out" / "run-step00000002-state"


def test_a_run_of_other_settings_is_refused_before_anything_is_loaded(demo, run_folder, state):
    settings = {
        "resume": str(state), "seed": 8, "network_dim": 8, "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine", "train_norm": False, "timestep_sampling": "uniform",
        "optimizer_type": "SGDNesterov", "mixed_precision": "bf16", "t5_max_token_length": 8,
    }  # fmt: skip
    argv = config_files(demo, run_folder, settings, batch_size=3, flip_aug=True)
    trainer = make_trainer(argv)
    with pytest.raises(ResumeError) as refused:
        trainer.train()
    assert not hasattr(trainer, "dataset") and not hasattr(trainer, "base")
    assert {problem.where for problem in refused.value.problems} == {
        "network_dim", "network_args.train_norm", "targets", "optimizer_type", "lr_scheduler",
        "gradient_accumulation_steps", "seed", "mixed_precision", "timestep_sampling",
        "dataset.fingerprint", "dataset.0.batch_size", "dataset.0.subset.0.flip_aug",
        "t5_max_token_length",
    }  # fmt: skip
    assert "network_dim" in str(refused.value) and "4 in the state, 8 now." in str(refused.value)
    assert "--resume_allow network_dim," in str(refused.value)


def test_where_files_come_from_is_no_difference(demo, run_folder, state, caplog, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    run_folder.joinpath("pictures").rename(elsewhere / "pictures")
    moved_state = elsewhere / "some-state"
    state.rename(moved_state)
    settings = {**STATE, "resume": str(moved_state), "output_name": "other"}
    caplog.set_level(logging.INFO)
    argv = config_files(demo, elsewhere, settings)
    trainer = make_trainer(argv)
    trainer.train()
    assert "output_name: run in the state, other now" in caplog.text
    assert trainer.state.step == 4
    argv.append("--anima_resume_snapshot_strict")
    with pytest.raises(ResumeError, match="output_name"):
        make_trainer(argv).train()


def test_another_base_model_is_refused(demo, run_folder, state, tmp_path):
    other = tmp_path / "other.safetensors"
    content = bytearray((demo / "models" / "anima_dit.safetensors").read_bytes())
    content[-8] ^= 1
    other.write_bytes(content)
    settings = {"resume": str(state), "anima_transformer": str(other)}
    settings["t5_tokenizer_dir"] = str(demo / "models" / "t5_tokenizer")
    with pytest.raises(ResumeError, match="base.sd_model"):
        make_trainer(config_files(demo, run_folder, settings)).train()


def without(state, name):
    """A state that says nothing of what the snapshot calls so: of a version that had no such thing."""
    snapshot, manifest = (json.loads((state / f).read_text()) for f in (SNAPSHOT, MANIFEST))
    assert snapshot["soft"].pop(name)
    (state / SNAPSHOT).write_text(json.dumps(snapshot))
    size, digest = (state / SNAPSHOT).stat().st_size, sha256_of_file(state / SNAPSHOT)
    manifest["files"][SNAPSHOT] = {"bytes": size, "sha256": digest}
    manifest[SEAL] = seal_of(manifest)
    (state / MANIFEST).write_text(json.dumps(manifest))
    return state


def test_a_longer_run_and_a_new_rate_are_applied(demo, run_folder, state):
    """To a state from before zeros of texts were counted, which therefore stay rows."""
    was_counted = json.loads((state / SNAPSHOT).read_text())["soft"]["text_padding"] == "fold"
    state = without(state, "text_padding")
    settings = {"resume": str(state), "max_train_steps": 6, "learning_rate": 5e-4}
    trainer = train(demo, run_folder, settings)
    assert was_counted and trainer.padding == "rows" and not trainer.base.folds_text
    assert trainer.state.step == 6
    assert [group["lr"] for group in trainer.optimization.optimizer.param_groups] == [5e-4]
    rows = (trainer.trackers.run_dir / "loss.jsonl").read_text().splitlines()
    assert {json.loads(row)["lr/unet"] for row in rows} == {5e-4}


def test_another_optimizer_starts_afresh_when_told_to(demo, run_folder, state, caplog):
    settings = {"resume": str(state), "optimizer_type": "SGDNesterov"}
    with pytest.raises(ResumeError, match="--resume_ignore_optimizer_mismatch"):
        train(demo, run_folder, settings)
    trainer = train(demo, run_folder, {**settings, "resume_ignore_optimizer_mismatch": True})
    assert "starts afresh" in caplog.text and trainer.state.step == 4


def test_a_state_is_named_in_the_check_of_a_run(demo, run_folder, state):
    from tools.doctor import report

    settings = {"resume": str(state), "seed": 8}
    text, code = report(config_files(demo, run_folder, settings))
    assert code == 2 and "7 in the state, 8 now." in text
    text, code = report(config_files(demo, run_folder, {"resume": str(state)}))
    assert code == 0
