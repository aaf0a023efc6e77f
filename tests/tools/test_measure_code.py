"""tools/measure_code.py: each figure of a small tree whose figures are known."""

import pytest

from library.errors import UserError
from tools._imports import Product, circles
from tools.measure_code import figures, main

LINES_OF_41 = "def long():\n" + "    print()\n" * 40
LINES_OF_40 = "async def short():\n" + "    print()\n" * 39
FILES = {
    "library/__init__.py": '"""The ground."""\n',
    "library/ground.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
    "    from library.room import chair\n\nHEIGHT = 3\n",
    "library/room/__init__.py": '"""A room."""\n',
    "library/room/chair.py": "from library.ground import HEIGHT\n\nNAME: str = HEIGHT\n",
    "networks/net.py": LINES_OF_41 + "\n\n" + LINES_OF_40,
    "networks/kernels.py": "import triton  # type: ignore\n\n\n@triton.jit\ndef kernel(x, y, z, by_row, by_column, SIZE): ...\n",
    "train.py": "import networks.net\n\n\ndef six(a, b, /, c, *, d, e, f): ...\n\n\n"
    "class A:\n    def five(self, a, b, c, d, e, *args, **kwargs): ...\n"
    "    def forward(ctx, a, b, c, d, e): ...\n",
    "tests/test_it.py": LINES_OF_41,  # no part of the product
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_the_figures_are_those_of_the_tree(tree):
    assert figures(Product(tree)) == {
        "files in library/ itself": 1,
        "files in all": 7,
        "folders": 3,
        "circles of imports": 1,
        "functions over 40 lines": 1,
        "functions of more than 5 parameters": 1,
        "kernels of more than 5 parameters": 1,
        "errors of mypy": "1",  # HEIGHT is no text
    }


def test_a_circle_through_imports_for_types_is_seen(tree):
    assert circles(Product(tree).arrows()) == [["library/ground.py", "library/room/chair.py"]]


def test_an_import_says_where_it_stands(tree):
    text = (
        "import os\nif TYPE_CHECKING:\n    import re\nelse:\n    from library import ground\n"
        "def f():\n    from .room.chair import NAME\n"
    )
    found = Product(tree).imports_of("library/new.py", text)
    assert [(i.module, i.line, i.typing_only, i.in_function) for i in found] == [
        ("os", 1, False, False),
        ("re", 3, True, False),
        ("library/ground.py", 5, False, False),
        ("library/room/chair.py", 7, False, True),
    ]


def test_a_root_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkout of this project"):
        main(["--root", str(tmp_path / "missing")])
