"""Files that are replaced, renamed and deleted, while another program holds them and without."""

import errno
import os

import pytest

from library.system import files


class Held:
    """An operation that another program keeps from succeeding for some tries."""

    def __init__(self, act, error, tries):
        self.act, self.error, self.tries = act, error, tries

    def __call__(self):
        if self.tries:
            self.tries -= 1
            raise self.error
        return self.act()


def on_windows(number, code=errno.EACCES):
    error = OSError(code, "as Windows says it")
    error.winerror = number
    return error


@pytest.mark.parametrize(
    "error", [OSError(errno.EBUSY, "busy"), on_windows(32), on_windows(33), on_windows(5)]
)
def test_an_operation_is_tried_again_until_the_other_program_lets_go(tmp_path, error):
    path, pauses = tmp_path / "file", []
    path.touch()
    files.patiently(Held(path.unlink, error, 3), pauses.append)
    assert not path.exists()
    assert len(pauses) == 3


def test_after_about_two_seconds_the_error_is_told(tmp_path):
    pauses = []
    with pytest.raises(OSError, match="as Windows says it"):
        files.patiently(Held(None, on_windows(32), 1000), pauses.append)
    assert 1.5 <= sum(pauses) <= 2.5


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "no"), OSError(errno.ENOSPC, "full"), on_windows(112), on_windows(3)],
)
def test_other_errors_are_told_at_once(error):
    pauses = []
    with pytest.raises(OSError):
        files.patiently(Held(None, error, 1), pauses.append)
    assert not pauses


def test_a_file_takes_the_name_of_another(tmp_path):
    (tmp_path / "new").write_text("new")
    (tmp_path / "name").write_text("old")
    files.replace_file(tmp_path / "new", tmp_path / "name")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_gets_another_name(tmp_path):
    (tmp_path / "one").mkdir()
    files.rename_folder(tmp_path / "one", tmp_path / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    with pytest.raises(FileNotFoundError):
        files.rename_folder(tmp_path / "one", tmp_path / "three")


def test_removing_tells_whether_there_was_something(tmp_path, caplog):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    assert files.remove_file(tmp_path / "file")
    assert files.remove_folder(tmp_path / "folder")
    assert not files.remove_file(tmp_path / "file")
    assert not files.remove_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == []
    assert caplog.text == ""


def test_what_cannot_be_removed_is_a_warning(tmp_path, caplog):
    (tmp_path / "folder").mkdir()
    assert not files.remove_file(tmp_path / "folder")  # a folder is no file
    assert "folder cannot be removed (" in caplog.text
