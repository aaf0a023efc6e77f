"""Keys of adapter files: each format there and back, lookups, collisions, foreign keys."""

import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.errors import AdapterFileError
from networks.codec import (
    FileKey,
    KeyDecoder,
    KeyStyle,
    decode_tensors,
    encode,
    read_adapter,
    tensor_hashes,
    write_adapter,
)
from networks.kinds.table import KINDS

PATHS = [
    "blocks.0.self_attn.q_proj",
    "blocks.0.self_attn.q_norm",
    "blocks.10.adaln_modulation_self_attn.1",
    "llm_adapter.blocks.0.mlp.0",
    "llm_adapter.out_proj",
]
NORMS = ["blocks.0.self_attn.q_norm"]
DECODER = KeyDecoder(PATHS, norms=NORMS)
MERGER = KeyDecoder(PATHS, norms=NORMS, merging=True)
LOOKING = KeyDecoder(PATHS, norms=NORMS, tools=True)


@pytest.mark.parametrize("style", KeyStyle)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("factor", KINDS.written)
def test_every_key_comes_back_as_what_it_was_written_for(style, path, factor):
    if path in NORMS:
        assert LOOKING.decode(encode(path, factor, style)).path == path
    elif factor in ("weight", "bias"):
        assert "a whole" in LOOKING.decode(encode(path, factor, style))
    else:
        assert LOOKING.decode(encode(path, factor, style)) == FileKey(path, factor)


def test_what_comfyui_drops_is_for_tools_alone():
    key = "diffusion_model.llm_adapter.out_proj.lora_magnitude_vector"
    assert LOOKING.decode(key) == FileKey("llm_adapter.out_proj", "lora_magnitude_vector")
    for decoder in (DECODER, MERGER):
        assert "ComfyUI applies without this" in decoder.decode(key)


def test_keys_are_spelled_as_the_programs_spell_them():
    path = "blocks.0.self_attn.q_proj"
    assert encode(path, "lora_down") == f"diffusion_model.{path}.lora_down.weight"
    assert encode(path, "lokr_w2_a", KeyStyle.COMFY) == f"diffusion_model.{path}.lokr_w2_a"
    assert (
        encode(path, "lora_up", KeyStyle.KOHYA)
        == "lora_unet_blocks_0_self_attn_q_proj.lora_up.weight"
    )
    assert encode(path, "lora_up", KeyStyle.PEFT) == f"base_model.model.{path}.lora_B.weight"
    assert encode(path, "alpha", KeyStyle.BARE) == f"{path}.alpha"


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.llm_adapter.out_proj.lora_A.default.weight",
        "transformer.llm_adapter.out_proj.lora_A",
        "net.llm_adapter.out_proj.lora_down.weight",
        "model.diffusion_model.llm_adapter.out_proj.lora.down.weight",
        "diffusion_model.llm_adapter.out_proj_lora.down.weight",
        "unet.llm_adapter.out_proj.lora_linear_layer.down.weight",
        "base_model.model.diffusion_model.llm_adapter.out_proj.lora_A.weight",
        "base_model.model.transformer.llm_adapter.out_proj.lora_A.default.weight",
        "lycoris_llm_adapter_out_proj.lora_down.weight",
        "lora_unet_net_llm_adapter_out_proj.lora_down.weight",
    ],
)
def test_other_spellings_are_read(key):
    assert DECODER.decode(key) == FileKey("llm_adapter.out_proj", "lora_down")


@pytest.mark.parametrize(
    ("ending", "factor", "whole"),
    [
        ("w_norm", "w_norm", False),
        ("diff", "w_norm", False),
        ("diff_b", "b_norm", False),
        ("bias.diff", "b_norm", False),
        ("set_weight", "w_norm", True),
        ("weight", "w_norm", True),
    ],
)
def test_a_norms_differences_and_whole_weights_are_told_apart(ending, factor, whole):
    for name in ("diffusion_model.blocks.0.self_attn.q_norm", "blocks.0.self_attn.q_norm"):
        expected = FileKey("blocks.0.self_attn.q_norm", factor, whole)
        assert DECODER.decode(f"{name}.{ending}") == expected


def test_a_forks_whole_norm_weights_are_told_from_differences():
    found = DECODER.decode("__anima_norm__.blocks.0.self_attn.q_norm.weight")
    assert found == FileKey("blocks.0.self_attn.q_norm", "w_norm", whole=True)


def test_a_file_of_another_model_says_so_and_names_only_the_first_keys():
    tensors = {f"unet_{number}.alpha": torch.zeros(1) for number in range(1000)}
    with pytest.raises(AdapterFileError) as caught:
        decode_tensors(tensors, KeyDecoder(PATHS), "other.safetensors")
    text = str(caught.value)
    assert "nothing in this file belongs" in text and "951 more keys" in text
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("diffusion_model.blocks.0.self_attn.q_proj.hada_t1", "LoHa"),
        ("diffusion_model.blocks.0.self_attn.q_proj.weight", "no factor"),
        ("diffusion_model.blocks.7.self_attn.q_proj.alpha", "no such module"),
        ("lora_te_layers_0_mlp.alpha", "of a text encoder"),
        ("text_encoders.qwen3_06b.transformer.model.norm.w_norm", "of a text encoder"),
        ("diffusion_model.blocks.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("diffusion_model.blocks.0.self_attn.q_proj.diff", "--base_weights can merge it"),
        ("diffusion_model.blocks.0.self_attn.q_proj.something", "no factor"),
        ("lora_unet_down_blocks_0.lora_up.weight", "no such module"),
        ("__anima_norm__.blocks.9.norm.weight", "no such norm"),
    ],
)
def test_a_key_that_fits_nowhere_says_why(key, reason):
    assert reason in DECODER.decode(key)


def test_a_flattened_name_that_two_modules_share_is_an_error():
    found = KeyDecoder(["a.b_c", "a_b.c"]).decode("lora_unet_a_b_c.alpha")
    assert found == "ambiguous: it could be a.b_c or a_b.c"


def test_all_unknown_and_doubled_keys_are_named_in_one_error():
    one = torch.zeros(1)
    names = [
        "x.alpha",
        "blocks.0.self_attn.q_proj.alpha",
        "lora_unet_blocks_0_self_attn_q_proj.alpha",
        "y",
    ]
    with pytest.raises(AdapterFileError) as caught:
        decode_tensors(dict.fromkeys(names, one), KeyDecoder(PATHS), "some.safetensors")
    assert "3 problems in some.safetensors" in str(caught.value)
    assert "names the same tensor as blocks.0" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_A", "w_norm"], "LoRA"),
        (["lokr_w1", "lokr_w2"], "LoKr"),
        (["w_norm"], "norm"),
        (["lokr_w1", "lora_A"], "LoRA and LoKr"),
    ],
)
def test_the_kind_of_a_file_is_told_from_its_factors(keys, kind):
    tensors = {f"{PATHS[0]}.{key}": torch.zeros(1) for key in keys}
    assert decode_tensors(tensors, KeyDecoder(PATHS), "f").kind == kind


def test_the_model_hash_is_of_the_tensor_data_alone(tmp_path):
    tensors = {"b": torch.arange(6.0), "a": torch.ones(2, 3)}
    write_adapter(tmp_path / "a.safetensors", tensors, {"ss_x": "1", "other": "y"})
    write_adapter(tmp_path / "b.safetensors", tensors, {"ss_x": "another, longer"})
    hashes = []
    for name in ("a", "b"):
        raw = (tmp_path / f"{name}.safetensors").read_bytes()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
        assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
        hashes.append(metadata["sshs_model_hash"])
    assert hashes[0] == hashes[1]
    assert metadata["ss_x"] == "another, longer"


def test_the_legacy_hash_covers_64_kib_at_one_mib_of_a_file_with_ss_entries_only(tmp_path):
    tensors = {"a": torch.randn(400, 1000)}
    save_file(tensors, tmp_path / "plain.safetensors", metadata={"ss_x": "1"})
    piece = (tmp_path / "plain.safetensors").read_bytes()[0x100000:0x110000]
    assert len(piece) == 0x10000
    found = tensor_hashes(tensors, {"ss_x": "1", "modelspec.title": "t"})
    assert found["sshs_legacy_hash"] == hashlib.sha256(piece).hexdigest()[:8]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_never_written(tmp_path, bad):
    file = tmp_path / "a.safetensors"
    write_adapter(file, {"a": torch.ones(2)}, {})
    with pytest.raises(AdapterFileError, match="NaN or infinity"):
        write_adapter(file, {"a": torch.tensor([1.0, bad])}, {})
    assert torch.equal(load_file(file)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_is_missing_or_cut_or_no_adapter_is_a_user_error(tmp_path):
    whole = tmp_path / "a.safetensors"
    write_adapter(whole, {"a.alpha": torch.ones(20)}, {})
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-8])
    (tmp_path / "text.safetensors").write_text("not this")
    write_adapter(tmp_path / "model.safetensors", {"x.weight": torch.ones(2)}, {})
    assert torch.equal(read_adapter(whole)["a.alpha"], torch.ones(20))
    for name in ("none", "cut", "text", "model"):
        with pytest.raises(AdapterFileError, match=f"{name}.safetensors"):
            read_adapter(tmp_path / f"{name}.safetensors")
    with pytest.raises(AdapterFileError, match="no adapter; its tensors: x.weight"):
        read_adapter(tmp_path / "model.safetensors")


def test_a_file_of_whole_norms_alone_is_an_adapter(tmp_path):
    file = tmp_path / "a.safetensors"
    write_adapter(file, {"__anima_norm__.a.weight": torch.ones(2)}, {})
    assert list(read_adapter(file)) == ["__anima_norm__.a.weight"]
