"""What goes wrong with disks and files: a clear error, what was there intact, no half file."""

import errno
import os
import shutil
import sys

import pytest
from safetensors.torch import load_file

from library.errors import DatasetError, ModelFileError, OutputError
from library.saving.checkpoints import write_or_rescue
from library.saving.metadata import FileHashes, legacy_hash
from library.system.system_errors import output_errors
from library.utils import atomic_write, give_usual_permissions, sha256_of_file
from tests.helpers.processes import TRAINER, run_code
from tests.helpers.running import config_files, make_trainer, train

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files by rlimit")
LIMITED = """
import resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_limited(limit, argv, **more):
    """The trainer where no file may grow beyond `limit` bytes, as on a disk that is full."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more}
    return run_code(LIMITED, limit, TRAINER, *argv, env=environment)


def told(done):
    """The error without the progress before it."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stderr[done.stderr.rindex("OutputError") :]


def files_of(folder, pattern="*"):
    return {
        p: p.read_bytes() for p in folder.rglob(pattern) if p.is_file() and "logs" not in p.parts
    }


@linux
def test_a_disk_that_is_full_at_a_checkpoint_leaves_earlier_files_and_says_so(demo, run_folder):
    train(demo, run_folder, {"max_train_steps": 2})
    before = files_of(run_folder / "out", "*.safetensors")
    settings = {"save_every_n_steps": 2, "network_dim": 16}  # larger than what was there
    argv = config_files(demo, run_folder, settings)
    message = told(run_limited(200_000, argv, TMPDIR=str(run_folder)))
    assert "step00000002" in message and "cannot be written" in message and "Make room" in message
    assert files_of(run_folder / "out", "*.safetensors") == before
    assert '"status":"failed"' in (run_folder / "out" / "run_report.html").read_text(encoding="utf-8")
    assert not list(run_folder.glob("training-rescued*"))


@linux
def test_a_disk_that_is_full_while_caching_keeps_what_was_cached(demo, run_folder):
    settings = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
    argv = config_files(demo, run_folder, settings)
    message = told(run_limited(10_000, argv))
    assert "_cache" in message and "Make room" in message
    cache = run_folder / "pictures" / "_cache"
    assert not list(cache.glob("*.tmp")) and not list(cache.glob(".*.tmp"))
    kept = files_of(cache, "*.safetensors")
    make_trainer(argv).train()
    assert (run_folder / "out" / "run.safetensors").is_file()
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_weights_are_rescued_when_their_folder_cannot_hold_them(
    demo, run_folder, tmp_path, monkeypatch
):
    trainer = make_trainer(config_files(demo, run_folder, {"max_train_steps": 1}))
    after_step = trainer.after_step

    def and_replace():
        after_step()
        shutil.rmtree(run_folder / "out")
        (run_folder / "out").touch()

    trainer.after_step = and_replace
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OutputError, match="cannot be written") as caught:
        trainer.train()
    (rescued,) = tmp_path.glob("training-rescued-*/*.safetensors")
    assert str(rescued) in str(caught.value) and load_file(rescued)


def test_what_cannot_be_replaced_is_saved_beside_it(demo, run_folder, caplog):
    trainer = make_trainer(config_files(demo, run_folder, {"max_train_steps": 1}))
    out = run_folder / "out"
    for name in ("run.safetensors", "run-2.safetensors"):
        (out / name / "in the way").mkdir(parents=True)
    trainer.train()
    assert load_file(out / "run-3.safetensors")
    assert "run.safetensors: cannot be written (" in caplog.text
    assert f"Saved as {out / 'run-3.safetensors'} instead." in caplog.text
    assert f"done: 1 steps, {out / 'run-3.safetensors'}" in caplog.text
    assert not list(out.glob(".*"))


def test_without_any_refuge_the_first_error_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    (tmp_path / "out").touch()

    def write(path):
        raise AssertionError("there is no folder for it")

    with pytest.raises(OutputError, match="out.*cannot be written"):
        write_or_rescue(write, tmp_path / "out" / "run.safetensors")


def test_a_base_model_that_vanishes_is_named(tmp_path):
    file = tmp_path / "vae.safetensors"
    file.write_bytes(b"weights")

    def vanishes(path):
        os.unlink(path)
        return sha256_of_file(path)

    hashes = FileHashes({"vae": str(file)}, vanishes)
    for ask in (lambda: hashes.get("vae"), lambda: legacy_hash(file)):
        with pytest.raises(ModelFileError, match="vae.safetensors: cannot be read any more"):
            ask()


@linux
def test_a_disk_that_keeps_no_permissions_is_no_error():
    with pytest.raises(PermissionError):
        os.chmod("/proc/self/status", 0o644)
    give_usual_permissions("/proc/self/status")


def test_weights_with_a_name_that_no_file_can_have_are_rescued(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write(path):
        with output_errors(path), atomic_write(path) as temporary:
            temporary.write_bytes(b"weights")

    with pytest.raises(OutputError, match="The weights are in"):
        write_or_rescue(write, tmp_path / f"{'n' * 300}.safetensors")
    (rescued,) = tmp_path.glob("training-rescued-*/*")
    assert rescued.read_bytes() == b"weights"


def test_an_output_folder_that_disappears_is_made_again(demo, run_folder, caplog):
    settings = {"max_train_steps": 3, "log_every_n_steps": 3}
    trainer = make_trainer(config_files(demo, run_folder, settings))
    after_step = trainer.after_step

    def and_remove():
        after_step()
        shutil.rmtree(run_folder / "out", ignore_errors=True)

    trainer.after_step = and_remove
    trainer.train()
    assert load_file(run_folder / "out" / "run.safetensors")
    assert "nothing is logged from here on" in caplog.text


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_may_not_be_written_is_told_before_training(demo, run_folder):
    (run_folder / "out").mkdir()
    (run_folder / "out").chmod(0o500)
    with pytest.raises(OutputError, match="Make it writable"):
        train(demo, run_folder)


def test_a_read_only_file_in_the_way_is_replaced_like_any_other(demo, run_folder):
    out = run_folder / "out"
    out.mkdir()
    (out / "run.safetensors").write_bytes(b"old")
    (out / "run.safetensors").chmod(0o400)
    train(demo, run_folder, {"max_train_steps": 1})
    assert load_file(out / "run.safetensors")


@pytest.mark.parametrize("number, advice", [("ENOSPC", "Make room"), ("EACCES", "Make it writable"),
                                            ("ENOTDIR", "what is in the way")])  # fmt: skip
def test_each_cause_has_its_advice(tmp_path, number, advice):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with (
        pytest.raises(OutputError, match=advice) as caught,
        output_errors(path),
        atomic_write(path) as temporary,
    ):
        temporary.write_bytes(b"half")
        raise OSError(getattr(errno, number), "as the system says it")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_deleted_during_training_is_named(demo, run_folder, workers):
    settings = {"cache_latents": False, "max_data_loader_n_workers": workers}
    settings |= {"max_train_steps": 50}
    trainer = make_trainer(config_files(demo, run_folder, settings))
    after_step = trainer.after_step

    def and_delete():
        after_step()
        for picture in (run_folder / "pictures").glob("0*"):
            if picture.suffix in (".png", ".jpg"):
                picture.unlink(missing_ok=True)

    trainer.after_step = and_delete
    with pytest.raises(DatasetError) as caught:
        trainer.train()
    (problem,) = caught.value.problems
    assert "cannot be read" in problem.message and "Traceback" not in problem.message
