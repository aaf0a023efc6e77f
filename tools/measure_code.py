"""Figures of the code itself: files, folders, circles of imports, long functions, types that fail.

python tools/measure_code.py               this checkout
python tools/measure_code.py --root ../old another one, to compare with
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and __package__ in (None, ""):
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from library.errors import UserError
from library.system.program import run_main
from tools._imports import Product, circles

ROOT = Path(__file__).resolve().parent.parent
LONG_FUNCTION, MANY_PARAMETERS = 40, 5


def functions(product: Product) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in product.files:
        for node in ast.walk(ast.parse(product.source(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller may give: self, cls, *args and **kwargs are not counted."""
    found = function.args
    names = [arg.arg for arg in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def mypy_errors(root: Path) -> str:
    if find_spec("mypy") is None:
        return "not counted: mypy is not installed"
    command = [sys.executable, "-m", "mypy", "--no-incremental", *sorted(entries(root))]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    last = (ran.stdout.strip().splitlines() or [ran.stderr.strip()])[-1]
    found = re.match(r"Found (\d+) errors?", last)
    return found[1] if found else "0" if last.startswith("Success") else last


def entries(root: Path) -> list[str]:
    """What is checked: the folders and the entries."""
    return ["library", "networks", "tools", *(path.name for path in root.glob("*.py"))]


def figures(product: Product) -> dict[str, object]:
    folders = {str(Path(path).parent) for path in product.files} - {"."}
    long = [node for _, node in functions(product) if length(node) > LONG_FUNCTION]
    many = [node for _, node in functions(product) if parameters(node) > MANY_PARAMETERS]
    own = [path for path in product.files if path.startswith("library/") and path.count("/") == 1]
    return {
        "files in library/ itself": len([path for path in own if "__init__" not in path]),
        "files in all": len(product.files),
        "folders": len(folders),
        "circles of imports": len(circles(product.arrows())),
        f"functions over {LONG_FUNCTION} lines": len(long),
        f"functions of more than {MANY_PARAMETERS} parameters": len(many),
        "errors of mypy": mypy_errors(product.root),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/measure_code.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    root = parser.parse_args().root.resolve()
    if not (root / "library").is_dir():
        raise UserError(f"--root {root}: no checkout of this project. Name its top folder.")
    for name, value in figures(Product(root)).items():
        print(f"{name:<36} {value}")
    return 0


if __name__ == "__main__":
    run_main(main)
