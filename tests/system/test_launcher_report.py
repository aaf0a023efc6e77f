"""The user's error under a launcher: told by one process, and the last words of torch's summary."""

import os

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from library.errors import ConfigError, Problem
from library.system.launcher_report import ERROR_FILE_VARIABLE, is_told_here

TEXT = str(ConfigError([Problem("is \udc80.", "a"), Problem("expected more.", "b")], source="目录"))


@pytest.fixture
def ranks(tmp_path):
    """The environment of each of two processes, as torchrun gives it."""
    files = [tmp_path / "attempt_0" / str(rank) / "error.json" for rank in range(2)]
    for file in files:
        file.parent.mkdir(parents=True)
    return [{ERROR_FILE_VARIABLE: str(file)} for file in files]


@pytest.mark.parametrize("first", [0, 1])
def test_one_process_tells_and_the_launcher_ends_with_it(ranks, first):
    assert is_told_here(TEXT, ranks[first])
    assert not is_told_here(TEXT, ranks[1 - first])
    failures = {n: ProcessFailure(n, 10 + n, 2, ranks[n][ERROR_FILE_VARIABLE]) for n in range(2)}
    told = str(ChildFailedError("anima_train_network.py", failures))
    shown = TEXT.replace("\n", "\n  ")  # as torch indents
    assert told.count(shown) == 1 and told.rstrip("=\n").endswith(shown)


def test_every_process_tells_an_error_of_its_own(ranks):
    assert is_told_here("one", ranks[0]) and is_told_here("another", ranks[1])


@pytest.mark.parametrize("place", [None, "", os.devnull, "no/such/folder/error.json"])
def test_without_a_launcher_that_reads_it_every_process_tells(place):
    environment = {} if place is None else {ERROR_FILE_VARIABLE: place}
    assert is_told_here(TEXT, environment) and is_told_here(TEXT, environment)
