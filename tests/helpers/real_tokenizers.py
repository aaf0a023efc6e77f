"""The marker of tests that read the real tokenizers, which are too large to lie in the checkout."""

import pytest

from tests.helpers.paths import SHARED

needs_real = pytest.mark.skipif(
    not (SHARED / "tokenizers").is_dir(), reason="the real tokenizers are not in ../shared"
)
