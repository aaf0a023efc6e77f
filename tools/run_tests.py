# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = []
# ///
"""One command to the whole test suite, in the environment that quickstart makes.

The work is in _run_tests.py; this file is one that every Python can read. The lines
above are for `uv run`: nothing is needed before it.
"""

import sys

import _launch

if __name__ == "__main__":
    sys.exit(_launch.as_module(__file__, "_run_tests"))
