"""The README's commands: which Python, and what counts as a good result."""

import ast
import socket
import struct

import pytest
import torch
from safetensors.torch import save_file

from tools import _environment as environment
from tools import _launch
from tools import _quickstart as quickstart
from tools._environment import StepFailed


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_supported_pythons_pass(version):
    assert _launch.python_problem(version) is None


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 14)])
def test_other_pythons_get_one_sentence_naming_the_versions(version):
    sentence = _launch.python_problem(version)
    assert "3.10, 3.11, 3.12 or 3.13" in sentence and "\n" not in sentence


def test_an_index_that_does_not_answer_is_given_up_quickly():
    with socket.socket() as listener:  # accepts connections and never answers
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert environment.index_answers(url, seconds=0.3) is False


def lokr_file(path, *, key="diffusion_model.a.lokr_w2_b", value=1.0):
    save_file({key: torch.full((2, 2), value), "diffusion_model.a.alpha": torch.tensor(1.0)}, path)
    return path


@pytest.mark.parametrize("name", ["lokr_w2_b", "lokr_w2"])
def test_a_good_result_is_described(tmp_path, name):
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    final, step = (lokr_file(file, key=f"diffusion_model.a.{name}") for file in files)
    assert "2 tensors" in quickstart.check_result(final, step)


@pytest.mark.parametrize(
    "final, step, complaint",
    [
        ({"value": 0.0}, {}, "still zero"),
        ({"key": "a.lokr_w2_b"}, {}, "would not read"),
        ({"value": 2.0}, {}, "same weights"),
    ],
)
def test_a_bad_result_is_refused(tmp_path, final, step, complaint):
    first = lokr_file(tmp_path / "a.safetensors", **final)
    second = lokr_file(tmp_path / "b.safetensors", **step)
    with pytest.raises(StepFailed, match=complaint):
        quickstart.check_result(first, second)


def test_the_reader_agrees_with_the_format(tmp_path):
    path = lokr_file(tmp_path / "a.safetensors")
    header, data = quickstart.read_safetensors(path)
    start, end = header["diffusion_model.a.lokr_w2_b"]["data_offsets"]
    assert struct.unpack("<4f", data[start:end]) == (1.0, 1.0, 1.0, 1.0)


def test_a_command_that_fails_is_named(capfd):
    with pytest.raises(StepFailed, match="exit code 3"):
        environment.run(["python", "-c", "raise SystemExit(3)"])


def test_an_old_python_can_read_the_readmes_two_commands():
    """No annotations, f-strings or other syntax that would end in a SyntaxError there."""
    for name in ("quickstart", "run_tests", "_launch"):
        source = (environment.ROOT / "tools" / f"{name}.py").read_text(encoding="utf-8")
        ast.parse(source, feature_version=(3, 7))
        kinds = {type(node) for node in ast.walk(ast.parse(source))}
        assert not kinds & {ast.JoinedStr, ast.AnnAssign, ast.NamedExpr}
        functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
        assert all(f.returns is None for f in functions)
