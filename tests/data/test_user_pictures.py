"""dataset_class: pictures that a class of the user's names are trained as those of a folder are."""

import shutil
import sys

import pytest

from library.config_util import load_dataset_config, load_folders_config
from library.data.scan import scan
from library.errors import ConfigError, DatasetError
from tests.helpers.dataset_files import BUCKETS, catalogue_of, folder_of

LISTING = '''
from pathlib import Path

class Pictures:
    """All pictures of a folder whose names the mark is in."""

    def __init__(self, folder=".", mark="", **others):
        self.folder, self.mark = Path(folder), mark

    def __iter__(self):
        for image in sorted(self.folder.glob("*.png"), reverse=True):
            text = image.with_suffix(".txt").read_text(encoding="utf-8")
            if self.mark in text:
                yield {"image": image, "caption": text}

class Nothing:
    def __iter__(self):
        return iter(())

class Wrong:
    def __iter__(self):
        yield "a.png"
        yield {"image": 1}
        yield {"image": "nowhere.png"}
        yield {"image": __file__}
        yield {"image": "a.png", "label": "b"}
        yield {"image": "a.png", "caption": ["b"]}

class Fails:
    def __iter__(self):
        yield {"image": 1}
        raise RuntimeError("no such archive")

class Silent:
    pass
'''


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user's, of a name that no other test has imported."""
    name = f"own_{tmp_path.name}"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(LISTING, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield name
    sys.modules.pop(name, None)


def configured(tmp_path, subset, settings=BUCKETS):
    path = tmp_path / "dataset.toml"
    path.write_text(f"[[datasets]]{settings}[[datasets.subsets]]\n{subset}\n", encoding="utf-8")
    return load_dataset_config(path, {})


def facts(catalogue):
    return [(i.key, i.path, i.caption, i.plan, i.repeats) for i in catalogue.images]


def test_what_a_class_names_is_what_its_folder_has(tmp_path, user_module):
    """Keys too, on which all draws depend, wherever the folder lies."""
    folder = folder_of(tmp_path / "pictures", [(64, 64), (128, 32), (48, 80)])
    expected = facts(catalogue_of(folder, subset="num_repeats = 2"))
    subset = f"dataset_class = '{user_module}.Pictures'\nnum_repeats = 2\n"
    group = configured(tmp_path, f"{subset}custom_attributes = {{folder = '{folder}'}}")
    assert facts(scan(group)) == expected and not group.notes
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "else")
    there = scan(configured(tmp_path, f"{subset}custom_attributes = {{folder = '{moved}'}}"))
    assert [image.key for image in there.images] == [key for key, *_ in expected]
    few = f"custom_attributes = {{folder = '{folder}', mark = 'tag1', timestep_sampling = {{offset = 1}}}}"
    (image,) = scan(configured(tmp_path, subset + few)).images
    assert image.path.name == "1.png" and image.subset.timestep_offset == 1


def test_a_flag_alone_makes_a_dataset(tmp_path, user_module, monkeypatch):
    folder = folder_of(tmp_path / "pictures", [(64, 64), (64, 64)])
    monkeypatch.chdir(folder)
    given = {"dataset_class": f"{user_module}.Pictures", "resolution": "64", "train_batch_size": 2}
    catalogue = scan(load_folders_config(given))
    assert [image.path.name for image in catalogue.images] == ["0.png", "1.png"]
    assert catalogue.group.datasets[0].batch_size == 2


@pytest.mark.parametrize(
    "name, told",
    [
        ("Pictures.", "expected module.Class"),
        ("Picture", "has no class Picture. Did you mean"),
        ("Silent", "the class has no __iter__"),
    ],
)
def test_a_class_that_cannot_be_is_told_with_its_line(tmp_path, user_module, name, told):
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, f"dataset_class = '{user_module}.{name}'")
    assert told in str(error.value) and "dataset_class = '" in str(error.value)


def test_a_module_that_is_not_there_or_fails_is_told(tmp_path, user_module):
    with pytest.raises(ConfigError, match="there is no module nowhere_at_all. Put nowhere_at_all.py"):
        configured(tmp_path, "dataset_class = 'nowhere_at_all.Pictures'")
    (tmp_path / "modules" / f"{user_module}.py").write_text("import math\n1 / 0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"ZeroDivisionError: division by zero \(.*line 2\)"):
        configured(tmp_path, f"dataset_class = '{user_module}.Pictures'")
    both = f"dataset_class = '{user_module}.Pictures'\nimage_dir = '{tmp_path}'"
    with pytest.raises(ConfigError, match="dataset_class and image_dir are both set. Keep one"):
        configured(tmp_path, both)


def test_all_that_is_wrong_with_what_it_gives_is_told_at_once(tmp_path, user_module, monkeypatch):
    monkeypatch.chdir(folder_of(tmp_path / "pictures", [(64, 64)]))
    shutil.copy("0.png", "a.png")
    with pytest.raises(DatasetError) as error:
        scan(configured(tmp_path, f"dataset_class = '{user_module}.Wrong'"))
    told = [(problem.where, problem.message) for problem in error.value.problems]
    assert [where for where, _ in told] == [f"picture {number}" for number in range(1, 7)]
    words = ("expected a dictionary", "got int", "no such file", "no picture by its name",
             "has label, which nothing reads", "caption: expected a text")  # fmt: skip
    assert all(word in message for word, (_, message) in zip(words, told))


@pytest.mark.parametrize(
    "name, told", [("Nothing", "it gives no pictures"), ("Fails", r"RuntimeError: no such archive \(.*line")]
)
def test_a_class_without_pictures_or_with_an_error_is_told(tmp_path, user_module, name, told):
    with pytest.raises(DatasetError, match=told):
        scan(configured(tmp_path, f"dataset_class = '{user_module}.{name}'"))
