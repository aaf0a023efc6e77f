"""Write docs/flags.md from the flag table.

python tools/make_flags_doc.py [--check]

--check writes nothing and exits 1 when the file differs.
"""

import sys

if (
    __name__ == "__main__" and not __package__
):  # run by path: start again, so that library/ is found
    import _launch

    sys.exit(_launch.as_module(__file__))

import argparse
from pathlib import Path

from library.anima_runtime.config_adapter import AnimaConfig
from library.anima_runtime.flags_in_chinese import REASONS, SENTENCES, TITLES
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.settings.options import Flag, flags_of
from library.system.program import run_main
from library.utils import atomic_write

TARGET = Path(__file__).resolve().parent.parent / "docs" / "flags.md"
INTRODUCTION = """\
# Flags / 参数

<!-- Written by tools/make_flags_doc.py from the flag table; edit the table, not this file. -->

**中文。** 下表是 `anima_train_network.py` 的全部参数，由程序中的参数表自动生成。每个参数既可以写在
命令行里，也可以写在 `--config_file` 的 TOML 文件里（去掉 `--`；分节名没有意义）。优先级：默认值 <
TOML < 命令行。名称、类型和默认值与 sd-scripts 相同；不同之处在说明中写明。

- 开关写 `--名称` 打开，`--no-名称` 关闭；TOML 中写 `true` 或 `false`。
- 列表在命令行中用空格分开，在 TOML 中写成 `["a=1", "b=2"]`。
- Windows 路径在 TOML 中请用单引号：`'C:\\models\\a.safetensors'`，或者用 `/`。
- 状态一栏：空白为有效；“无效” 可以写，但不起作用，设置时会提示一次；“拒绝” 设置即报错，因为忽略它会改变
  训练结果。
- 拼错的名称会报错并给出最接近的名称。所有错误一次列出，退出码为 2。

**English.** These are all flags of `anima_train_network.py`, generated from the program's own table. A flag
can stand on the command line or, without `--`, in the TOML file of `--config_file`, whose section names
mean nothing. Defaults < TOML < command line. Names, types and defaults are those of sd-scripts; where ours
differ, the meaning says so.

- A switch is turned on by `--name` and off by `--no-name`; in TOML, `true` or `false`.
- A list is separated by spaces on the command line and written `["a=1", "b=2"]` in TOML.
- Write Windows paths in TOML in single quotes, `'C:\\models\\a.safetensors'`, or with `/`.
- State: empty, where the flag acts; *no effect*: accepted, and named once when set; *refused*: an error when
  set, because leaving it out silently would change what is trained.
- A misspelt name is an error that offers the nearest one. All problems are listed at once; the exit code
  is 2.
"""
HEADER = (
    "| 参数 / flag | 类型 / type | 默认 / default | 可选 / choices | 含义 | meaning | 状态 / state |\n"
    "|---|---|---|---|---|---|---|\n"
)
KINDS = {bool: "开关 / switch", int: "整数 / whole number", float: "数 / number", str: "文字 / text"}


def document() -> str:
    """The whole file."""
    parts = [INTRODUCTION]
    for name, group in {**SHARED_GROUPS, "anima": AnimaConfig}.items():
        title = (group.__doc__ or group.__name__).split("\n")[0]
        both = title if title == TITLES[name] else f"{TITLES[name]} / {title}"
        rows = "".join(map(row, flags_of(group)))
        parts.append(f"\n## {both}\n\n{HEADER}{rows}")
    return "".join(parts)


def row(flag: Flag) -> str:
    """One flag as a line of its group's table."""
    cells = (
        ", ".join(f"`{name}`" for name in flag.names),
        kind(flag),
        "" if flag.default in (None, "") else f"`{shown(flag.default)}`",
        ", ".join(f"`{choice}`" for choice in flag.choices or ()),
        in_text(SENTENCES[flag.dest]),
        in_text(flag.help),
        in_text(state(flag)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def in_text(words: str) -> str:
    """Words in angle brackets would be taken for HTML."""
    return words.replace("<", "\\<")


def kind(flag: Flag) -> str:
    one, in_english = KINDS[flag.type].split(" / ")
    return f"{one}列表 / {in_english} list" if flag.many else KINDS[flag.type]


def shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def state(flag: Flag) -> str:
    """Why it does not act, in both languages; "" where it does."""
    if flag.refused:
        return f"拒绝：{REASONS[flag.dest]} / refused: {flag.refused}"
    if flag.ignored:
        return f"无效：{REASONS[flag.dest]} / no effect: {flag.ignored}"
    if flag.refuses:
        values = ", ".join(f"`{value}`" for value in flag.refuses)
        (reason,) = set(flag.refuses.values())
        return f"拒绝 {values}：{REASONS[flag.dest]} / refused: {reason}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args()
    if options.check:
        same = TARGET.exists() and TARGET.read_text(encoding="utf-8") == document()
        print(f"{TARGET} is up to date" if same else f"{TARGET} differs; run this without --check")
        return 0 if same else 1
    with atomic_write(TARGET) as temporary:
        temporary.write_text(document(), encoding="utf-8", newline="\n")
    print(f"written: {TARGET}")
    return 0


if __name__ == "__main__":
    run_main(main)
