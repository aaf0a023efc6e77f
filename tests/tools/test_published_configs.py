"""Recipes as people publish them, for each program: which start once imported, what is lost, what is still asked for."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from library.anima_runtime.command_line import ADAPTERS, MODEL, load_run
from library.errors import ConfigError
from library.system.text_files import parse_toml
from tests.helpers.paths import ROOT
from tools import import_config
from tools.importers import recognition
from tools.importers.draft import LOST, UNKNOWN
from tools.importers.files import folders_near
from tools.importers.machine import Nearby, convert

TABLE = parse_toml((ROOT / "tests/tools/import_cases/published.toml").read_text(encoding="utf-8"))
FATES = {"starts": 30, "asks": 5, "refused": 3}
"""Of the files: it starts; it starts once a package, a model or a file is there; its adapter is none of ours."""


@dataclass(frozen=True)
class Published:
    """A file. refused: words of why it is not imported; else see the table"""

    suffix: str
    text: str
    lost: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    refused: str = ""


def published() -> Iterator[tuple[str, Published]]:
    for each in TABLE["file"]:
        told = {key: tuple(each.get(key, ())) for key in ("lost", "unknown", "asks")}
        yield each["name"], Published(each.get("suffix", ".toml"), each["text"], **told)
    for family in TABLE["family"]:
        for member, more in family["members"].items():
            told = {
                key: tuple(family.get(key, {}).get(member, ()))
                for key in ("lost", "unknown", "asks")
            }
            refused = "does not exist here" if member in family.get("refused", ()) else ""
            text = f"{family['text']}{more}\n"
            name = f"{family['name']}, {member}"
            yield name, Published(family.get("suffix", ".toml"), text, **told, refused=refused)


ALL = dict(published())


@pytest.fixture(scope="module")
def place(demo, tmp_path_factory):
    """Writes a file with real folders in the place of the table's marks, and returns it."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "data").mkdir()
    (folder / "data" / "2_aoi").symlink_to(demo / "pictures")
    marks = {"@models": demo / "models", "@pictures": demo / "pictures", "@data": folder / "data"}

    def write(name):
        text = ALL[name].text
        for mark, there in marks.items():
            text = text.replace(mark, str(there))
        path = folder / f"{list(ALL).index(name)}{ALL[name].suffix}"
        path.write_text(text.replace("@/", f"{folder}/"), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", ALL)
def test_a_published_file_starts_or_says_what_it_lacks(place, name):
    expected, path = ALL[name], place(name)
    if expected.refused:
        with pytest.raises(ConfigError, match=expected.refused):
            import_config.run([str(path)])
        return
    contents = import_config.run([str(path)])
    document = recognition.read_any(path)
    source = recognition.source_of(document, path)
    draft = convert(source, document, Nearby(list(folders_near(path)), recognition.read_any))
    try:
        load_run(import_config.command_words(list(contents)), MODEL if draft.whole else ADAPTERS)
        problems = []
    except ConfigError as error:
        found = [f"{problem.where} {problem.message}" for problem in error.problems]
        problems = [
            each for each in found if "bitsandbytes" not in each
        ]  # a package of some systems
    keys = [[each.key for each in draft.of(status)] for status in (LOST, UNKNOWN)]
    assert [sorted(each) for each in keys] == [sorted(expected.lost), sorted(expected.unknown)]
    assert len(problems) == len(expected.asks), problems
    assert all(any(word in problem for problem in problems) for word in expected.asks), problems


def test_most_of_them_start():
    fates = Counter(
        "refused" if e.refused else "asks" if e.asks else "starts" for e in ALL.values()
    )
    assert fates == FATES
