# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = []
# ///
"""One command to a first result: install, make the demo, train a LoKr on it, show what it draws.

The work is in _quickstart.py; this file is one that every Python can read. The lines
above are for `uv run`: nothing is needed before it.
"""

import sys

import _launch

if __name__ == "__main__":
    sys.exit(_launch.as_module(__file__, "_quickstart"))
