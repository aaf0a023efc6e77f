"""Text contexts made ahead train to the same bytes as the LLM adapter in every step."""

import pytest
import torch
from safetensors.torch import load_file

import anima_train_network
from library.anima_runtime.text_contexts import TextContexts, adapts_text
from library.utils import sha256_of_file
from tests.helpers.running import config_files, make_trainer
from tests.helpers.tiny import rel_l2, tiny_transformer

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


def test_a_run_that_encodes_several_captions_at_once_goes_on_to_the_same_bytes(demo, run_folder):
    """From the middle of its first window, with nothing on disk; text encoder and LLM adapter alike."""
    modes = {
        "mixed_precision": "no", **MEMORY, "text_cache_variants": 16, "text_encoder_batch_size": 3,
        "save_every_n_epochs": 1, "save_state": True, "validation_split": 0, "max_validation_steps": None,
        "report": "none",
    }  # fmt: skip
    shuffled = {"caption_dropout_rate": 0}
    cache = train(Counting, demo, run_folder, modes, **shuffled).texts.cache
    expected = hash_of(run_folder)
    assert max(cache.batches.fixed.values()) > 1 < max(cache.changes.fixed.values())
    state = str(run_folder / "out" / "run-000001-state")
    train(Counting, demo, run_folder, {**modes, "resume": state}, **shuffled)
    assert hash_of(run_folder) == expected


def read_by(contexts, seeds, size=(4, 6)):
    """Contexts of captions of random states, read together."""
    captions = []
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        hidden = torch.randn(size[0], contexts.model.llm_adapter.params.source_dim, generator=random)
        ids = torch.randint(0, contexts.model.llm_adapter.params.vocab, (size[1],), generator=random)
        captions.append({"qwen_hidden": hidden, "t5_ids": ids, "t5_mask": torch.ones_like(ids)})
    return [made["context"] for made in contexts.make(captions)]


def test_captions_read_together_are_those_read_alone_and_have_no_place():
    contexts = TextContexts(tiny_transformer(), lambda text: (4, 6))
    alone, first, last = read_by(contexts, [1]), read_by(contexts, [1, 2, 3]), read_by(contexts, [4, 5, 1])
    assert rel_l2(first[0], alone[0]) < 1e-5 and not torch.equal(first[0], first[1])
    assert torch.equal(first[0], last[2]) or not contexts.is_even("any", 3)
    block = contexts.model.llm_adapter.blocks[0]
    block.register_forward_hook(lambda block, inputs, output: output + torch.arange(3.0).view(3, 1, 1))
    assert not contexts.is_even("any", 3)


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
