# -*- coding: utf-8 -*-
"""Start a tool again as a module of the project, so that it can import library/.

`python tools/x.py` puts tools/ on Python's path, not the project's root. Standard library only, and
written so that every Python can read it: an unsupported one is told so in one sentence.
"""

import os
import subprocess
import sys

SUPPORTED = ((3, 10), (3, 13))


def python_problem(version):
    """Why a Python (major, minor) cannot be used, in one sentence, or None."""
    if SUPPORTED[0] <= tuple(version) <= SUPPORTED[1]:
        return None
    return (
        "Python %d.%d is not supported: install Python 3.10, 3.11, 3.12 or 3.13 and run the command "
        "with it. / 不支持此 Python 版本，请安装 3.10、3.11、3.12 或 3.13。" % tuple(version)
    )


def as_module(file, module=None):
    """Run a tool, given by its path, as `python -m tools.<module>` in this folder.

    module: the tool's own name if None. Returns its exit code (128 + the signal's number if a signal
    ended it), or 1 for a Python that is not supported.
    """
    problem = python_problem(sys.version_info[:2])
    if problem:
        sys.stderr.write(problem + "\n")
        return 1
    root = os.path.dirname(os.path.dirname(os.path.abspath(file)))
    module = module or os.path.splitext(os.path.basename(file))[0]
    # -P keeps the current folder, which may hold another `tools`, off the path (Python 3.11+).
    options = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable] + options + ["-m", "tools." + module] + sys.argv[1:]
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=path))
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the tool too; its own end is waited for
            continue
        return code if code >= 0 else 128 - code
