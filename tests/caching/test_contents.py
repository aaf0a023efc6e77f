"""What is remembered of files' contents: never wrong, and asked of the disk once."""

import json
import os
import threading

import pytest

from library.caching.contents import MEMORY, Contents, quick_hash
from library.data.picture_sizes import read_headers
from tests.helpers.dataset_files import draw

LONG_AGO = 10**18


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        write(tmp_path / name, name * 10)
    return tmp_path


def write(path, text, time=LONG_AGO):
    path.write_text(text)
    os.utime(path, ns=(time, time))


class Reading:
    """A hash that notes what is read."""

    def __init__(self):
        self.read = []

    def __call__(self, path):
        self.read.append(path.name)
        return quick_hash(path)


def hashes(folder, *names):
    """What a new run takes the files to hold, and what it read."""
    contents, reading = Contents(), Reading()
    found = [contents.hash_of(folder / name, folder, reading) for name in names]
    contents.remember()
    assert found == [quick_hash(folder / name) for name in names]
    return reading.read


def test_a_second_start_reads_nothing(folder):
    assert hashes(folder, "a", "b", "a") == ["a", "b"]
    assert hashes(folder, "a", "b") == []


def swap(folder):
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")


def overwrite(folder):
    """In place, with the same size, and the time set back."""
    with open(folder / "a", "r+") as file:
        file.write("c" * 10)
    os.utime(folder / "a", ns=(LONG_AGO, LONG_AGO))


def copy(folder):
    content = (folder / "a").read_text()
    (folder / "a").unlink()
    write(folder / "a", content)


CHANGES = {  # what happens -> what is read again
    swap: ["a", "b"],
    overwrite: ["a"],
    copy: ["a"],
    lambda folder: write(folder / "a", "longer than before"): ["a"],
    lambda folder: write(folder / "a", "x" * 10, LONG_AGO + 1): ["a"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_may_have_changed_is_read_again(folder, change):
    hashes(folder, "a", "b")
    change(folder)
    assert hashes(folder, "a", "b") == CHANGES[change]
    assert hashes(folder, "a", "b") == []


def test_a_file_that_may_still_be_written_to_is_not_remembered(folder):
    (folder / "a").write_text("now")
    hashes(folder, "a", "b")
    assert hashes(folder, "a", "b") == ["a"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[1]", "null", '{"a": 3}', '{"a": {}}', '{"a": []}', '{"a": [1, 2]}']
)
def test_a_memory_that_says_anything_else_is_not_used(folder, text, caplog):
    hashes(folder, "a")
    (folder / "_cache" / MEMORY).write_text(text)
    assert hashes(folder, "a") == ["a"]
    assert hashes(folder, "a") == []


def test_a_file_is_forgotten_when_it_is_gone(folder):
    hashes(folder, "a", "b")
    (folder / "a").unlink()
    write(folder / "b", "other")
    hashes(folder, "b")
    assert list(json.loads((folder / "_cache" / MEMORY).read_text())) == ["b"]


def test_a_memory_that_cannot_be_written_is_told(folder, caplog):
    (folder / "_cache").write_text("in the way")
    assert hashes(folder, "a") == ["a"]
    assert "cannot be written" in caplog.text


def test_files_of_other_folders_are_remembered_too(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "a"
    write(other, "elsewhere")
    for expected in (["a", "a"], []):
        contents, reading = Contents(), Reading()
        for path in (folder / "a", other):
            assert contents.hash_of(path, folder, reading) == quick_hash(path)
        contents.remember()
        assert reading.read == expected
    assert not (other.parent / "_cache").exists()


def test_threads_that_ask_at_once_read_once(folder):
    contents, reading = Contents(), Reading()
    meet = threading.Barrier(4)

    def ask():
        meet.wait()
        contents.hash_of(folder / "a", folder, reading)

    together = [threading.Thread(target=ask) for _ in range(4)]
    for each in together:
        each.start()
    for each in together:
        each.join()
    assert reading.read == ["a"]


def test_a_model_is_its_content_and_a_folder_its_files(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        write(folder / "tokenizer.json", "{}")
    write(folders[0] / ".hidden", "of the system")
    one, other = (Contents().hash_of_model(folder, None) for folder in folders)
    assert one == other
    write(folders[1] / "tokenizer.json", "[]")
    assert Contents().hash_of_model(folders[1], None) != one


def test_two_pictures_that_swap_names_are_not_remembered_with_each_others_size(tmp_path):
    for name, size in (("a", (32, 64)), ("b", (64, 32))):
        path = draw(tmp_path / f"{name}.bmp", size)
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    paths = [tmp_path / "a.bmp", tmp_path / "b.bmp"]
    read_headers(paths, {tmp_path})
    (tmp_path / "a.bmp").rename(tmp_path / "c")
    (tmp_path / "b.bmp").rename(tmp_path / "a.bmp")
    (tmp_path / "c").rename(tmp_path / "b.bmp")
    found, _ = read_headers(paths, {tmp_path})
    assert [found[path].size for path in paths] == [(64, 32), (32, 64)]
