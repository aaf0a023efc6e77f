"""Which files and folders load as the text encoder, and what is said of those that do not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from library.anima_models import load_anima_qwen_model
from library.errors import ModelFileError
from tests.helpers.tiny import golden, golden_vectors, rel_l2, saved

QWEN_FILE = golden("qwen3_tiny.safetensors")


def test_qwen_loads_from_a_hugging_face_folder_as_from_the_single_file(tmp_path):
    file = QWEN_FILE
    single = load_anima_qwen_model(file, dtype=torch.float32)
    folder = tmp_path / "qwen"
    single.save_pretrained(folder)
    ids = golden_vectors()["in.qwen_ids.a"]
    again = load_anima_qwen_model(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = single(ids, use_cache=False).last_hidden_state
        states = again(ids, use_cache=False).last_hidden_state
        assert rel_l2(states, expected) < 1e-5
    assert json.loads((folder / "config.json").read_text())["head_dim"] == 32


def hf_folder(folder, config):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(QWEN_FILE.read_bytes())
    (folder / "config.json").write_text(config)
    return folder


def test_the_config_of_a_folder_is_honoured(tmp_path):
    single = load_anima_qwen_model(QWEN_FILE, dtype=torch.float32)
    ids = golden_vectors()["in.qwen_ids.a"]
    with torch.no_grad():
        expected = single(ids, use_cache=False).last_hidden_state
        for theta, is_same in ((1e6, True), (1e4, False)):
            config = {**single.config.to_dict(), "rope_theta": theta}
            config.pop("rope_parameters", None)
            folder = hf_folder(tmp_path / f"{theta}", json.dumps(config))
            states = load_anima_qwen_model(folder, dtype=torch.float32)(ids, use_cache=False)
            assert (rel_l2(states.last_hidden_state, expected) < 1e-5) == is_same


@pytest.mark.parametrize(
    "config, complaint",
    [
        ("{broken", "line 1"),
        ("[]", "expected an object"),
        ('{"model_type": "llama"}', "llama"),
        ('{"model_type": "qwen3", "hidden_size": "wide"}', "config.json"),
    ],
)
def test_a_damaged_or_foreign_config_is_a_user_error(tmp_path, config, complaint):
    with pytest.raises(ModelFileError, match=complaint):
        load_anima_qwen_model(hf_folder(tmp_path / "qwen", config))


def test_what_a_config_leaves_out_is_as_in_qwen3_06b(tmp_path):
    ids = golden_vectors()["in.qwen_ids.a"]
    single = load_anima_qwen_model(QWEN_FILE, dtype=torch.float32)
    folder = hf_folder(tmp_path / "qwen", '{"model_type": "qwen3"}')
    with torch.no_grad():
        expected = single(ids, use_cache=False).last_hidden_state
        states = load_anima_qwen_model(folder, dtype=torch.float32)(ids, use_cache=False)
        assert torch.equal(states.last_hidden_state, expected)


def test_qwen_needs_no_prefix_and_tolerates_a_head(tmp_path):
    tensors = load_file(QWEN_FILE)
    ids = golden_vectors()["in.qwen_ids.a"]
    bare = {key[len("model.") :]: value for key, value in tensors.items()}
    headed = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    with torch.no_grad():
        expected = load_anima_qwen_model(QWEN_FILE, dtype=torch.float32)(ids, use_cache=False)[0]
        for other in (bare, headed):
            model = load_anima_qwen_model(saved(other, tmp_path), dtype=torch.float32)
            assert rel_l2(model(ids, use_cache=False)[0], expected) < 1e-5


@pytest.mark.parametrize(
    "name",
    ["embed_tokens", "layers.0.self_attn.k_proj", "layers.0.mlp.gate_proj", "layers.2.mlp.up_proj"],
)
def test_a_tensor_missing_from_qwen_is_named(tmp_path, name):
    tensors = load_file(QWEN_FILE)
    del tensors[f"model.{name}.weight"]
    with pytest.raises(ModelFileError, match=name):
        load_anima_qwen_model(saved(tensors, tmp_path))


def test_what_qwen_has_too_much_or_in_another_rank_is_told(tmp_path):
    tensors = load_file(QWEN_FILE)
    with pytest.raises(ModelFileError, match="1 unexpected tensors: visual.weight"):
        load_anima_qwen_model(saved({**tensors, "visual.weight": torch.zeros(1)}, tmp_path))
    tensors["model.embed_tokens.weight"] = torch.zeros(5)
    with pytest.raises(ModelFileError, match="shapes that no Qwen3 has"):
        load_anima_qwen_model(saved(tensors, tmp_path))
