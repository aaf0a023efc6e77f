"""Every form of file as ComfyUI reads it, by rules written apart, and ours beside it."""

import pytest
import torch

from library.anima_runtime.family import ANIMA_FILES
from networks.codec import KeyDecoder, decode_tensors
from networks.kinds.table import KINDS
from networks.merging import changes_of, weighted_modules
from networks.reader_rules import Effect
from networks.readers import Answer, verdicts
from tests.helpers import written_adapters as written
from tests.helpers.comfy_rules import LORA, read_by_comfyui, weight_differences
from tests.helpers.tiny import rel_l2, tiny_transformer
from tests.helpers.written_adapters import DOTTED, FLAT, prefix, random

LAYER, OTHER, BIASED = "blocks.0.mlp.layer1", "blocks.1.cross_attn.k_proj", "llm_adapter.out_proj"
NORM, QUERY_NORM = "llm_adapter.norm", "blocks.0.self_attn.q_norm"
TEXT_ENCODER = ("layers.0.self_attn.q_proj", "embed_tokens")
MODEL = tiny_transformer()
BASE = MODEL.state_dict()


def seeded(make):
    """The same numbers in every run; the generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return make()


def lora(path, up="lora_up.weight", down="lora_down.weight", **more):
    out, width = BASE[f"{path}.weight"].shape
    return {down: random(4, width), up: random(out, 4), **more}


def factored_lokr(path, **more):
    out, width = BASE[f"{path}.weight"].shape
    w2 = {"lokr_w2_a": random(out // 4, 2), "lokr_w2_b": random(2, width // 4)}
    return {"lokr_w1_a": random(4, 3), "lokr_w1_b": random(3, 4), **w2, **more}


def like(path, parameter="weight"):
    return random(*BASE[f"{path}.{parameter}"].shape)


def number(value, dtype=torch.float32):
    return {"alpha": torch.tensor(value, dtype=dtype)}


FORMS = seeded(
    lambda: {  # name: a module and its factors as they are spelled
        **{
            f"LoRA {up}": (LAYER, lora(LAYER, up[1:], down[1:]))
            for up, down in LORA
            if up[0] == "."
        },
        "LoRA with alpha": (OTHER, lora(OTHER, **number(3.0))),
        "LoRA with alpha of one entry": (OTHER, lora(OTHER, alpha=torch.tensor([6.0]))),
        "LoRA with alpha 0": (OTHER, lora(OTHER, **number(0.0))),
        "LoRA of an embedding": ("llm_adapter.embed", lora("llm_adapter.embed")),
        "LoHa": (LAYER, written.loha(BASE, LAYER)[0]),
        "factored LoKr": (LAYER, factored_lokr(LAYER, **number(5.0, torch.bfloat16))),
        "full LoKr": (LAYER, written.lokr_with_alpha_inf(BASE, LAYER)[0]),
        "DoRA of rows": (LAYER, written.dora_of_rows(BASE, LAYER)[0]),
        "DoRA of columns": (LAYER, written.dora_of_columns(BASE, LAYER)[0]),
        "DoRA of LoKr": (LAYER, written.dora_of_lokr(BASE, LAYER)[0]),
        "LoHa with DoRA": (
            LAYER,
            written.loha(BASE, LAYER)[0] | {"dora_scale": random(384, 1).abs()},
        ),
        "difference": (LAYER, {"diff": like(LAYER)}),
        "differences of weight and bias": (
            BIASED,
            {"diff": like(BIASED), "diff_b": like(BIASED, "bias")},
        ),
        "difference of a bias": (BIASED, {"bias.diff": like(BIASED, "bias")}),
        "LoRA and a bias": (BIASED, lora(BIASED, diff_b=like(BIASED, "bias"))),
        "whole weight": (LAYER, {"set_weight": like(LAYER)}),
        "norm": (NORM, {"w_norm": like(NORM)}),
        "difference of a norm": (QUERY_NORM, {"diff": like(QUERY_NORM)}),
        "whole norm": (QUERY_NORM, {"set_weight": like(QUERY_NORM)}),
    }
)


PLAIN = seeded(lambda: lora(LAYER))


def decode(tensors):
    modules = weighted_modules(MODEL)
    norms = [path for path in modules if BASE[f"{path}.weight"].dim() == 1]
    return decode_tensors(tensors, KeyDecoder(modules, norms=norms, tools=True), "a file")


def ours(tensors):
    """The differences that merging would add, by parameter."""
    file = decode(tensors)
    return {
        f"{path}.{name}": change
        for path in file.modules
        for name, change in changes_of(file, path, MODEL.get_submodule(path), KINDS).items()
    }


@pytest.mark.parametrize("style", ["comfy", "kohya"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_merged_is_what_comfyui_applies(form, style):
    path, factors = FORMS[form]
    tensors = {f"{prefix(style, path)}{name}": tensor for name, tensor in factors.items()}
    theirs, mine = weight_differences(tensors, BASE), ours(tensors)
    assert mine.keys() == theirs.keys() and mine
    for name, difference in theirs.items():
        if form == "LoRA with alpha 0":
            assert not difference.any() and not mine[name].any()
        else:
            assert rel_l2(mine[name], difference) < 3e-6, name
    (verdict,) = [v for v in verdicts(tensors, {}, ANIMA_FILES) if v.reader.id == "comfyui"]
    assert (verdict.answer, verdict.findings) == (Answer.ALL, ())


def test_pefts_dora_is_what_peft_trained_here_and_a_plain_lora_in_comfyui():
    plain = {f"{prefix('comfy', LAYER)}{name}": t for name, t in PLAIN.items()}
    key = f"{prefix('comfy', LAYER)}lora_magnitude_vector"
    tensors = plain | {key: torch.linspace(0.5, 2, 384)}
    theirs, dropped = read_by_comfyui(tensors, BASE)
    assert dropped == {key}
    name = f"{LAYER}.weight"
    assert rel_l2(ours(plain)[name], theirs[name]) < 1e-6
    assert rel_l2(ours(tensors)[name], theirs[name]) > 0.1
    rows = (BASE[name] + ours(tensors)[name]).norm(dim=1)
    torch.testing.assert_close(rows, tensors[key])


# Names of every style, and every factor: what ComfyUI drops is what the table of programs says
STYLES = {style: prefix(style, LAYER) for style in (*DOTTED, *FLAT)}
STYLES |= {
    "text encoder": "text_encoders.qwen3_06b.transformer.model.layers.0.self_attn.q_proj.",
    "text encoder, short": "text_encoders.transformer.model.layers.0.self_attn.q_proj.",
    "text encoder, flat": "lora_te_layers_0_self_attn_q_proj.",
    "its embedding": "lora_te_embed_tokens.",
    "first text encoder": "lora_te1_layers_0_self_attn_q_proj.",
    "third text encoder": "lora_te3_layers_0_self_attn_q_proj.",
    "text encoder's model": "lora_te_model_layers_0_self_attn_q_proj.",
    "diffusers' text encoder": "text_encoder.layers.0.self_attn.q_proj.",
}
SPELLINGS = seeded(
    lambda: {
        **{form: factors for form, (path, factors) in FORMS.items() if path == LAYER},
        "LoKr with .weight": {"lokr_w1.weight": random(4, 4), "lokr_w2.weight": random(96, 24)},
        "PEFT's DoRA": {**PLAIN, "lora_magnitude_vector": random(384)},
        "whole": {"weight": like(LAYER)},
        "lora_down alone": {"lora_down.weight": random(4, 96)},
        "unknown": {"lora_mid.weight": random(4, 4), "diff": like(LAYER)},
    }
)


@pytest.mark.parametrize("style", STYLES)
def test_comfyui_drops_what_the_table_of_programs_says(style):
    for spelling, factors in SPELLINGS.items():
        if "dora_scale" in factors and style not in (*DOTTED, *FLAT):
            continue  # the text encoder's weights are not here
        tensors = {f"{STYLES[style]}{name}": tensor for name, tensor in factors.items()}
        _, dropped = read_by_comfyui(tensors, BASE, TEXT_ENCODER)
        (verdict,) = [v for v in verdicts(tensors, {}, ANIMA_FILES) if v.reader.id == "comfyui"]
        told = {key for f in verdict.findings if f.effect is Effect.DROPS for key in f.keys}
        assert told == dropped, (spelling, verdict.text)


def test_an_up_without_its_down_fails_the_whole_load():
    tensors = {f"{prefix('comfy', LAYER)}lora_up.weight": PLAIN["lora_up.weight"]}
    with pytest.raises(KeyError):
        read_by_comfyui(tensors, BASE)
    (verdict,) = [v for v in verdicts(tensors, {}, ANIMA_FILES) if v.reader.id == "comfyui"]
    assert verdict.answer is Answer.NONE


@pytest.mark.parametrize("style", [name for name in STYLES if "text encoder" in name])
def test_a_text_encoders_keys_are_named_as_such(style):
    decoder = KeyDecoder(weighted_modules(MODEL), tools=True)
    for ending in ("lora_down.weight", "alpha", "w_norm", "hada_w1_a"):
        told = decoder.decode(STYLES[style] + ending)
        assert str(told).startswith("of a text encoder, which is frozen here")
