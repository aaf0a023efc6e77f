"""tools/remap_lora.py: which block goes where, in any spelling; and that it is called a guess."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_backend.modelling.dit import Anima
from library.anima_workshop.remapping import by_depth
from library.errors import AdapterFileError, ConfigError
from library.system.tensor_files import read_header
from networks.codec import write_adapter
from networks.merging import merge_file
from tests.helpers import documented
from tests.helpers.tiny import golden, tiny_transformer
from tools.remap_lora import main

TWO = golden("adapter_lokr_full.safetensors")  # of a model of two blocks, with norms


def run(*words):
    main([str(word) for word in words])


def test_depth_is_kept_and_ends_stay_ends():
    wide, narrow = by_depth(28, 40), by_depth(40, 28)
    assert (wide[0], wide[39], narrow[0], narrow[27]) == (0, 27, 0, 39)
    for found, was, now in ((wide, 28, 40), (narrow, 40, 28)):
        assert list(found) == list(range(now))
        assert list(found.values()) == sorted(found.values())
        assert all(abs(new / (now - 1) - old / (was - 1)) <= 0.5 / (was - 1) + 1e-9 for new, old in found.items())  # fmt: skip
    assert set(wide.values()) == set(range(28)) and len(set(narrow.values())) == 28
    assert by_depth(5, 5) == {block: block for block in range(5)} and by_depth(4, 1) == {0: 0}


def deeper(model, blocks):
    """A model whose blocks are copies of these blocks of the tiny one."""
    made = Anima(replace(model.params, num_blocks=len(blocks)))
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("blocks."):
            state[name] = tensor.clone()
        for new, old in enumerate(blocks):
            if name.startswith(f"blocks.{old}."):
                state[name.replace(f"blocks.{old}.", f"blocks.{new}.", 1)] = tensor.clone()
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("words, blocks", [((), [0, 0, 1, 1]), (("--map", "0-2=1", "3=0"), [1, 1, 1, 0])])  # fmt: skip
def test_remapping_and_merging_commute(tmp_path, words, blocks):
    """Merged into a model of copied blocks, it is the merged model with its blocks copied."""
    out = tmp_path / "out.safetensors"
    run(TWO, "--output", out, "--from_blocks", 2, "--blocks", 4, *words)
    there, here = deeper(tiny_transformer(), blocks), tiny_transformer()
    merge_file(there, str(out), 1.0)
    merge_file(here, str(TWO), 1.0)
    expected = deeper(here, blocks).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in there.state_dict().items())


@pytest.mark.parametrize("style", ["diffusion_model.{}.", "lora_unet_{}.", "transformer.{}."])
def test_keys_keep_their_spelling_and_the_llm_adapter_its_blocks(tmp_path, style):
    def spelled(path):
        flat = path.replace(".", "_") if style.startswith("lora") else path
        return style.format(flat)

    paths = "blocks.1.mlp.layer1", "llm_adapter.blocks.1.mlp.0"
    tensors = {f"{spelled(path)}lora_up.weight": torch.ones(3, 2) for path in paths}
    tensors |= {f"{spelled(path)}lora_down.weight": torch.ones(2, 3) for path in paths}
    save_file({k: t.clone() for k, t in tensors.items()}, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    run(tmp_path / "in.safetensors", "--output", out, "--blocks", 40, "--map", "39=1")
    moved = {spelled("blocks.39.mlp.layer1"), spelled(paths[1])}
    assert {key.rpartition("lora_")[0] for key in load_file(out)} == moved


def test_there_and_back_is_the_same_file(tmp_path, capsys):
    parts = json.dumps({"blocks.*.mlp.layer1": 2, "llm_adapter.blocks.*.mlp.0": 2})
    metadata = {"ss_num_blocks": "2", "ss_adapted_parts": parts, "modelspec.title": "x"}
    write_adapter(tmp_path / "two.safetensors", load_file(TWO), metadata)
    run(tmp_path / "two.safetensors", "--output", tmp_path / "five.safetensors", "--blocks", 5)
    told = capsys.readouterr().out
    for words in (
        "2 blocks -> 5",
        "used more than once: 0, 1",
        "A guess, not a conversion",
        "猜测",
    ):
        assert words in told
    found = read_header(tmp_path / "five.safetensors").metadata
    assert found["ss_num_blocks"] == "5"
    assert json.loads(found["ss_adapted_parts"])["blocks.*.mlp.layer1"] == 5
    run(tmp_path / "five.safetensors", "--output", tmp_path / "again.safetensors", "--blocks", 2)
    assert "left out: 1, 2, 3" in capsys.readouterr().out
    first, last = (load_file(tmp_path / f"{name}.safetensors") for name in ("two", "again"))
    assert first.keys() == last.keys() and all(torch.equal(first[k], last[k]) for k in first)


def test_the_new_models_file_says_what_fits(tmp_path):
    base, out = golden("anima_tiny_dit.safetensors"), tmp_path / "out.safetensors"
    run(TWO, "--output", out, "--from_blocks", 2, "--base", base, "--map", "0=1", "1=0")
    assert load_file(out).keys() == load_file(TWO).keys()
    wrong = {
        "diffusion_model.blocks.0.mlp.layer1.lora_up.weight": torch.ones(3, 2),
        "diffusion_model.blocks.0.mlp.layer1.lora_down.weight": torch.ones(2, 3),
        "diffusion_model.t_embedding_norm.w_norm": torch.ones(3),
    }
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(AdapterFileError) as told:
        run(tmp_path / "wrong.safetensors", "--output", out, "--overwrite", "--base", base)
    assert len(told.value.problems) == 2 and "for a weight of shape (3, 3)" in str(told.value)


def test_a_second_name_in_the_way_is_told(tmp_path):
    """Block 1 is there under two names, of which one is kept aside; block 0 would take it."""
    names = ["lora_unet_blocks_0_mlp_layer1", "lora_unet_blocks_1_mlp_layer1"]
    names.append("diffusion_model.blocks.1.mlp.layer1")
    tensors = {
        f"{name}.lora_{part}.weight": torch.ones(2, 2) for name in names for part in ("up", "down")
    }
    save_file(tensors, tmp_path / "in.safetensors")
    words = ["--blocks", 3, "--map", "0=1", "1=0"]
    with pytest.raises(AdapterFileError, match="in the way of a new tensor; names the same tensor"):
        run(tmp_path / "in.safetensors", "--output", tmp_path / "out.safetensors", *words)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    words = ["--map", "x=1", "0-3=0-1", "5=1", "5=2", "--from_blocks", 0]
    with pytest.raises(ConfigError) as told:
        run(TWO, "--output", tmp_path / "out.pt", *words)
    for text in ("ends in .safetensors", "--blocks or --base", "1 to 1000", "NEW=OLD",
                 "4 new blocks for 2", "new block 5 again"):  # fmt: skip
        assert text in str(told.value), text
    out = tmp_path / "out.safetensors"
    with pytest.raises(ConfigError) as told:
        run(TWO, "--output", out, "--blocks", 4, "--from_blocks", 1, "--map", "4=0", "0=9")
    for text in (
        "something for block 1",
        "new model has no block 4",
        "file's model has no block 9",
    ):
        assert text in str(told.value), text
    with pytest.raises(ConfigError, match="28 blocks as well; give a --map"):
        run(TWO, "--output", out, "--blocks", 28)


COMMAND = "python tools/remap_lora.py my_lora.safetensors --output remapped.safetensors --blocks 40"


@documented.runs(COMMAND)
def test_the_command_writes_a_file_for_40_blocks(tmp_path, command):
    tensors = load_file(TWO)
    write_adapter(tmp_path / "my_lora.safetensors", tensors, {})
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "28 blocks -> 40" in done.stdout, done.stderr
