"""Figures of the code itself: files, folders, circles of imports, long functions, types that fail.

python tools/measure_code.py               this checkout
python tools/measure_code.py --root ../old another one, to compare with

Kernels of Triton are functions like others, but for their parameters, which have a figure of their own:
Triton takes pointers, strides and sizes one by one, so that there is no object to group them in.
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
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from library.errors import UserError
from library.system.program import run_main
from tools._imports import FOLDERS, Product, circles

ROOT = Path(__file__).resolve().parent.parent
LONG_FUNCTION, MANY_PARAMETERS = 40, 5


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(product: Product) -> Iterator[Function]:
    for path in product.files:
        for node in ast.walk(product.tree(path)):
            if isinstance(node, Function):
                yield node


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    """How many a caller may give: self, cls, autograd's ctx, *args and **kwargs are not counted."""
    found = function.args
    names = [arg.arg for arg in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls", "ctx")])


def is_kernel(function: Function) -> bool:
    return any(ast.unparse(each) == "triton.jit" for each in function.decorator_list)


def mypy_errors(root: Path) -> str:
    """How many mypy finds without a cache, under the settings of `root`; else why there is no count."""
    if find_spec("mypy") is None:
        return "not counted: mypy is not installed"
    command = [sys.executable, "-m", "mypy", "--no-incremental", *entries(root)]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    last = (ran.stdout.strip().splitlines() or [ran.stderr.strip()])[-1]
    found = re.match(r"Found (\d+) errors?", last)
    return found[1] if found else "0" if last.startswith("Success") else last


def entries(root: Path) -> list[str]:
    """The folders of the product that are there, and the files beside them."""
    folders = [folder for folder in FOLDERS if (root / folder).is_dir()]
    return [*folders, *sorted(path.name for path in root.glob("*.py"))]


def figures(product: Product) -> dict[str, int | str]:
    """Each figure by its name."""
    folders = {str(Path(path).parent) for path in product.files} - {"."}
    found = list(functions(product))
    long = [function for function in found if length(function) > LONG_FUNCTION]
    many = [function for function in found if parameters(function) > MANY_PARAMETERS]
    kernels = sum(map(is_kernel, many))
    modules = [path for path in product.files if not path.endswith("__init__.py")]
    return {
        "files in library/ itself": sum(Path(path).parent == Path("library") for path in modules),
        "files in all": len(product.files),
        "folders": len(folders),
        "circles of imports": len(circles(product.arrows())),
        f"functions over {LONG_FUNCTION} lines": len(long),
        f"functions of more than {MANY_PARAMETERS} parameters": len(many) - kernels,
        f"kernels of more than {MANY_PARAMETERS} parameters": kernels,
        "errors of mypy": mypy_errors(product.root),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/measure_code.py", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    root = parser.parse_args(argv).root.resolve()
    if not (root / "library").is_dir():
        raise UserError(f"--root {root}: no checkout of this project. Name its top folder.")
    for name, value in figures(Product(root)).items():
        print(f"{name:<36} {value}")
    return 0


if __name__ == "__main__":
    run_main(main)
