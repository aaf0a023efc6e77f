"""The contributors' pages: what they name exists, and what exists is named."""

import ast
import inspect
import os
import re
import textwrap
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.helpers import pages
from tests.helpers.pages import ARCHITECTURE, CONTRIBUTING, FORMATS, quoted, rows
from tests.helpers.paths import ROOT
from tests.helpers.running import train
from tools._imports import Product
from train_network import NetworkTrainer

PAGES = [CONTRIBUTING, ARCHITECTURE, FORMATS]
FILES, METADATA = "Files of a run / 训练写出的文件", "Metadata / 元数据"
WRITING_ALL = {
    "max_train_steps": 7,  # of six pairs of pictures: one epoch ends before the run does
    "save_every_n_steps": 4,
    "save_every_n_epochs": 1,
    "save_state": True,
    "ema_decay": 0.9,
    "network_module": "networks.lokr_anima",
    "export_format": "both",
    "cache_latents_to_disk": True,
    "cache_text_encoder_outputs_to_disk": True,
}
USERS_OWN = ("train_args.toml", "dataset.toml", "__init__.py")
PLACES = r"(?:library|networks|tools|tests|docs|configs|\.ci)/[\w./-]*|\w+\.(?:py|md|toml|txt)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_place_that_is_named_exists(page):
    names = quoted(page.read_text(encoding="utf-8"))
    places = [name for name in names if re.fullmatch(PLACES, name) and name not in USERS_OWN]
    assert len(places) > 5
    assert [name for name in places if not (ROOT / name).exists()] == []


def test_every_folder_of_the_product_is_named():
    folders = {f"{Path(path).parent.as_posix()}/" for path in Product(ROOT).files} - {"./"}
    assert folders <= set(quoted(ARCHITECTURE.read_text(encoding="utf-8")))


def own_names(method: str) -> list[ast.Attribute]:
    """Each `self.name` in one of the trainer's methods, in the order of the text."""
    function = getattr(NetworkTrainer, method, None)
    if not inspect.isfunction(function):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = [node for node in found if ast.unparse(node.value) == "self"]
    return sorted(own, key=lambda node: (node.lineno, node.col_offset))


def stages_of(method: str) -> list[str]:
    """The methods it calls on the trainer, in order."""
    names = [node.attr for node in own_names(method)]
    return [name for name in names if inspect.isfunction(getattr(NetworkTrainer, name, None))]


def names_used(method: str) -> list[tuple[str, bool]]:
    """(attribute, whether it is set) in a stage and in the methods it calls; in order."""
    uses: list[tuple[str, bool]] = []
    for node in own_names(method):
        is_method = callable(getattr(NetworkTrainer, node.attr, None))
        own = names_used(node.attr) if is_method else [(node.attr, isinstance(node.ctx, ast.Store))]
        uses += [use for use in own if use not in uses]
    return uses


def test_the_table_of_stages_is_that_of_the_trainer():
    table = pages.stages()
    stages = [name for name in stages_of("prepare") if name not in ("warnings", "differences")]
    assert list(table) == [*stages, *(name for name in stages_of("train") if name != "prepare")]
    known = {"cfg", "datasets", "contents"}
    for name, (reads, sets, _) in table.items():
        if name not in stages:
            assert set(quoted(reads)) <= known, name  # the loop: it changes what is there
            continue
        uses = names_used(name)
        is_set = [attribute for attribute, stored in uses if stored]
        is_read = {attribute for attribute, stored in uses if not stored} & known
        assert (set(quoted(reads)), quoted(sets)) == (is_read, is_set), name
        known |= set(is_set)


def pattern_of(name: str) -> str:
    """A regular expression for a name in which <words> stand for what differs."""
    parts = re.split(r"(<[^>]+>)", name)
    return "".join("[^/]*" if part.startswith("<") else re.escape(part) for part in parts)


def test_the_files_of_a_run_and_their_metadata_are_those_of_the_tables(demo, run_folder):
    before = {path for path in run_folder.rglob("*") if path.is_file()}
    for path in before:
        os.utime(path, (0, 0))  # what a file of this moment holds is not remembered
    (run_folder / "prompts.txt").write_text("a --w 64 --h 64 --s 1 --l 1\n")
    train(demo, run_folder, {**WRITING_ALL, "sample_prompts": str(run_folder / "prompts.txt")})
    places = run_folder / "out", run_folder / "pictures"
    written = [
        path.relative_to(place).as_posix()
        for place in places
        for path in place.rglob("*")
        if path.is_file() and path not in before
    ]
    patterns = [pattern_of(quoted(row[0])[0]) for row in rows(FORMATS, FILES)]
    assert [name for name in written if not any(re.fullmatch(p, name) for p in patterns)] == []
    assert [p for p in patterns if not any(re.fullmatch(p, name) for name in written)] == []
    keys = set()
    for name in ("run", "run-universal"):
        with safe_open(run_folder / f"out/{name}.safetensors", "pt") as file:
            keys |= file.metadata().keys()
    assert "modelspec.thumbnail" in keys  # of the pictures that were drawn
    groups = [pattern_of(key) for row in rows(FORMATS, METADATA) for key in quoted(row[0])]
    assert [key for key in keys if not any(re.fullmatch(group, key) for group in groups)] == []
    assert [group for group in groups if not any(re.fullmatch(group, key) for key in keys)] == []
