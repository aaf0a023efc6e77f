"""What the user can put right: problems, the errors that carry them, and how they are shown.

A UserError is shown without a traceback and ends the program with exit code 2. Everything found
wrong at one stage travels in one error, so that the user mends a file once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unicodedata import category

EXIT_USER_ERROR = 2
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, direction, half a character, line ends


@dataclass(frozen=True)
class Problem:
    """One thing to put right.

    message: what was found, what was expected and what to do, as one or two sentences
    where:   the place inside `source`: "line 14  learning_rate = \"1e-4\"", a key, a picture's name
    source:  the file or the stage it belongs to; "" when there is none
    """

    message: str
    where: str = ""
    source: str = ""


class UserError(Exception):
    """Something the user can put right; holds one or several problems."""

    is_cause = True  # not what the end of another process led to, which has its own error

    def __init__(self, problems: str | Problem | Sequence[Problem], *, source: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        if isinstance(problems, Problem):
            problems = [problems]
        assert problems, "a UserError needs at least one problem"
        self.problems = tuple(p if p.source else replace(p, source=source) for p in problems)
        super().__init__(format_problems(type(self).__name__, self.problems))

    def __reduce__(self) -> tuple:
        """Whole through a pipe, from a process that loads pictures."""
        return type(self), (self.problems,)


class ConfigError(UserError):
    """Flags, train_args.toml or dataset.toml."""


class DatasetError(UserError):
    """Pictures, captions, caches."""


class ModelFileError(UserError):
    """Base models and tokenizers."""


class AdapterFileError(UserError):
    """LoRA and LoKr files."""


class ResumeError(UserError):
    """Training states."""


class OutputError(UserError):
    """Files that cannot be written: a full disk, a folder that is gone, something in the way."""


class Stopped(KeyboardInterrupt):
    """A signal that asks to stop, outside a run's loop; as Ctrl-C, no `except Exception` keeps it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def in_one_line(error: BaseException) -> str:
    """In one line what an error says, with its kind where its words are not for the user: KeyError: 'x'."""
    words = " ".join(str(error).split())
    if words and isinstance(error, (UserError, OSError)):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def format_problems(kind: str, problems: Sequence[Problem]) -> str:
    """The text shown to the user: one heading per source, one aligned line per problem.

    Names may come from anyone's file, so control characters are shown and not sent to the screen.
    """
    problems = [
        Problem(visible(p.message, keep="\n"), visible(p.where), visible(p.source))
        for p in problems
    ]
    if len(problems) == 1 and not problems[0].where:
        only = problems[0]
        return f"{kind}: {only.source + ': ' if only.source else ''}{only.message}"
    lines: list[str] = []
    for source in dict.fromkeys(p.source for p in problems):
        group = [p for p in problems if p.source == source]
        count = f"{len(group)} problem{'s' if len(group) > 1 else ''}"
        heading = f"{count} in {source}" if source else count
        lines.append(f"{kind}: {heading}" if not lines else heading)
        width = min(40, max(len(p.where) for p in group))
        lines += [
            f"  {p.where:<{width}}  {p.message}" if width else f"  {p.message}" for p in group
        ]
    return "\n".join(lines)


def visible(text: str, keep: str = "") -> str:
    """The text with what a terminal would act on, or an encoder choke on, as escapes."""
    if text.isprintable():
        return text
    return "".join(_escape(c) if category(c) in ACTING and c not in keep else c for c in text)


def as_utf8(text: str, *, backslash: str = "\\") -> str:
    """The text with what UTF-8 cannot hold as escapes: names from systems of another encoding."""
    return HALF_CHARACTER.sub(lambda found: _escape(found[0]).replace("\\", backslash), text)


def _escape(letter: str) -> str:
    """Python has U+DC80 to U+DCFF for the bytes 80 to FF of a name that is not UTF-8."""
    byte = ord(letter) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else letter.encode("unicode_escape").decode()
