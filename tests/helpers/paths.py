"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"
SHARED = ROOT.parent / "shared"  # real tokenizers and layouts, where somebody has put them
