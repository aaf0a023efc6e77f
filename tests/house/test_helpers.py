"""What several tests use lies in tests/helpers."""

import os
import re
import shlex

import pytest

from tests.helpers import surroundings
from tests.helpers.paths import TESTS


def test_no_test_file_imports_from_another():
    """Whoever changes a test changes that test alone."""
    found = [
        f"{path.relative_to(TESTS).as_posix()}: {line}"
        for path in sorted(TESTS.glob("*/*.py"))
        for line in re.findall(
            r"^\s*(?:from|import) tests\.\w+\.test_.*$", path.read_text("utf-8"), re.MULTILINE
        )
    ]
    assert not found


@pytest.mark.parametrize(
    "words, asks",
    [
        ("-m gpu", True),
        ("-m 'not slow' -n 2 -m 'gpu and not slow'", True),
        ("-m 'not slow' tests/anima", False),
        ("-m 'not gpu'", False),
    ],
)
def test_only_who_asks_for_tests_of_cards_sees_one(words, asks):
    assert surroundings.asks_for_cards(["pytest", *shlex.split(words)]) is asks


def test_this_session_sees_no_card():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
