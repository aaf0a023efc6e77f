"""Tools that write adapter files, on files of an enemy or a bad disk: a file or one clear error."""

import importlib

import pytest
from hypothesis import given

from library.errors import UserError
from tests.helpers.hostile_files import examples, spoiled

PLACES = (
    "diffusion_model.blocks.0.mlp.layer1.",
    "diffusion_model.blocks.1.mlp.layer1.",
    "lora_unet_llm_adapter_blocks_0_mlp_0.",
)
TENSORS = [
    (PLACES[0] + "lora_down.weight", "F32", (2, 6)),
    (PLACES[0] + "lora_up.weight", "BF16", (4, 2)),
    (PLACES[0] + "alpha", "F32", ()),
    (PLACES[0] + "diff_b", "F32", (4,)),
    (PLACES[1] + "lokr_w1", "F32", (2, 2)),
    (PLACES[1] + "lokr_w2_a", "F32", (4, 3)),
    (PLACES[1] + "lokr_w2_b", "F16", (3, 5)),
    (PLACES[1] + "alpha", "F32", (1,)),
    (PLACES[2] + "hada_w1_a", "F32", (4, 2)),
    (PLACES[2] + "hada_w1_b", "F32", (2, 4)),
    (PLACES[2] + "hada_w2_a", "F32", (4, 2)),
    (PLACES[2] + "hada_w2_b", "F32", (2, 4)),
    ("diffusion_model.t_embedding_norm.w_norm", "F32", (5,)),
    ("of_no_module.x", "U8", (3,)),
]
COMMANDS = [
    "resize_lora --rank 1",
    "resize_lora --error 0.1 --to_lora",
    "edit_lora --strength all=0.5",
    "edit_lora --drop unknown --title x",
    "remap_lora --blocks 40",
]


@pytest.mark.parametrize("command", COMMANDS)
@examples(8)
@given(content=spoiled(TENSORS))
def test_there_is_a_file_or_an_error_and_nothing_else(tmp_path, command, content):
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    file.write_bytes(content)
    tool, *words = command.split()
    out.unlink(missing_ok=True)
    try:
        importlib.import_module(f"tools.{tool}").main([str(file), "--output", str(out), *words])
        assert out.exists()
    except UserError:
        assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {file.name, out.name}
