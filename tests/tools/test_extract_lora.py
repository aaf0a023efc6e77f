"""tools/extract_lora.py: what was merged into a model comes out of it again."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import AdapterFileError, ConfigError, ModelFileError
from library.system.tensor_files import read_header
from networks.merging import merge_file
from tests.helpers import documented
from tests.helpers.tiny import golden, tiny_transformer
from tests.helpers.workshop import apart, applied, assert_same_effect, deltas
from tools.extract_lora import main

BASE = golden("anima_tiny_dit.safetensors")
LAYER = "blocks.0.mlp.layer1.weight"


def run(*words):
    main([str(word) for word in words])


def saved(file, state, prefix="net."):
    save_file({prefix + name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


@pytest.fixture(scope="module")
def tuned():
    """The weights of the tiny model with a golden adapter in it, by its kind."""
    found = {}
    for kind in ("lora", "lokr_full"):
        model = tiny_transformer()
        merge_file(model, str(golden(f"adapter_{kind}.safetensors")), 1.0)
        found[kind] = model.state_dict()
    return found


def test_a_merged_lora_comes_out_again(tuned, tmp_path, capsys):
    out, adapter = tmp_path / "out.safetensors", golden("adapter_lora.safetensors")
    for prefix in ("net.", "model.diffusion_model."):
        model = saved(tmp_path / "tuned.safetensors", tuned["lora"], prefix)
        run(BASE, model, "--output", out, "--error", 1e-3, "--overwrite")
        assert load_file(out).keys() == load_file(adapter).keys()
        assert {len(t) for key, t in load_file(out).items() if "lora_down" in key} == {3}
        assert_same_effect(applied(out), applied(adapter), 1e-5)
    told = capsys.readouterr().out
    same = len(tiny_modules()) - 40
    assert "40 modules: difference -> LoRA" in told
    assert f"the same in both models: {same} modules" in told
    metadata = read_header(out).metadata
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "3"
    assert metadata["ss_network_module"] == "networks.lora_anima"
    assert sum(json.loads(metadata["ss_adapted_parts"]).values()) == 40
    assert metadata["ss_num_blocks"] == "2" and metadata["modelspec.title"] == "out"
    assert metadata["ss_base_model_version"] == "anima" and str(tmp_path) not in str(metadata)


def tiny_modules():
    return [name for name, _ in tiny_transformer().named_parameters() if name.endswith(".weight")]


def test_norms_are_whole_and_the_error_that_is_told_is_that_of_the_file(tuned, tmp_path, capsys):
    model, out = (
        saved(tmp_path / "tuned.safetensors", tuned["lokr_full"]),
        tmp_path / "out.safetensors",
    )
    run(BASE, model, "--output", out, "--rank", 4, "--save_precision", "bf16")
    told = re.search(r"all: error ([\d.]+)%", capsys.readouterr().out)
    wanted, found = deltas(golden("adapter_lokr_full.safetensors")), deltas(out)
    assert told and float(told[1]) == pytest.approx(100 * apart(wanted, found), abs=0.05)
    norms = [name for name, delta in wanted.items() if delta.dim() == 1]
    assert len(norms) == 24
    for name in norms:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-3, rtol=4e-3)
    assert {e.dtype for k, e in read_header(out).entries.items() if "alpha" not in k} == {"BF16"}


def test_what_is_not_chosen_is_told_with_its_share(tuned, tmp_path, capsys):
    """Biases go with their modules; the size of what is left out is 3 of 3 and 4."""
    state = tiny_transformer().state_dict()
    state["final_layer.linear.weight"] = state["final_layer.linear.weight"].clone()
    state["final_layer.linear.weight"][0, 0] += 3
    for name in (LAYER, "llm_adapter.blocks.0.mlp.0.bias"):
        state[name] = state[name].clone()
    state[LAYER][1, 2] += 4
    state["llm_adapter.blocks.0.mlp.0.bias"][1] += 0.5
    model, out = saved(tmp_path / "tuned.safetensors", state, ""), tmp_path / "out.safetensors"
    run(BASE, model, "--output", out, "--rank", 1)
    assert f"final_layer.linear, 1 modules, {100 * 9 / 25.25:.2g} % of" in capsys.readouterr().out
    assert set(deltas(out)) == {LAYER, "llm_adapter.blocks.0.mlp.0.bias"}
    words = ["--target_modules", "re:^final", "blocks.0", "--overwrite"]
    run(BASE, model, "--output", out, "--rank", 1, *words)
    found = deltas(out)
    assert set(found) == {LAYER, "final_layer.linear.weight"}
    assert float(found[LAYER][1, 2]) == pytest.approx(4, abs=1e-4)
    assert "llm_adapter" in capsys.readouterr().out


def test_models_in_8_and_16_bits_are_made_whole_and_it_is_said(tuned, tmp_path, capsys):
    narrow = {n: t.bfloat16() if t.dim() < 2 else t for n, t in tuned["lora"].items()}
    linears = [name for name in narrow if re.search(r"(_attn\..*_proj|layer\d)\.weight$", name)]
    narrow |= {name: narrow[name].to(torch.float8_e4m3fn) for name in linears}
    model, out = saved(tmp_path / "tuned.safetensors", narrow), tmp_path / "out.safetensors"
    run(BASE, model, "--output", out, "--energy", 1)
    assert "rounding of what is stored narrowly is in the difference" in capsys.readouterr().out
    base = tiny_transformer().state_dict()
    found = deltas(out)
    for name in linears:
        expected = narrow[name].float() - base[name]
        torch.testing.assert_close(found[name], expected.double(), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_extracted_is_told(tuned, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(AdapterFileError, match="holds the same weights as the original"):
        run(BASE, BASE, "--output", out, "--rank", 4)
    state = {name: tensor.clone() for name, tensor in tiny_transformer().state_dict().items()}
    state["final_layer.linear.weight"] += 1
    model = saved(tmp_path / "tuned.safetensors", state)
    with pytest.raises(AdapterFileError, match="not chosen: final_layer.linear. Name them"):
        run(BASE, model, "--output", out, "--rank", 4)
    state[LAYER][0, 0] = torch.nan
    with pytest.raises(AdapterFileError, match="differs by NaN or infinity"):
        run(BASE, saved(model, state), "--output", out, "--rank", 4)
    shorter = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.")}
    with pytest.raises(ModelFileError, match="of other sizes than .*: num_blocks 1 instead of 2"):
        run(BASE, saved(model, shorter), "--output", out, "--rank", 4)
    with pytest.raises(ConfigError, match="say how many ranks"):
        run(BASE, model, "--output", out)
    with pytest.raises(ConfigError, match="Did you mean self_attn"):
        run(BASE, BASE, "--output", out, "--rank", 4, "--target_modules", "self_atn")
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]


COMMAND = (
    "python tools/extract_lora.py original.safetensors tuned.safetensors "
    "--output extracted.safetensors --rank 32"
)


@documented.runs(COMMAND)
def test_the_command_writes_the_difference(tuned, tmp_path, command):
    saved(tmp_path / "tuned.safetensors", tuned["lora"])
    (tmp_path / "original.safetensors").write_bytes(BASE.read_bytes())
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: extracted.safetensors" in done.stdout, done.stderr
