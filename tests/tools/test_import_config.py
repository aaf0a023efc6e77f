"""Configurations of other trainers: each becomes two files that start, and every key is told of."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import toml

from anima_train_network import load_run
from library.errors import ConfigError
from library.system.text_files import parse_toml
from tests.helpers.paths import ROOT
from tools import import_config
from tools.importers import recognition
from tools.importers.draft import ADDED, LOST, SECRET, UNKNOWN, Draft
from tools.importers.files import folders_near
from tools.importers.machine import Nearby, convert, leaves

CASES = ROOT / "tests/tools/import_cases"


@dataclass(frozen=True)
class Case:
    """A file of a program, in a folder of import_cases with what it names.

    remarks: words of what the trainer still asks for, all that it may
    """

    program: str
    folder: str
    file: str
    expected: str = "expected.toml"
    remarks: tuple[str, ...] = ()


ALL = {
    "diffusion-pipe": Case("diffusion-pipe", "diffusion_pipe", "train.toml"),
    "diffusion-pipe LoKr": Case(
        "diffusion-pipe", "diffusion_pipe", "lokr.toml", "expected_lokr.toml"
    ),
    "sd-scripts, pictures elsewhere": Case(
        "sd-scripts", "sd_scripts", "elsewhere.toml", "expected_elsewhere.toml", ("no such file",)
    ),
    "sd-scripts": Case(
        "sd-scripts", "sd_scripts", "train.toml", "expected_toml.toml", ("came_pytorch",)
    ),
    **{
        f"sd-scripts {suffix}": Case(
            "sd-scripts", "sd_scripts", f"train.{suffix}", "expected_script.toml", ("output_dir",)
        )
        for suffix in ("sh", "bat", "ps1")
    },
}


@pytest.fixture(scope="module")
def copies(demo, tmp_path_factory):
    """The folder of a case with real paths in its files: @models, @pictures, @data, and @ for itself."""
    made: dict[str, Path] = {}

    def copy(folder: str) -> Path:
        if folder not in made:
            place = made[folder] = tmp_path_factory.mktemp(folder)
            (place / "data").mkdir()
            (place / "data" / "2_aoi").symlink_to(demo / "pictures")
            for path in (CASES / folder).rglob("*"):
                if path.is_file():
                    target = place / path.relative_to(CASES / folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    text = path.read_text(encoding="utf-8").replace("@models", str(demo / "models"))
                    text = text.replace("@pictures", str(demo / "pictures"))
                    text = text.replace("@data", str(place / "data")).replace("@/", f"{place}/")
                    target.write_text(text, encoding="utf-8")
        return made[folder]

    return copy


def drafted(path: Path, program: str = "", **options) -> tuple[Draft, list[str]]:
    """The draft, and the keys of the document that was converted."""
    document = recognition.read_any(path)
    source = recognition.source_of(document, path, program)
    nearby = Nearby(list(folders_near(path)), recognition.read_any)
    prepared = source.prepare(document, nearby) if source.prepare else document
    return convert(source, document, nearby, **options), [
        leaf.shown for leaf in leaves(prepared, source.rules)
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_file_becomes_what_it_means_and_starts(copies, name):
    case = ALL[name]
    folder = copies(case.folder)
    source = folder / case.file
    contents = import_config.run([str(source), "--output_dir", str(folder / name), "--overwrite"])
    expected = parse_toml((folder / case.expected).read_text(encoding="utf-8"))
    for path, kind in zip(contents, ("train", "dataset")):
        text = path.read_text(encoding="utf-8")
        assert parse_toml(text) == toml.loads(text) == expected[kind]
    assert len(contents) == sum(kind in expected for kind in ("train", "dataset"))
    draft, keys = drafted(source)
    told = [each.key for each in draft.findings if each.status != ADDED]
    assert sorted(told) == sorted(keys), "each key once"
    for kind, status in (("lost", LOST), ("unknown", UNKNOWN), ("secret", SECRET)):
        assert sorted(each.key for each in draft.of(status)) == sorted(expected[kind])
    assert "not-a-" not in "".join(contents.values())
    words = [
        w for pair in zip(("--config_file", "--dataset_config"), contents) for w in map(str, pair)
    ]
    try:
        load_run(words)
        problems = []
    except ConfigError as error:
        problems = [f"{problem.where} {problem.message}" for problem in error.problems]
    assert len(problems) == len(case.remarks), problems
    assert all(any(word in problem for problem in problems) for word in case.remarks)


def rules_of(program: str) -> set[str]:
    """The rules of a program's table that put something somewhere."""
    return {
        name for name, rule in recognition.PROGRAMS[program].source.rules.items() if rule.target
    }


@pytest.mark.parametrize("program", recognition.PROGRAMS)
def test_every_rule_that_writes_is_in_a_case(copies, program):
    source = recognition.PROGRAMS[program].source
    seen: set[str] = set()
    for case in ALL.values():
        if case.program == program:
            path = copies(case.folder) / case.file
            nearby = Nearby(list(folders_near(path)), recognition.read_any)
            document = recognition.read_any(path)
            prepared = source.prepare(document, nearby) if source.prepare else document
            found = {leaf.name for leaf in leaves(prepared, source.rules)}
            seen |= found | {name.rpartition(".")[2] for name in found if source.flat}
    assert sorted(rules_of(program) - seen) == []
