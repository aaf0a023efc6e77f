"""tools/average_lora.py: the mean of a run's files, and all reasons why files have none."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.errors import AdapterFileError, ConfigError
from library.system.tensor_files import read_header
from networks.codec import write_adapter
from tests.helpers import documented
from tools.average_lora import main

PLACE = "diffusion_model.blocks.0.mlp.layer1"


def lora(seed, rank=2, alpha=2.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        f"{PLACE}.lora_down.weight": random(rank, 6),
        f"{PLACE}.lora_up.weight": random(4, rank),
        f"{PLACE}.alpha": torch.tensor(alpha),
        "diffusion_model.t_embedding_norm.w_norm": random(5),
    }


def written(folder, name, tensors, session="7", **metadata):
    entries = {"ss_session_id": session, "ss_output_name": "run", **metadata}
    path = folder / f"{name}.safetensors"
    write_adapter(path, tensors, {k: v for k, v in entries.items() if v is not None})
    return path


def run(*words):
    main([str(word) for word in words])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_weighted_mean_and_says_of_what(tmp_path, capsys, dtype):
    first, second = lora(1, dtype=dtype), lora(2, dtype=dtype)
    files = [
        written(tmp_path, "a", first, ss_steps="10"),
        written(tmp_path, "b", second, ss_steps="20"),
    ]
    out = tmp_path / "out.safetensors"
    run(*files, "--output", out, "--weights", 1, 3)
    found = load_file(out)
    assert found.keys() == first.keys()
    for key, value in found.items():
        expected = (first[key].double() + 3 * second[key].double()) / 4
        assert value.dtype == first[key].dtype
        assert torch.equal(value, expected.to(value.dtype)), key
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert "ss_steps" not in metadata and metadata["ss_output_name"] == "run"
    assert json.loads(metadata["ss_averaged_from"]) == {
        "a.safetensors": 0.25,
        "b.safetensors": 0.75,
    }
    assert len(metadata["sshs_model_hash"]) == 64
    assert "weight 3" in capsys.readouterr().out


def test_equal_weights_are_the_mean_and_a_file_with_itself_is_itself(tmp_path):
    tensors = lora(1)
    files = [written(tmp_path, name, tensors) for name in "ab"]
    out = tmp_path / "out.safetensors"
    run(*files, "--output", out)
    assert all(torch.equal(value, tensors[key]) for key, value in load_file(out).items())
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="is there already.*--overwrite"):
        run(*files, "--output", out)
    other = written(tmp_path, "c", lora(3))
    run(files[0], other, "--output", out, "--overwrite")
    assert out.read_bytes() != before


def test_a_dry_run_tells_the_same_and_writes_nothing(tmp_path, capsys):
    files = [written(tmp_path, name, lora(seed)) for name, seed in (("a", 1), ("b", 2))]
    told = []
    for words in (["--dry_run"], []):
        output = tmp_path / "mean.safetensors"
        run(*files, "--output", output, *words)
        assert output.exists() is not bool(words)
        told.append(capsys.readouterr().out.splitlines())
    assert told[0][:-1] == told[1][:-1] and told[0][-1] == "nothing written (--dry_run)"


def test_all_reasons_are_told_at_once(tmp_path):
    lokr = {f"{PLACE}.lokr_w1": torch.ones(2, 2), f"{PLACE}.lokr_w2": torch.ones(2, 3)}
    less = {key: value for key, value in lora(1).items() if "norm" not in key}
    cut = tmp_path / "cut.safetensors"
    files = [
        written(tmp_path, "first", lora(1)),
        written(tmp_path, "rank", lora(2, rank=3)),
        written(tmp_path, "alpha", lora(2, alpha=1.0)),
        written(tmp_path, "lokr", lokr),
        written(tmp_path, "less", less),
        written(tmp_path, "other", lora(2), session="8"),
        cut,
        tmp_path / "missing.safetensors",
    ]
    cut.write_bytes(files[0].read_bytes()[:-5])
    out = tmp_path / "out.safetensors"
    with pytest.raises(AdapterFileError) as told:
        run(*files, "--output", out)
    reasons = {problem.where.rpartition("/")[2]: problem.message for problem in told.value.problems}
    for name, words in {
        "rank": "other shapes: ",
        "alpha": "has another alpha: ",
        "lokr": "is of the kind LoKr; first.safetensors is LoRA",
        "less": "lacks diffusion_model.t_embedding_norm.w_norm",
        "other": "is of another run than first.safetensors",
        "cut": "not a whole .safetensors file",
        "missing": "no such file",
    }.items():
        assert words in reasons[f"{name}.safetensors"], name
    assert "first.safetensors" not in reasons and not out.exists()


def test_files_that_say_nothing_of_their_run_need_force(tmp_path):
    files = [written(tmp_path, name, lora(1), session=None) for name in "ab"]
    out = tmp_path / "out.safetensors"
    with pytest.raises(AdapterFileError, match="does not say of which run.*--force"):
        run(*files, "--output", out)
    run(*files, "--output", out, "--force")
    assert read_header(out).entries


def test_a_command_line_that_is_wrong_is_told_whole(tmp_path):
    file = written(tmp_path, "a", lora(1))
    with pytest.raises(ConfigError) as told:
        run(file, file, "--output", tmp_path / "no" / "o.pt", "--weights", 0)
    for words in ("more than once", "1 numbers for 2 files", "above 0", "ends in .safetensors"):
        assert words in str(told.value)
    with pytest.raises(ConfigError, match="two files or more"):
        run(file, "--output", tmp_path / "o.safetensors")


COMMAND = "python tools/average_lora.py my_lora-000003.safetensors my_lora-000004.safetensors --output average.safetensors"


@documented.runs(COMMAND)
def test_the_command_writes_the_average(tmp_path, command):
    for number in (3, 4):
        written(tmp_path, f"my_lora-00000{number}", lora(number))
    done = documented.run(command, tmp_path)
    assert done.returncode == 0 and "written: average.safetensors" in done.stdout, done.stderr
    assert (tmp_path / "average.safetensors").exists()
