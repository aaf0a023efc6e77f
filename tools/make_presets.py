"""Write the presets in configs/presets/ from their table.

python tools/make_presets.py

由表格生成 configs/presets/ 里的预设。
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
from collections.abc import Sequence

from library.settings.presets import FOLDER
from library.system.program import run_main
from tools._preset_table import presets


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(
        prog="make_presets.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    FOLDER.mkdir(exist_ok=True)
    for name, text in presets().items():
        (FOLDER / f"{name}.toml").write_text(text, encoding="utf-8", newline="\n")
    print(f"written: {len(presets())} presets in {FOLDER}")


if __name__ == "__main__":
    run_main(main)
