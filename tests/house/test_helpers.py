"""What several tests use lies in tests/helpers."""

import re

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
