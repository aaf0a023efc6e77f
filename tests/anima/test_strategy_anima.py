"""What captions become on their way to the DiT: ids, hidden states, padded batches, contexts."""

import json
import math
from dataclasses import replace

import pytest
import torch

from library.anima_runtime.text_contexts import prompt_context
from library.anima_runtime.tokenizer_assets import load_qwen_tokenizer, load_t5_tokenizer
from library.errors import ConfigError
from library.strategy_anima import (
    AnimaLatentsCachingStrategy,
    AnimaTextEncoderOutputsCachingStrategy,
    AnimaTextEncodingStrategy,
    AnimaTokenizeStrategy,
    AnimaTokens,
)
from tests.helpers.paths import SHARED
from tests.helpers.real_tokenizers import needs_real
from tests.helpers.tiny import (
    assert_matches_golden,
    golden,
    golden_vectors,
    rel_l2,
    tiny_qwen,
    tiny_transformer,
    tiny_vae,
)


@pytest.fixture(scope="module")
def tokenizers(demo):
    models = demo / "models"
    return (
        load_qwen_tokenizer(models / "qwen_tokenizer"),
        load_t5_tokenizer(models / "t5_tokenizer"),
    )


@pytest.fixture(scope="module")
def tokenize(tokenizers):
    return AnimaTokenizeStrategy(*tokenizers)


@pytest.fixture(scope="module")
def encoding(tokenize):
    return AnimaTextEncodingStrategy(tokenize, tiny_qwen())


def golden_tokens(prompt: str) -> AnimaTokens:
    vectors = golden_vectors()
    ids = [vectors[f"in.{name}_ids.{prompt}"][0].tolist() for name in ("qwen", "t5")]
    return AnimaTokens(tuple(ids[0]), tuple(ids[1]))


def context_of(dit, conditioning):
    return dit.preprocess_text_embeds(
        conditioning.qwen_hidden,
        conditioning.t5_ids,
        qwen_mask=conditioning.qwen_mask,
        t5_mask=conditioning.t5_mask,
    )


@needs_real
def test_real_captions_become_the_ids_that_comfyui_gives():
    folder = SHARED / "tokenizers"
    tokenize = AnimaTokenizeStrategy(
        load_qwen_tokenizer(folder / "qwen3"), load_t5_tokenizer(folder / "t5")
    )
    for case in json.loads(golden("tokenizer_cases.json").read_text("utf-8"))["cases"]:
        tokens = tokenize.tokenize(case["text"])
        assert list(tokens.qwen_ids) == case["qwen_ids"], case["text"]
        assert list(tokens.t5_ids) == case["t5_ids"], case["text"]
    assert tokenize.tokenize("").qwen_ids == (151643,)


@needs_real
def test_prompts_to_draw_become_the_ids_and_weights_that_comfyui_gives():
    folder = SHARED / "tokenizers"
    tokenize = AnimaTokenizeStrategy(
        load_qwen_tokenizer(folder / "qwen3"), load_t5_tokenizer(folder / "t5")
    )
    for case in json.loads(golden("prompt_cases.json").read_text("utf-8"))["cases"]:
        expected = [float(weight) for weight in case["t5_weights"]]
        if not all(map(math.isfinite, expected)):
            with pytest.raises(ConfigError, match="not finite"):
                tokenize.tokenize_prompt(case["text"])
            continue
        tokens = tokenize.tokenize_prompt(case["text"])
        assert list(tokens.qwen_ids) == case["qwen_ids"], case["text"]
        assert list(tokens.t5_ids) == case["t5_ids"], case["text"]
        weights = tokens.t5_weights or (1.0,) * len(tokens.t5_ids)
        assert weights == pytest.approx(expected), case["text"]
        assert (tokens.t5_weights is None) is (set(expected) == {1.0})


def test_a_prompt_without_weights_is_read_as_a_caption_is(tokenize):
    for text in ("", "1girl, blue hair", r"aoi \(demo\), smile"):
        assert tokenize.tokenize_prompt(text) == tokenize.tokenize(text)
    assert AnimaTokenizeStrategy(
        tokenize.qwen_tokenizer, tokenize.t5_tokenizer, qwen_max_length=1, t5_max_length=1
    ).tokenize_prompt("1girl, smile") == tokenize.tokenize("1girl, smile")


def test_a_prompts_context_is_its_captions_with_weighed_rows(tokenize):
    zeros = AnimaTextEncodingStrategy(tokenize, tiny_qwen(), empty_caption="zeros")
    dit, tokens = tiny_transformer(), golden_tokens("a")
    plain = context_of(dit, zeros.collate([zeros.encode_tokens(tokens)]))
    assert torch.equal(prompt_context(dit, zeros.encode_prompt(tokens)), plain)
    weights = torch.linspace(-1, 2, len(tokens.t5_ids))
    weighed = replace(tokens, t5_weights=tuple(weights.tolist()))
    found = prompt_context(dit, zeros.encode_prompt(weighed))
    assert torch.equal(found[0, : len(weights)], plain[0, : len(weights)] * weights[:, None])


def test_an_empty_prompt_is_encoded_where_empty_captions_are_zeros(tokenize):
    zeros = AnimaTextEncodingStrategy(tokenize, tiny_qwen(), empty_caption="zeros")
    zeros.zero_tokens = AnimaTokens((7,), (1,))  # of "", by a tokenizer that fits the tiny encoder
    assert not zeros.encode_tokens(zeros.zero_tokens)["qwen_hidden"].any()
    assert zeros.encode_prompt(zeros.zero_tokens)["qwen_hidden"].all()


def test_escaped_parentheses_are_parentheses(tokenize):
    assert tokenize.tokenize(r"aoi \(demo\), 1girl") == tokenize.tokenize("aoi (demo), 1girl")
    assert tokenize.tokenize(r"a\b") != tokenize.tokenize("ab")


def test_an_empty_caption_is_one_token_on_each_side(tokenize, tokenizers):
    assert tokenize.tokenize("") == AnimaTokens((tokenizers[0].pad_token_id,), (1,))


def test_a_caption_over_a_limit_is_cut_counted_once_and_keeps_its_end_token(tokenizers, caplog):
    limited = AnimaTokenizeStrategy(*tokenizers, qwen_max_length=6, t5_max_length=5)
    free = AnimaTokenizeStrategy(*tokenizers)
    caption = "1girl, solo, blue hair, smile, outdoors"
    whole = free.tokenize(caption)
    for _ in range(2):
        cut = limited.tokenize(caption)
    limited.tokenize("sky")
    assert cut.qwen_ids == whole.qwen_ids[:6]
    assert cut.t5_ids == (*whole.t5_ids[:4], 1)
    assert limited.cut_captions == 1
    assert free.cut_captions == 0
    assert "1 captions" in limited.warn_of_cut_captions()
    assert caption[:60] in caplog.text
    assert free.warn_of_cut_captions() == ""


@pytest.mark.parametrize("prompt", ["a", "b"])
def test_hidden_states_equal_comfyuis(encoding, prompt):
    outputs = encoding.encode_tokens(golden_tokens(prompt))
    assert_matches_golden(outputs["qwen_hidden"][None], golden_vectors()[f"out.qwen_last.{prompt}"])
    assert not outputs["qwen_hidden"].requires_grad


def test_a_batch_gives_the_contexts_of_its_captions_alone(encoding):
    dit = tiny_transformer()
    outputs = [encoding.encode_tokens(golden_tokens(prompt)) for prompt in "ab"]
    together = context_of(dit, encoding.collate(outputs))
    for row, output in zip(together, outputs, strict=True):
        alone = context_of(dit, encoding.collate([output]))[0]
        assert rel_l2(row, alone) < 1e-5
        real = len(output["t5_ids"])
        assert row[:real].abs().min(dim=-1).values.gt(0).all()
        assert row[real:].eq(0).all()
        assert row.shape[0] == 512


def test_padding_is_at_the_right_and_masked(encoding):
    first, second = (encoding.encode_tokens(golden_tokens(prompt)) for prompt in "ab")
    batch = encoding.collate([first, second])
    assert batch.qwen_mask.sum(1).tolist() == [
        len(first["qwen_hidden"]),
        len(second["qwen_hidden"]),
    ]
    assert batch.t5_mask.sum(1).tolist() == [len(first["t5_ids"]), len(second["t5_ids"])]
    assert torch.equal(batch.qwen_hidden[1, : len(second["qwen_hidden"])], second["qwen_hidden"])
    assert batch.qwen_hidden[batch.qwen_mask == 0].eq(0).all()
    assert batch.t5_ids[batch.t5_mask == 0].eq(0).all()


def test_an_empty_caption_has_the_real_state_of_its_token_and_a_context(encoding):
    outputs = encoding.encode_tokens(AnimaTokens((7,), (1,)))
    assert outputs["qwen_hidden"].shape == (1, 64)
    assert outputs["qwen_hidden"].std() > 0.1
    context = context_of(tiny_transformer(), encoding.collate([outputs]))[0]
    assert context[0].abs().max() > 0.1
    assert context[1:].eq(0).all()


def test_zeros_for_an_empty_caption_make_a_context_of_zeros_beside_a_real_one(tokenize):
    zeros = AnimaTextEncodingStrategy(tokenize, tiny_qwen(), empty_caption="zeros")
    outputs = [zeros.encode_tokens(tokenize.tokenize("")), zeros.encode_tokens(golden_tokens("a"))]
    context = context_of(tiny_transformer(), zeros.collate(outputs))
    assert context[0].eq(0).all()
    assert context[1].abs().max() > 0.1
    assert context.isfinite().all()


def test_the_cached_outputs_are_those_of_encoding_at_once(tokenize, demo):
    from library.anima_models import load_anima_qwen_model

    qwen = load_anima_qwen_model(demo / "models" / "qwen_3_06b.safetensors")
    encoding = AnimaTextEncodingStrategy(tokenize, qwen)
    caching = AnimaTextEncoderOutputsCachingStrategy(
        tokenize, encoding, identity="x", sizes=(64, 2**15), dtype=torch.float32
    )
    caption = "1girl, blue hair"
    cached, direct = caching.encode(caption), encoding.encode_tokens(tokenize.tokenize(caption))
    assert set(cached) == {"qwen_hidden", "t5_ids", "t5_mask"}
    for name, tensor in cached.items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, direct[name])
    assert cached["qwen_hidden"].dtype == torch.bfloat16


def test_latents_are_float32_and_do_not_depend_on_the_batch():
    caching = AnimaLatentsCachingStrategy(tiny_vae(), identity="x")
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = caching.encode(pixels)
    assert latents.shape == (2, caching.channels, 32 // caching.downscale, 48 // caching.downscale)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    assert rel_l2(latents[1:], caching.encode(pixels[1:])) < 1e-5
