"""--weighted_captions: words of captions weigh in training as they weigh in ComfyUI's prompts."""

from dataclasses import replace

import pytest
import torch

from library.anima_runtime.tokenizer_assets import load_qwen_tokenizer, load_t5_tokenizer
from library.data.datasets import collate
from library.errors import DatasetError
from library.strategy_anima import (
    AnimaContext,
    AnimaTextEncodingStrategy,
    AnimaTokenizeStrategy,
    AnimaTokens,
    predict_velocity,
)
from library.training.flow_matching import NoisyLatents
from tests.helpers.running import config_files, make_trainer
from tests.helpers.tiny import assert_matches_golden, golden_vectors, tiny_qwen, tiny_transformer


@pytest.fixture(scope="module")
def tokenizers(demo):
    models = demo / "models"
    return load_qwen_tokenizer(models / "qwen_tokenizer"), load_t5_tokenizer(models / "t5_tokenizer")


def golden_tokens(prompt, weights=None):
    vectors = golden_vectors()
    ids = [tuple(vectors[f"in.{name}_ids.{prompt}"][0].tolist()) for name in ("qwen", "t5")]
    return AnimaTokens(*ids, weights)


def test_weighted_rows_are_comfyuis_beside_a_caption_without_weights(tokenizers):
    """In one padded batch, and in the model's own call."""
    vectors, dit = golden_vectors(), tiny_transformer()
    weights = tuple(vectors["in.t5_weights.a"].tolist())
    strategy = AnimaTokenizeStrategy(*tokenizers, weighs_words=True)
    encoding = AnimaTextEncodingStrategy(strategy, tiny_qwen())
    outputs = [encoding.encode_tokens(each) for each in (golden_tokens("a", weights), golden_tokens("b"))]
    outputs[0]["qwen_hidden"] = vectors["in.qwen_hidden.a"][0]
    batch = encoding.collate(outputs)
    context = dit.preprocess_text_embeds(
        batch.qwen_hidden, batch.t5_ids, qwen_mask=batch.qwen_mask, t5_mask=batch.t5_mask,
        t5_weights=batch.t5_weights,
    )  # fmt: skip
    assert_matches_golden(context[:1, : len(weights)], vectors["out.ctx_weighted.a"])
    assert context[0, len(weights) :].eq(0).all()
    latents = vectors["in.x.sq"][:1, :, 0].expand(2, -1, -1, -1)
    noisy = NoisyLatents(latents, latents, torch.full((2,), 0.5))
    with torch.no_grad():
        found = predict_velocity(dit, noisy, batch)
        assert torch.equal(found, predict_velocity(dit, noisy, AnimaContext(context)))
        assert not torch.equal(found, predict_velocity(dit, noisy, replace(batch, t5_weights=None)))


def test_a_caption_that_is_cut_keeps_the_weights_of_what_is_left(tokenizers):
    whole = AnimaTokenizeStrategy(*tokenizers, weighs_words=True)
    short = AnimaTokenizeStrategy(*tokenizers, weighs_words=True, t5_max_length=3)
    caption = "(blue hair, smile:1.5), sky"
    tokens, cut = whole.tokenize(caption), short.tokenize(caption)
    assert tokens == whole.tokenize_prompt(caption) and set(tokens.t5_weights) == {1.5, 1.0}
    assert cut.t5_ids == (*tokens.t5_ids[:2], tokens.t5_ids[-1])
    assert cut.t5_weights == (*tokens.t5_weights[:2], 1.0)
    assert whole.tokenize(r"aoi \(demo\)") == AnimaTokenizeStrategy(*tokenizers).tokenize("aoi (demo)")


def losses_of_first_batch(demo, folder, settings):
    trainer = make_trainer(config_files(demo, folder, settings))
    trainer.prepare()
    trainer.finish_texts()
    trainer.sampler.set_epoch(0)
    batch = collate([trainer.dataset[request] for request in next(iter(trainer.sampler))])
    with torch.no_grad():
        return trainer.process_batch(trainer.ahead.make(batch)).per_sample


def test_a_run_weighs_the_words_of_its_captions(demo, run_folder):
    for file in (run_folder / "pictures").glob("*.txt"):
        file.write_text(f"({file.read_text(encoding='utf-8').strip()}:1.6)", encoding="utf-8")
    weighted = {"weighted_captions": True}
    apart = {"network_args": ["train_llm_adapter=false"]}  # contexts are made ahead
    stored, now, ahead, off = (
        losses_of_first_batch(demo, run_folder, settings)
        for settings in (
            {**weighted, "cache_text_encoder_outputs_to_disk": True},
            {**weighted, "cache_text_encoder_outputs": False},
            {**weighted, **apart},
            {"cache_text_encoder_outputs_to_disk": True},
        )
    )
    assert torch.equal(stored, now)
    torch.testing.assert_close(ahead, now, rtol=1e-4, atol=0)
    assert (now - off).abs().max() > 1e-4


def test_weights_that_cannot_be_are_told_all_at_once(demo, run_folder):
    first, second = sorted((run_folder / "pictures").glob("*.txt"))[:2]
    first.write_text("sky, (sea:inf)", encoding="utf-8")
    sentences = second.with_name(f"{second.stem}_nl.txt")
    sentences.write_text("(" * 101 + "sea" + ")" * 101, encoding="utf-8")
    shares = {"tags": 1, "sentences": 1}
    argv = config_files(demo, run_folder, {"weighted_captions": True}, caption_shares=shares)
    trainer = make_trainer(argv)
    with pytest.raises(DatasetError) as error:
        trainer.prepare()
    text = str(error.value)
    assert first.stem in text and "the weight of 'sea' is not finite" in text
    assert second.stem in text and "more than 100 parentheses" in text
    assert text.count("or leave out weighted_captions") == 2
    make_trainer(config_files(demo, run_folder, {})).prepare()  # as letters they are words like others
