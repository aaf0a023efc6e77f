"""pyproject.toml and uv.lock say the same as the requirements files."""

import re
import sys

import pytest
from packaging.requirements import Requirement

from tests.helpers.paths import ROOT
from tools._launch import SUPPORTED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = PROJECT["project"]["requires-python"]


def wanted(lines: list[str]) -> set[str]:
    """Requirements in one spelling, without comments."""
    texts = [line.partition("#")[0].strip() for line in lines]
    return {str(Requirement(text)) for text in texts if text}


@pytest.mark.parametrize(
    "file, listed",
    [
        ("requirements.txt", PROJECT["project"]["dependencies"]),
        ("tests/requirements.txt", PROJECT["dependency-groups"]["dev"]),
    ],
)
def test_the_project_needs_what_the_requirements_file_names(file, listed):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert wanted(listed) == wanted(lines) and len(listed) > 5


def test_the_pythons_are_those_that_the_tools_take():
    (first, last) = SUPPORTED
    assert PYTHONS == f">={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"


@pytest.mark.parametrize(
    "file, said",
    [
        ("README.md", ("Python（{0} 至 {1}）", "Python ({0} to {1})")),
        ("docs/anima_dependency_guide.md", ("Python {0} 至 {1}", "Python {0} to {1}")),
        ("quickstart.sh", ("{2} <= sys.version_info[:2] <= {3}", "python{0} ", "No Python {0} to {1}")),
        ("quickstart.ps1", ("{2} <= sys.version_info[:2] <= {3}", "'-{0}'", "No Python {0} to {1}")),
        (".github/workflows/tests.yml", ('python: ["{0}", "{1}"]',)),
    ],
)
def test_every_place_names_the_same_pythons(file, said):
    text = (ROOT / file).read_text(encoding="utf-8")
    first, last = (".".join(map(str, version)) for version in SUPPORTED)
    assert [part for part in said if part.format(first, last, *SUPPORTED) not in text] == []


def test_the_optional_packages_are_those_of_the_guide():
    guide = (ROOT / "docs/anima_dependency_guide.md").read_text(encoding="utf-8")
    for extra, packages in PROJECT["project"]["optional-dependencies"].items():
        assert guide.count(f"`{extra}`") + guide.count(f"--extra {extra}") >= 2, extra
        for package in packages:
            assert guide.count(f"pip install {Requirement(package).name}`") == 2, package


@pytest.mark.parametrize("name", ["quickstart", "run_tests"])
def test_uv_needs_nothing_before_it_runs_the_first_tools(name):
    text = (ROOT / f"tools/{name}.py").read_text(encoding="utf-8")
    block = re.match(r"# /// script\n((?:# .*\n)+)# ///\n", text)
    assert block
    header = tomllib.loads(re.sub("(?m)^# ", "", block[1]))
    assert header == {"requires-python": PYTHONS, "dependencies": []}


def test_the_lock_is_of_these_requirements_and_names_public_hosts_alone():
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    hosts = set(re.findall(r'"\w+://([^/"]+)', text))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    own = re.search(r'name = "sd-scripts-anima"\n.*?(?=\n\[\[package]]|\Z)', text, re.DOTALL)
    assert own
    (locked,) = tomllib.loads(f"[[package]]\n{own[0]}")["package"]
    extras = PROJECT["project"]["optional-dependencies"].values()
    mine = [*PROJECT["project"]["dependencies"], *(text for texts in extras for text in texts)]
    for listed, needed in [
        (locked["metadata"]["requires-dist"], mine),
        (locked["metadata"]["requires-dev"]["dev"], PROJECT["dependency-groups"]["dev"]),
    ]:
        found = {(item["name"], item.get("specifier", "")) for item in listed}
        parsed = [Requirement(text) for text in needed]
        assert found == {
            (re.sub("[-_.]+", "-", need.name).lower(), as_uv_orders(need)) for need in parsed
        }


def as_uv_orders(need: Requirement) -> str:
    """A requirement's versions as they stand in a lock: the lowest first."""
    return ",".join(sorted(map(str, need.specifier), key=lambda part: part[0] == "<"))
