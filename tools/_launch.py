"""Start a tool again as a module of the project, so that it can import library/.

`python tools/x.py` puts tools/ on Python's path, not the project's root. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def as_module(file: str) -> int:
    """Run `file`, a tool, as `python -m tools.<name>` in this folder with these arguments.

    Returns its exit code (128 + the signal's number if a signal ended it).
    """
    root = Path(file).resolve().parent.parent
    # -P keeps the current folder, which may hold another `tools`, off the path (Python 3.11+).
    options = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable, *options, "-m", f"tools.{Path(file).stem}", *sys.argv[1:]]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the tool too; its own end is waited for
            continue
        return code if code >= 0 else 128 - code
