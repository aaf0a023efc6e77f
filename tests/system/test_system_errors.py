"""Error numbers of Linux and of Windows, as Python and as safetensors raise them, and the advice."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from library.errors import OutputError
from library.system.files import is_held
from library.system.system_errors import Cause, output_errors, system_fault


def windows_error(number, code):
    """As Python raises it there: with the system's number beside the one of C that it made of it."""
    error = OSError(code, "as Windows says it.")
    error.winerror = number
    return error


# The numbers of WinError.h and what Python translates them to.
OF_WINDOWS = [
    (112, errno.ENOSPC, Cause.FULL),
    (39, errno.EINVAL, Cause.FULL),
    (1295, errno.EINVAL, Cause.FULL),
    (5, errno.EACCES, Cause.FORBIDDEN_ON_WINDOWS),
    (19, errno.EACCES, Cause.FORBIDDEN_ON_WINDOWS),
    (32, errno.EACCES, Cause.HELD),
    (33, errno.EACCES, Cause.HELD),
    (1224, errno.EINVAL, Cause.HELD),
    (2, errno.ENOENT, Cause.GONE),
    (3, errno.ENOENT, Cause.GONE),
    (21, errno.EACCES, Cause.GONE),
    (53, errno.ENOENT, Cause.GONE),
    (206, errno.ENOENT, Cause.TOO_LONG),
    (123, errno.EINVAL, Cause.BAD_NAME),
    (267, errno.ENOTDIR, Cause.BAD_NAME),
    (1, errno.EINVAL, Cause.OTHER),
]
OF_POSIX = [
    (errno.ENOSPC, Cause.FULL),
    (errno.EDQUOT, Cause.FULL),
    (errno.EFBIG, Cause.FULL),
    (errno.EACCES, Cause.FORBIDDEN),
    (errno.EPERM, Cause.FORBIDDEN),
    (errno.EROFS, Cause.FORBIDDEN),
    (errno.EBUSY, Cause.HELD),
    (errno.ENOENT, Cause.GONE),
    (errno.ENAMETOOLONG, Cause.TOO_LONG),
    (errno.EINVAL, Cause.BAD_NAME),
    (errno.ENOTDIR, Cause.OTHER),
    (errno.EPIPE, Cause.OTHER),  # 32, which is a file in use on Windows
]


@pytest.mark.parametrize("number, code, cause", OF_WINDOWS)
def test_an_error_of_windows_is_read_by_its_own_number(number, code, cause):
    fault = system_fault(windows_error(number, code), on_windows=True)
    assert (fault.number, fault.words, fault.cause) == (number, "as Windows says it", cause)
    text = f"Error while serializing: I/O error: as Windows says it. (os error {number})"
    assert system_fault(SafetensorError(text), on_windows=True) == fault


@pytest.mark.parametrize("number, cause", OF_POSIX)
def test_an_error_elsewhere_is_read_by_the_number_of_c(number, cause):
    words = os.strerror(number)
    fault = system_fault(OSError(number, words), on_windows=False)
    assert (fault.number, fault.words, fault.cause) == (number, words, cause)
    text = f"Error while serializing: I/O error: {words} (os error {number})"
    assert system_fault(SafetensorError(text), on_windows=False) == fault


@pytest.mark.parametrize(
    "number, cause",
    [(errno.ENOSPC, Cause.FULL), (errno.EACCES, Cause.FORBIDDEN_ON_WINDOWS)],
)
def test_what_open_raises_on_windows_has_the_number_of_c_alone(number, cause):
    error = OSError(number, "words")
    error.winerror = None
    assert system_fault(error, on_windows=True).cause is cause


def test_other_errors_are_none_of_the_system():
    for error in (ValueError("x"), OSError("no number"), SafetensorError("InvalidHeader")):
        assert system_fault(error) is None
        with pytest.raises(type(error)), output_errors("file"):
            raise error


def test_what_another_program_holds_is_tried_again():
    """The causes for which files.py asks again are among those that say so."""
    for number, code, cause in OF_WINDOWS:
        held = cause is Cause.HELD or number == 5
        assert is_held(windows_error(number, code)) is held
    for number, cause in OF_POSIX:
        assert is_held(OSError(number, "")) is (cause is Cause.HELD)


def test_an_error_that_safetensors_raises_here_is_read(tmp_path):
    match = "or choose another.* Nothing that was there"
    with pytest.raises(OutputError, match=match), output_errors(tmp_path / "none" / "a"):
        save_file({"a": torch.ones(2)}, tmp_path / "none" / "a")
