"""The benchmark of the workshop's tools: its files are what it says, its command lines are accepted."""

import importlib

import pytest

from library.anima_workshop.layout import open_anima_adapter
from tools.bench import workshop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    workshop.make_files(folder, 1, [f"x {workshop.LORA} {workshop.LOKR}"])
    return folder


@pytest.mark.parametrize("name, kinds", [(workshop.LORA, {"LoRA", "norm"}), (workshop.LOKR, {"LoKr"})])
def test_the_files_are_of_true_widths(folder, name, kinds):
    file = open_anima_adapter(folder / name)
    assert not file.left and {file.kind_of(path) for path in file} == kinds
    linears = [path for path in file if file.kind_of(path) != "norm"]
    assert sum(path.startswith("blocks.") for path in linears) == 10
    assert file.deltas("blocks.0.mlp.layer1")["weight"].shape == (8192, 2048)


@pytest.mark.parametrize("name", workshop.TOOLS)
def test_each_tool_takes_its_command_line(folder, name, monkeypatch):
    tool, *words = workshop.words_of(workshop.TOOLS[name])
    monkeypatch.chdir(folder)
    module = importlib.import_module(f"tools.{tool}")
    parse = getattr(module, "parse", None) or module.parser().parse_args
    assert parse(words)
