"""tools/edit_lora.py: strength by name, what is left out, metadata."""

import base64
import io
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from library.anima_workshop.choosing import read_choice
from library.anima_workshop.layout import published
from library.errors import AdapterFileError, ConfigError
from library.system.tensor_files import read_header
from networks.codec import write_adapter
from tests.helpers import documented
from tests.helpers.tiny import golden, tiny_transformer
from tests.helpers.workshop import apart, applied, assert_same_effect, deltas, of_every_kind
from tools.edit_lora import main

DEPEND_ON_THE_BASE = ("blocks.1.self_attn.v_proj", "blocks.1.mlp.layer2")


def run(*words):
    main([str(word) for word in words])


@pytest.fixture
def file(tmp_path):
    """A LoKr with norms and metadata."""
    path = tmp_path / "in.safetensors"
    tensors = load_file(golden("adapter_lokr_low.safetensors"))
    norms = {
        k: t for k, t in load_file(golden("adapter_lokr_full.safetensors")).items() if "norm" in k
    }
    parts = json.dumps({"blocks.*.mlp.layer1": 2, "t_embedding_norm": 1})
    metadata = {
        "ss_adapted_parts": parts,
        "ss_note": "/home/me/pictures",
        "ss_network_alpha": "1.0",
    }
    write_adapter(path, tensors | norms, metadata)
    return path


@pytest.mark.parametrize(
    "text, count, example",
    [
        ("all", len(published(28).shapes), "final_layer.linear"),
        ("norms", 113 + 43 + 28 * 4 + 1, "llm_adapter.norm"),
        ("text_encoder", 28 * 11 + 2, None),
        ("llm_adapter", 118 - 12 - 1, "llm_adapter.embed"),
        ("self_attn", 28 * 6, "blocks.3.self_attn.q_norm"),
        ("mlp", 28 * 2, "blocks.27.mlp.layer1"),
        ("mod", 28 * 6 + 2, "blocks.0.adaln_modulation_mlp.1"),
        ("blocks.0-7", 8 * 20, "blocks.7.cross_attn.k_proj"),
        ("blocks.0,2,5-7.mlp", 5 * 2, "blocks.5.mlp.layer2"),
        ("blocks.1.mod", 6, "blocks.1.adaln_modulation_self_attn.2"),
        ("blocks.0-1.cross_attn.k_proj", 2, "blocks.1.cross_attn.k_proj"),
        ("llm_adapter.blocks.0-2.mlp", 6, "llm_adapter.blocks.2.mlp.0"),
        ("layer1", 28, "blocks.9.mlp.layer1"),
        ("blocks.*.mlp.layer?", 56, "blocks.9.mlp.layer2"),
        (r"re:^blocks\.2\d\.mlp", 16, "blocks.20.mlp.layer1"),
    ],
)
def test_names_are_for_these_modules(text, count, example):
    modules = published(28)
    choice = read_choice(text, modules)
    found = [path for path in modules.shapes if choice(path)]
    assert example is None or example in found
    assert len(found) == count


def test_strength_is_that_of_merging(file, tmp_path):
    out = tmp_path / "out.safetensors"
    run(file, "--output", out, "--strength", "all=-0.5")
    assert_same_effect(applied(out), applied(file, strength=-0.5))


def test_strengths_multiply_and_everything_else_is_as_it_was(file, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    words = ["--strength", "blocks.0=0.5", "mlp=0.8", "re:k_proj$=0", "--drop", "norms"]
    run(file, "--output", out, *words)
    before, after = deltas(file), deltas(out)
    for name, delta in before.items():
        if "norm" in name or name.endswith("k_proj.weight"):
            assert name not in after
            continue
        times = (0.5 if name.startswith("blocks.0.") else 1) * (0.8 if ".mlp.layer" in name else 1)
        torch.testing.assert_close(after[name], times * delta, atol=1e-7, rtol=1e-6)
    same = {k: t for k, t in load_file(out).items() if "blocks.1.self_attn" in k}
    stored = load_file(file)
    assert same and all(torch.equal(tensor, stored[key]) for key, tensor in same.items())
    told = capsys.readouterr().out
    assert "0.4..0.8" in told and "left out" in told


@pytest.mark.parametrize("with_alpha", [True, False])
def test_every_kind_takes_a_strength_or_says_why_not(tmp_path, with_alpha):
    """Without alpha it goes into a factor, of LoRAs of any spelling too."""
    tensors = of_every_kind(tiny_transformer())
    given = {k: t for k, t in tensors.items() if with_alpha or not k.endswith("alpha")}
    paths = [tmp_path / f"{name}.safetensors" for name in ("all", "out")]
    save_file(given, paths[0])
    with pytest.raises(AdapterFileError) as told:
        run(paths[0], "--output", paths[1], "--strength", "all=0.3")
    assert {problem.where for problem in told.value.problems} == set(DEPEND_ON_THE_BASE)
    assert not paths[1].exists()
    run(paths[0], "--output", paths[1], "--strength", "all=0.3", "--drop", *DEPEND_ON_THE_BASE)
    expected = {
        name: 0.3 * delta
        for name, delta in deltas(paths[0]).items()
        if not name.startswith(DEPEND_ON_THE_BASE)
    }
    assert apart(expected, deltas(paths[1])) < 1e-6
    assert {k: t.shape for k, t in load_file(paths[1]).items()}.items() <= {
        k: t.shape for k, t in given.items()
    }.items()


def test_metadata_is_set_and_taken_out_and_tensors_stay(file, tmp_path, capsys):
    picture, out = tmp_path / "picture.png", tmp_path / "out.safetensors"
    Image.new("RGB", (900, 600), "red").save(picture)
    run(file, "--output", out, "--title", "花", "--tags", "a, b", "--set", "x=1=2",
        "--remove", "ss_network_*", "--thumbnail", picture)  # fmt: skip
    found, kept = load_file(out), load_file(file)
    assert found.keys() == kept.keys() and all(torch.equal(found[k], kept[k]) for k in kept)
    before, after = (read_header(path).metadata for path in (file, out))
    assert (
        after["modelspec.title"] == "花" and after["x"] == "1=2" and "ss_network_alpha" not in after
    )
    assert after["ss_adapted_parts"] == before["ss_adapted_parts"]
    assert after["sshs_model_hash"] == before["sshs_model_hash"]
    kind, _, data = after["modelspec.thumbnail"].partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (384, 256)
    told = capsys.readouterr().out
    assert "ss_note seems to hold a folder" in told and str(tmp_path) not in str(after)


def test_parts_that_are_told_are_those_that_are_there(file, tmp_path):
    out = tmp_path / "out.safetensors"
    run(file, "--output", out, "--drop", "norms", "--strength", "all=2")
    metadata = read_header(out).metadata
    parts = json.loads(metadata["ss_adapted_parts"])
    assert len(parts) == 20 and set(parts.values()) == {2}
    alpha = load_file(out)["diffusion_model.blocks.0.mlp.layer1.alpha"]
    assert float(metadata["ss_network_alpha"]) == float(alpha)


def test_keys_that_belong_nowhere_stay_unless_they_are_dropped(tmp_path):
    known = {"diffusion_model.t_embedding_norm.w_norm": torch.ones(2048)}
    odd = {"diffusion_model.double_blocks.0.lora_up.weight": torch.ones(2, 2)}
    save_file(known | odd, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    for words, keys in ((["--title", "x"], known | odd), (["--drop", "unknown"], known)):
        run(tmp_path / "in.safetensors", "--output", out, *words, "--overwrite")
        assert load_file(out).keys() == keys.keys()


def test_all_that_is_wrong_is_told_at_once(file, tmp_path):
    words = ["--strength", "mpl=1", "blocks.3-1=1", "re:(=1", "mlp=x", "=2", "--drop", "self_atn",
             "--set", "a", "sshs_model_hash=1", "--remove", "zz", "--thumbnail", file]  # fmt: skip
    with pytest.raises(ConfigError) as told:
        run(file, "--output", tmp_path / "out.pt", *words)
    for text in ("ends in .safetensors", "strength mpl ", "'3-1' is no number or range",
                 "not a regular expression", "NAME=NUMBER", "Did you mean self_attn", "KEY=VALUE",
                 "is a hash", "no entry of the metadata", "no picture"):  # fmt: skip
        assert text in str(told.value), text
    with pytest.raises(ConfigError, match="say what to change"):
        run(file, "--output", tmp_path / "out.safetensors")
    with pytest.raises(AdapterFileError, match="nothing would be left"):
        run(file, "--output", tmp_path / "out.safetensors", "--drop", "all")


COMMAND = (
    "python tools/edit_lora.py my_lora.safetensors --output edited.safetensors "
    "--strength blocks.0=0.5 mlp=0.8 --drop norms --title Lavender"
)


@documented.runs(COMMAND)
def test_the_command_writes_the_edited_file(file, tmp_path, command):
    file.rename(tmp_path / "my_lora.safetensors")
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: edited.safetensors" in done.stdout, done.stderr
    assert read_header(tmp_path / "edited.safetensors").metadata["modelspec.title"] == "Lavender"
