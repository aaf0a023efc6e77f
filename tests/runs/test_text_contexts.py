"""Text contexts made ahead train to the same bytes as the LLM adapter in every step."""

import pytest
import torch
from safetensors.torch import load_file

import anima_train_network
from library.anima_runtime.text_contexts import adapts_text
from library.utils import sha256_of_file
from tests.helpers.running import config_files, make_trainer

WITHOUT_TEXT = {
    "network_args": ["train_llm_adapter=false"], "no_metadata": True, "max_train_steps": None,
    "max_train_epochs": 2, "validation_split": 0.2, "max_validation_steps": 1,
    "log_with": "none", "metadata_title": "same",
}  # fmt: skip
CAPTIONS = {"batch_size": 1, "shuffle_caption": True, "caption_dropout_rate": 0.3}
MEMORY = {"cache_latents": True, "cache_text_encoder_outputs": True}
DISK = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}


class Counting(anima_train_network.AnimaNetworkTrainer):
    """Counts how often the LLM adapter runs."""

    def load_models(self):
        super().load_models()
        self.runs = 0
        self.base.llm_adapter.register_forward_hook(self.count)

    def count(self, *arguments):
        self.runs += 1


class EveryStep(Counting):
    def finish_texts(self):
        pass


def train(kind, demo, folder, settings, **dataset):
    argv = config_files(demo, folder, {**WITHOUT_TEXT, **settings}, **{**CAPTIONS, **dataset})
    made = make_trainer(argv)
    trainer = kind(made.cfg, made.datasets, made.anima)
    trainer.train()
    return trainer


def hash_of(folder, name="run"):
    return sha256_of_file(folder / "out" / f"{name}.safetensors")


@pytest.mark.parametrize("modes", [
    {"mixed_precision": "no", **MEMORY, "text_cache_variants": 12},
    {"mixed_precision": "bf16", **DISK, "text_cache_variants": 12},
], ids=["float32 in memory", "bf16 on disk"])  # fmt: skip
def test_the_file_is_the_same_and_the_llm_adapter_runs_once_a_caption(modes, demo, run_folder):
    usual = train(EveryStep, demo, run_folder, {**modes, "output_name": "usual"})
    ahead = train(Counting, demo, run_folder, modes)
    assert hash_of(run_folder) == hash_of(run_folder, "usual")
    texts = [text for epoch in (0, 1) for text in ahead.run_texts().of_epoch(epoch, own=True)]
    assert len(set(texts)) <= ahead.runs <= len(texts) < usual.runs
    files = list((run_folder / "pictures" / "_cache").glob("text_*.safetensors"))
    assert bool(files) == ("cache_text_encoder_outputs_to_disk" in modes)
    assert all("qwen_hidden" in load_file(file) for file in files), "as the encoder gave it"


def test_in_batches_a_caption_is_read_alone_with_a_cache_and_without(demo, run_folder):
    """The same bytes; the LLM adapter over a padded batch differs from that by rounding."""
    modes = {"mixed_precision": "no", "max_train_epochs": 1, "text_cache_variants": 12}
    batches = {"batch_size": 2}
    ahead = train(Counting, demo, run_folder, modes, **batches)
    now = {**modes, "output_name": "now", "cache_text_encoder_outputs": False}
    train(Counting, demo, run_folder, {**now, "text_cache_variants": None}, **batches)
    assert hash_of(run_folder) == hash_of(run_folder, "now")
    texts = [text for text in ahead.run_texts().of_epoch(0, own=True)]
    assert len(set(texts)) <= ahead.runs <= len(texts)
    padded = train(EveryStep, demo, run_folder, {**modes, "output_name": "padded"}, **batches)
    assert padded.runs > 0
    ours, theirs = (
        load_file(run_folder / "out" / f"{name}.safetensors") for name in ("run", "padded")
    )
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


def test_what_trains_keeps_the_llm_adapter_in_the_step():
    assert not adapts_text(["blocks.0.mlp.layer1"])
    assert adapts_text(["blocks.0.mlp.layer1", "llm_adapter.blocks.0.mlp.0"])


def test_a_caption_that_was_not_foreseen_is_conditioned_on_its_context(demo, run_folder):
    trainer = make_trainer(config_files(demo, run_folder, WITHOUT_TEXT, batch_size=1))
    trainer.prepare()
    trainer.finish_texts()
    late = trainer.texts.get("nobody wrote this")
    assert list(late) == ["context"] and late["context"].ndim == 2
    trainer.progress.close()
