"""Base models are hashed beside the run: training does not wait for it, the first file does."""

import threading

import pytest
from safetensors import safe_open

import anima_train_network
from library.errors import DatasetError
from library.saving.metadata import FileHashes
from library.utils import sha256_of_file
from tests.helpers.running import config_files, make_trainer, model_paths


class Unhurried(anima_train_network.AnimaNetworkTrainer):
    """Its base models are hashed once `released`; `waited` is what it did until then."""

    def prepare_data(self):
        super().prepare_data()
        self.released, self.waited = threading.Event(), []
        self.hashes = FileHashes(self.hashed_files(), self.hash_late)

    def hash_late(self, path):
        assert self.released.wait(60)
        return sha256_of_file(path)

    def after_step(self):
        self.waited.append(f"step {self.state.step}")
        super().after_step()

    def late_metadata(self):
        assert not self.released.is_set()
        self.waited.append("file")
        threading.Timer(0.1, self.released.set).start()
        return super().late_metadata()


def trainer_of(kind, demo, folder, **settings):
    made = make_trainer(config_files(demo, folder, {"max_train_steps": 3, **settings}))
    return kind(made.cfg, made.datasets, made.anima)


def test_training_steps_while_base_models_are_read_and_the_first_file_waits(demo, run_folder):
    trainer = trainer_of(Unhurried, demo, run_folder, save_every_n_steps=2)
    trainer.train()
    assert trainer.waited == ["step 1", "step 2", "file", "step 3"]
    for name in ("run-step00000002", "run"):
        with safe_open(run_folder / "out" / f"{name}.safetensors", "pt") as opened:
            found = opened.metadata()
        wanted = sha256_of_file(model_paths(demo)["anima_transformer"])
        assert found["ss_new_sd_model_hash"] == wanted


def test_a_run_that_ends_by_an_error_before_its_first_update_waits_for_nothing(demo, run_folder):
    class Failing(Unhurried):
        def process_batch(self, *arguments):
            raise DatasetError("the picture is gone.", source="a.png")

    trainer = trainer_of(Failing, demo, run_folder)
    with pytest.raises(DatasetError, match="There is no state to go on from: none was written."):
        trainer.train()
    assert not trainer.waited and not trainer.released.is_set()
    trainer.released.set()
    assert not list((run_folder / "out").glob("*.safetensors"))


def test_a_base_model_that_cannot_be_read_any_more_costs_no_weights(demo, run_folder, caplog):
    class Unreadable(Unhurried):
        def hash_late(self, path):
            raise OSError(5, "Input/output error")

    trainer_of(Unreadable, demo, run_folder).train()
    assert "saved without the hash of a base model: " in caplog.text
    assert (run_folder / "out" / "run.safetensors").is_file()
