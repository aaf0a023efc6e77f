"""The demo: the same bytes for a seed, true layouts, and weights on which training means something."""

import hashlib
import json
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from library.anima_models import load_anima_qwen_model, load_anima_transformer, load_anima_vae
from library.anima_runtime.tokenizer_assets import (
    check_tokenizer,
    load_qwen_tokenizer,
    load_t5_tokenizer,
)
from library.strategy_anima import AnimaTextEncodingStrategy, AnimaTokenizeStrategy
from tests.helpers import warm
from tests.helpers.paths import ROOT, SHARED
from tests.helpers.processes import python
from tests.helpers.real_tokenizers import needs_real
from tools import make_demo
from tools._demo_weights import dit_scale, write_model

TOOL = ROOT / "tools/make_demo.py"
MODULE = ("-m", "tools.make_demo", "--output")


def hashes(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if "_cache" not in file.parts
    }


def pictures(demo: Path) -> list[Path]:
    return sorted(p for p in (demo / "pictures").iterdir() if p.suffix in (".png", ".jpg"))


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(demo, tmp_path):
    """Python started anew has a hash() of its own. Another `tools` in the current folder does no harm."""
    expected = hashes(demo)
    if sys.version_info >= (3, 11):  # which has the option -P
        (tmp_path / "tools").mkdir()
        (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('the wrong tools')")
    result = python(TOOL, "--output", "again", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert hashes(tmp_path / "again") == expected
    assert warm.run([*MODULE, str(tmp_path / "other"), "--seed", "1"]).returncode == 0
    other = hashes(tmp_path / "other")
    assert other.keys() == expected.keys()
    same = [name for name in other if other[name] == expected[name]]
    assert not [name for name in same if name.endswith(".safetensors")]


def test_a_second_run_renews_its_own_files_and_touches_no_others(tmp_path):
    tokenizer = tmp_path / "models" / "t5_tokenizer"
    tokenizer.mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("keep me")
    (tokenizer / "special_tokens_map.json").write_text("of another tokenizer")
    (tmp_path / "README.txt").write_text("old")
    result = warm.run([*MODULE, str(tmp_path)], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert "RANDOM" in (tmp_path / "README.txt").read_text("utf-8")
    assert not (tokenizer / "special_tokens_map.json").exists()
    assert "draw no real pictures" in result.stdout


def test_one_model_can_be_made_alone(tmp_path):
    result = warm.run([*MODULE, "made", "--only", "qwen"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = [p.name for p in (tmp_path / "made" / "models").iterdir()]
    assert made == ["qwen_3_06b.safetensors"]


@pytest.mark.parametrize(
    "kind, count, total",
    [("dit", 685, 2_091_068_928), ("qwen", 310, 596_049_920), ("vae", 194, 126_892_531)],
)
def test_true_size_has_the_true_tensors(kind, count, total):
    shapes = make_demo.model_shapes(True, {})[kind]
    assert len(shapes) == count
    assert sum(map(prod, shapes.values())) == total
    names = {"dit": "dit", "qwen": "qwen3_06b", "vae": "vae_wan21"}
    layout = SHARED / "spec" / "layouts" / f"{names[kind]}.json"
    if layout.is_file():
        prefix = "net." if kind == "dit" else ""
        expected = {prefix + k: tuple(v) for k, v in json.loads(layout.read_text()).items()}
        assert shapes == expected


def test_files_are_bfloat16_and_in_the_true_layout(demo):
    rows = {"qwen": 512, "t5": 384}
    for kind, shapes in make_demo.model_shapes(False, rows).items():
        with safe_open(demo / "models" / make_demo.FILES[kind], framework="pt") as file:
            names = list(file.keys())
            found = {name: file.get_slice(name) for name in names}
        assert {name: tuple(part.get_shape()) for name, part in found.items()} == shapes
        assert {part.get_dtype() for part in found.values()} == {"BF16"}


def test_a_tensor_written_in_several_pieces_is_one_random_tensor(tmp_path):
    shape = (3000, 2048)  # more than one piece
    *_, written = write_model(tmp_path / "x", {"a.weight": shape}, dit_scale, seed=0)
    with safe_open(tmp_path / "x", framework="pt") as file:
        tensor = file.get_tensor("a.weight").float()
    assert written == 2 * prod(shape)
    assert tensor.std().item() == pytest.approx(2048**-0.5, rel=0.01)
    assert len(tensor[:, 0].unique()) > 1000


def test_pictures_have_captions_and_several_shapes(demo):
    found = pictures(demo)
    assert len(found) >= 8
    sizes = {Image.open(picture).size for picture in found}
    assert len({width / height for width, height in sizes}) >= 2
    captions = [picture.with_suffix(".txt").read_text("utf-8") for picture in found]
    assert len(set(captions)) >= 8
    assert all("," in caption for caption in captions)


def test_tokenizers_fit_the_models_and_know_the_captions(demo):
    models = demo / "models"
    qwen = load_qwen_tokenizer(models / "qwen_tokenizer")
    t5 = load_t5_tokenizer(models / "t5_tokenizer")
    encoder = load_anima_qwen_model(models / "qwen_3_06b.safetensors")
    dit = load_anima_transformer(models / "anima_dit.safetensors")
    check_tokenizer("qwen", qwen, encoder.config.vocab_size)
    check_tokenizer("t5", t5, dit.llm_adapter.embed.weight.shape[0])
    for picture in pictures(demo):
        caption = picture.with_suffix(".txt").read_text("utf-8")
        assert qwen.decode(qwen(caption).input_ids) == caption
        assert t5.unk_token_id not in t5(caption).input_ids
    assert qwen.decode(qwen("猫 😀").input_ids) == "猫 😀"


def test_either_t5_file_alone_gives_the_same_ids(demo):
    folder = demo / "models" / "t5_tokenizer"
    caption = r"1girl, aoi (demo),  smile"
    first, second = (
        load_t5_tokenizer(folder / name)(caption).input_ids
        for name in ("spiece.model", "tokenizer.json")
    )
    assert first == second


def test_latents_of_the_pictures_are_about_unit_scale_and_differ(demo):
    vae = load_anima_vae(demo / "models" / "qwen_image_vae.safetensors")
    images = [Image.open(p).convert("RGB").resize((128, 128)) for p in pictures(demo)[:3]]
    pixels = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images])
    with torch.no_grad():
        latents = vae.encode(pixels.float() / 127.5 - 1)
    assert latents.shape == (3, 16, 16, 16)
    assert 0.5 < latents.std() < 2
    assert (latents[0] - latents[1]).pow(2).mean().sqrt() > 0.3


def test_the_first_prediction_has_the_targets_size_and_gradients_reach_every_tensor(demo):
    models = demo / "models"
    dit = load_anima_transformer(models / "anima_dit.safetensors", dtype=torch.float32)
    tokenize = AnimaTokenizeStrategy(
        load_qwen_tokenizer(models / "qwen_tokenizer"), load_t5_tokenizer(models / "t5_tokenizer")
    )
    qwen = load_anima_qwen_model(models / "qwen_3_06b.safetensors", dtype=torch.float32)
    encoding = AnimaTextEncodingStrategy(tokenize, qwen)
    texts = encoding.collate(
        [encoding.encode_tokens(tokenize.tokenize(c)) for c in ("1girl, blue hair", "sky")]
    )
    dit.requires_grad_(True)
    latents = torch.randn(2, 16, 16, 24, generator=torch.Generator().manual_seed(0))
    masks = {"qwen_mask": texts.qwen_mask, "t5_mask": texts.t5_mask}
    velocity = dit(latents, torch.tensor([0.3, 0.7]), texts.qwen_hidden, texts.t5_ids, **masks)
    assert 0.4 < velocity.std() < 1.2
    (velocity - latents).pow(2).mean().backward()
    for name, weight in dit.named_parameters():
        assert weight.grad.norm() > 1e-6 * weight.norm(), name


@needs_real
def test_real_tokenizers_are_copied_and_size_both_tables(tmp_path):
    result = warm.run([*MODULE, str(tmp_path), "--tokenizers", str(SHARED / "tokenizers")])
    assert result.returncode == 0, result.stderr
    models = tmp_path / "models"
    with safe_open(models / "qwen_3_06b.safetensors", framework="pt") as file:
        assert file.get_slice("model.embed_tokens.weight").get_shape()[0] == 151936
    with safe_open(models / "anima_dit.safetensors", framework="pt") as file:
        assert file.get_slice("net.llm_adapter.embed.weight").get_shape()[0] == 32128
    check_tokenizer("qwen", load_qwen_tokenizer(models / "qwen_tokenizer"), 151936)
    check_tokenizer("t5", load_t5_tokenizer(models / "t5_tokenizer"), 32128)


def test_a_wrong_folder_is_a_short_error_and_nothing_is_written(tmp_path):
    result = warm.run([*MODULE, str(tmp_path / "made"), "--tokenizers", str(tmp_path)])
    assert result.returncode == 2
    assert "has no folder qwen3" in result.stderr
    assert "Traceback" not in result.stderr
    (tmp_path / "file").write_text("")
    result = warm.run([*MODULE, str(tmp_path / "file")])
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert not list((tmp_path / "made").rglob("*.safetensors"))
