"""Adapter files opened without a model: what they add is what merging them adds."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_workshop.base import open_base
from library.anima_workshop.layout import QWEN, open_anima_adapter
from library.errors import AdapterFileError
from library.system.tensor_files import read_header
from library.system.tensor_writing import Planned
from networks.codec import write_adapter
from networks.merging import changes_of, read_for, weighted_modules
from networks.workshop.adapter_file import NeedsBase
from networks.workshop.writing import adapter_writer
from tests.helpers.tiny import golden, tiny_transformer
from tests.helpers.workshop import of_every_kind
from tests.helpers.written_adapters import random

BASE = golden("anima_tiny_dit.safetensors")


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


@pytest.fixture(scope="module")
def base():
    return open_base(BASE)


def test_every_kind_adds_what_merging_it_adds(model, base, tmp_path):
    file = tmp_path / "all.safetensors"
    save_file(of_every_kind(model), file)
    opened = open_anima_adapter(file, BASE)
    modules = weighted_modules(model)
    merged = read_for(modules, str(file))
    assert not opened.left and set(opened) == set(merged.modules) and len(list(opened)) == 8
    seen = set()
    for path in opened:
        deltas = opened.deltas(path, base.of_module(path))
        expected = changes_of(merged, path, modules[path], opened.kinds)
        assert deltas.keys() == expected.keys()
        for name, delta in deltas.items():
            torch.testing.assert_close(delta.dense(), expected[name].detach(), atol=1e-6, rtol=1e-5)
        seen.add(opened.kind_of(path))
    assert seen == {"LoRA", "LoKr", "LoHa", "norm", "difference", "whole weight", "LoRA with DoRA"}


def test_pefts_dora_is_read_with_the_warning_that_comfyui_drops_it(base, tmp_path, caplog):
    path, file = "blocks.1.mlp.layer2", tmp_path / "peft.safetensors"
    out, width = base.of_module(path)["weight"].shape
    name, magnitude = f"base_model.model.{path}", torch.linspace(1, 2, out)
    lora = {
        f"{name}.lora_A.weight": torch.randn(3, width),
        f"{name}.lora_B.weight": torch.randn(out, 3),
    }
    save_file(lora | {f"{name}.lora_magnitude_vector": magnitude}, file)
    opened = open_anima_adapter(file)
    assert "DoRA as PEFT writes it (modules: 1): ComfyUI applies their LoRA without" in caplog.text
    assert opened.kind_of(path) == "LoRA with DoRA" and not opened.left
    with pytest.raises(NeedsBase):
        opened.deltas(path)
    weight = base.of_module(path)["weight"].float()
    total = weight + opened.deltas(path, base.of_module(path))["weight"].dense()
    torch.testing.assert_close(total.norm(dim=1), magnitude)
    wanted = weight + lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
    torch.testing.assert_close(total, wanted * (magnitude / wanted.norm(dim=1))[:, None])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dora_scale": torch.ones(384, 1)}, "both dora_scale and lora_magnitude_vector"),
        ({"lora_magnitude_vector": torch.ones(96)}, r"shape \(96,\), expected \(384,\)"),
        ({"lora_up.weight": None, "lora_down.weight": None, "lokr_w1": torch.ones(4, 4),
          "lokr_w2": torch.ones(96, 24)}, "beside no LoRA"),
    ],
)  # fmt: skip
def test_a_magnitude_that_fits_nothing_is_refused(base, tmp_path, more, words):
    path, file = "blocks.0.mlp.layer1", tmp_path / "peft.safetensors"
    factors = {
        "lora_down.weight": torch.ones(2, 96),
        "lora_up.weight": torch.ones(384, 2),
        "lora_magnitude_vector": torch.ones(384),
        **more,
    }
    save_file({f"diffusion_model.{path}.{n}": t for n, t in factors.items() if t is not None}, file)
    opened = open_anima_adapter(file)
    with pytest.raises(ValueError, match=words):
        opened.deltas(path, base.of_module(path))


def test_what_depends_on_the_base_asks_for_it(model, tmp_path):
    file = tmp_path / "all.safetensors"
    save_file(of_every_kind(model), file)
    opened = open_anima_adapter(file)
    asking = [path for path, entry in opened.entries.items() if entry.needs_base]
    assert [opened.kind_of(path) for path in asking] == ["whole weight", "LoRA with DoRA"]
    for path in opened:
        if path in asking:
            with pytest.raises(NeedsBase):
                opened.deltas(path)
        else:
            assert opened.deltas(path)


@pytest.mark.parametrize("name", ["lora", "lokr_full", "lokr_low"])
def test_files_of_comfyuis_golden_runs_open_without_a_base(name):
    file = golden(f"adapter_{name}.safetensors")
    opened = open_anima_adapter(file)
    assert not opened.left and opened.prefixes == {"diffusion_model.": len(load_file(file))}


def test_keys_that_belong_nowhere_are_kept_with_the_reason(tmp_path):
    tensors = {
        "diffusion_model.blocks.0.mlp.layer1.lora_down.weight": random(2, 8),
        "diffusion_model.blocks.0.mlp.layer1.lora_up.weight": random(8, 2),
        "lora_unet_blocks_0_mlp_layer1.lora_down.weight": random(2, 8),
        "diffusion_model.double_blocks.0.lora_down.weight": random(2, 8),
        "diffusion_model.blocks.0.mlp.layer1.strange": random(2),
    }
    save_file(tensors, tmp_path / "odd.safetensors")
    opened = open_anima_adapter(tmp_path / "odd.safetensors")
    assert list(opened) == ["blocks.0.mlp.layer1"]
    assert len(opened.left) == 3 and all(opened.left.values())


@pytest.mark.parametrize(
    "name",
    [
        f"{QWEN}layers.3.self_attn.q_proj",
        "text_encoders.transformer.model.layers.3.self_attn.q_proj",
        "lora_te_layers_3_self_attn_q_proj",
    ],
)
def test_a_text_encoders_modules_are_read(name, tmp_path):
    file = tmp_path / "te.safetensors"
    up, down = random(2048, 2), random(2, 1024)
    save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, file)
    opened = open_anima_adapter(file)
    (path,) = opened
    assert path == f"{QWEN}layers.3.self_attn.q_proj"
    torch.testing.assert_close(opened.deltas(path)["weight"].dense(), up @ down)


def test_more_blocks_than_published_are_counted(tmp_path):
    file = tmp_path / "forty.safetensors"
    name = "lora_unet_blocks_39_mlp_layer1"
    down, up = random(2, 2048), random(8192, 2)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, file)
    assert list(open_anima_adapter(file)) == ["blocks.39.mlp.layer1"]
    other = {"diffusion_model.blocks.999999.mlp.layer1.lora_up.weight": up}
    save_file(other, tmp_path / "hostile.safetensors")
    with pytest.raises(AdapterFileError, match="no model has so many"):
        open_anima_adapter(tmp_path / "hostile.safetensors")


def test_a_file_written_by_the_tensor_is_the_one_written_at_once(tmp_path):
    tensors = {
        "a.lora_down.weight": random(300, 999).bfloat16(), "b.alpha": torch.tensor(2.0),
        "c": random(3, 5).half(), "d": torch.arange(7, dtype=torch.uint8), "e": random(64, 999),
    }  # fmt: skip
    metadata = {"ss_note": "字" * 5, "ss_z": "1", "modelspec.title": "x"}
    write_adapter(tmp_path / "at_once.safetensors", tensors, metadata)
    plan = {key: Planned.of(tensor) for key, tensor in tensors.items()}
    with adapter_writer(tmp_path / "by_tensor.safetensors", plan, metadata) as writer:
        for key in sorted(tensors, reverse=True):
            writer.put(key, tensors[key])
    files = [tmp_path / f"{name}.safetensors" for name in ("at_once", "by_tensor")]
    one, other = (load_file(file) for file in files)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    one, other = (dict(read_header(file).metadata) for file in files)
    assert one.keys() == other.keys()
    assert one["sshs_legacy_hash"] == other["sshs_legacy_hash"] != "0" * 8
    assert one == other


def test_a_file_that_is_not_finished_is_not_there(tmp_path):
    plan = {"a.lora_up.weight": Planned("F32", (2, 2))}
    file = tmp_path / "new.safetensors"
    for bad in (torch.full((2, 2), torch.nan), torch.full((2, 2), torch.inf)):
        with (
            pytest.raises(AdapterFileError, match="NaN or infinity"),
            adapter_writer(file, plan, {}) as writer,
        ):
            writer.put("a.lora_up.weight", bad)
    with pytest.raises(AssertionError, match="not written"), adapter_writer(file, plan, {}):
        pass
    assert not list(tmp_path.iterdir())
