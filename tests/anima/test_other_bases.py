"""Bases of other sizes train by their shapes alone; those that read text otherwise are refused."""

import json
import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.anima_doctor.file_rows import file_rows
from library.anima_runtime.model_loading import inspect_transformer, parameter_count
from library.anima_runtime.text_path import TextEncoderSize
from library.anima_workshop.layout import open_anima_adapter
from library.errors import ModelFileError
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.running import model_paths, train
from tests.helpers.tiny import golden
from tools import _demo_layouts as layouts
from tools._demo_weights import dit_scale, write_model

DEEP = 40
PER_BLOCK = ("cross_attn.k_proj", "mlp.layer2", "self_attn.output_proj")


@pytest.fixture(scope="module")
def deep(demo, tmp_path_factory):
    """The settings of a base of 40 narrow blocks, and its own shapes."""
    rows = load_file(demo / "models" / "anima_dit.safetensors")["net.llm_adapter.embed.weight"].shape[0]
    shapes = layouts.dit_shapes(layouts.tiny_dit(32, DEEP, rows))
    file = tmp_path_factory.mktemp("deep") / "deep.safetensors"
    for _ in write_model(file, shapes, dit_scale, 3):
        pass
    tokenizer = model_paths(demo)["t5_tokenizer_dir"]
    return {
        "anima_transformer": str(file), "t5_tokenizer_dir": tokenizer, "max_train_steps": 1,
        "blocks_to_swap": 38, "vram_target": 6, "train_norm": False,
        "network_args": ["target_modules=" + ",".join(f"blocks.*.{part}" for part in PER_BLOCK),
                         "train_llm_adapter=false"],
    }  # fmt: skip


def test_a_base_of_forty_blocks_trains_and_exports_by_its_shapes(demo, run_folder, deep, caplog):
    caplog.set_level(logging.INFO)
    trainer = train(demo, run_folder, deep)
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert len(model.blocks) == DEEP and len(model.swapped) == 38
    assert "vram_target = 6: blocks_to_swap = 38; " in caplog.text
    memory = trainer.memory_counter().__self__
    rows = {what: (size, how) for what, size, how in memory.rows(trainer.memory_modes)}
    assert f" {DEEP} blocks, " in rows["activations"][1]
    matrices = sum(matrix.numel() for matrix in trainer.base.swap.groups[0])
    held = parameter_count(trainer.model_facts.params) - (38 - 2) * matrices  # 2 are at hand
    held -= sum(weight.numel() for weight in trainer.base.llm_adapter.parameters())  # in RAM
    assert rows["DiT and LLM adapter"][0] == pytest.approx(4 * held, rel=0.03)
    told = dict(file_rows(trainer.cfg, trainer.anima, trainer.model_facts.params))
    assert told["the DiT has"] == f"{DEEP} blocks, 32 wide"
    file = run_folder / "out" / "run.safetensors"
    names = {f"blocks.{n}.{part}.weight" for n in range(DEEP) for part in PER_BLOCK}
    learned = weight_differences(load_file(file))
    assert names == learned.keys()
    assert all(learned[name].abs().max() > 0 for name in names)
    with safe_open(file, "pt") as found:
        told = found.metadata()
    assert told["ss_num_blocks"] == str(DEEP)
    parts = json.loads(told["ss_adapted_parts"])
    assert {parts[f"blocks.*.{part}"] for part in PER_BLOCK} == {DEEP}
    opened = open_anima_adapter(file, deep["anima_transformer"])
    assert not opened.left and len(list(opened)) == len(names)


def test_a_base_that_reads_text_otherwise_is_refused_with_all_that_differs(tmp_path):
    tensors = load_file(golden("anima_tiny_dit.safetensors"))
    width = tensors["net.blocks.0.cross_attn.k_proj.weight"].shape[1]
    source = tensors["net.llm_adapter.blocks.0.cross_attn.k_proj.weight"].shape[1]
    other = {**tensors, "net.llm_adapter.embed.weight": torch.zeros(40000, 8, dtype=torch.bfloat16)}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError) as refused:
        inspect_transformer(
            tmp_path / "other.safetensors", text_encoder=TextEncoderSize("gemma", 262144, 640)
        )
    for told in (
        "has a table of 40000 token ids, T5's 32128",
        f"gives text 8 wide, and its blocks read text {width} wide",
        f"reads a text encoder {source} wide, and gemma is 640 wide",
        "gemma has a table of 262144 token ids, Qwen3's 151936",
    ):
        assert told in str(refused.value)
    bare = {key: value for key, value in tensors.items() if "llm_adapter" not in key}
    save_file(bare, tmp_path / "bare.safetensors")
    with pytest.raises(ModelFileError, match="it has no LLM adapter .* --llm_adapter_path.*262144"):
        inspect_transformer(
            tmp_path / "bare.safetensors", text_encoder=TextEncoderSize("gemma", 262144, 640)
        )
