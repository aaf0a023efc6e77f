"""A start script (.sh, .bat, .ps1) as the options of its training command. It is read, never run.

Words are split as the shell does it. Variables are replaced by what the same file assigns to them,
nothing else is: an option that needs more is named, and so is what conditions and loops assign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from library.errors import ConfigError
from library.settings.config_text import split_options

SCRIPT = re.compile(r"(^|[\\/])((anima_)?train_network|anima_train)\.py$")
OF_MODELS = re.compile(r"(^|[\\/])anima_train\.py$")
NAME = r"[A-Za-z_]\w*"
NO_OPTION = "words"
MOST_WORDS, MOST_LETTERS = 5000, 200_000


@dataclass(frozen=True)
class Dialect:
    """How a shell reads a line.

    goes_on:  the last character of a line that goes on in the next
    escape:   before a character that is meant as it is, outside quotes
    literal, quotes: in which nothing, and in which variables are replaced
    variable: its groups are the name; without a group it is something that would have to be run
    assigns:  a line that gives a variable its value: (name, value)
    comment:  what begins a line without effect
    ends:     what ends a command, or sends its output elsewhere
    opens, closes: a line that begins and one that ends a condition, a loop or a function
    folds:    capital letters do not matter in names
    """

    goes_on: str
    escape: str
    literal: str
    quotes: str
    variable: re.Pattern[str]
    assigns: re.Pattern[str]
    comment: re.Pattern[str]
    ends: str
    opens: re.Pattern[str]
    closes: re.Pattern[str]
    folds: bool = True

    def called(self, name: str) -> str:
        return name.lower() if self.folds else name


POSIX = Dialect(
    "\\", "\\", "'", '"',
    re.compile(rf"\$({NAME})|\$\{{({NAME})(?:\[[@*]\])?\}}|\$\{{[^}}]*\}}|\$\(\(.*?\)\)|\$\([^)]*\)|`[^`]*`|\$[0-9@*#?]"),
    re.compile(rf"(?:export\s+|local\s+|readonly\s+|declare\s+)?({NAME})(\+?)=(.*)", re.DOTALL),
    re.compile(r"#"), "|;&<>",
    re.compile(r"(if|for|while|until|case|select|function)\b|[\w-]+\s*\(\)\s*\{?$"),
    re.compile(r"(?:.*;\s*)?(fi|done|esac|\})(\s.*|;.*)?$", re.DOTALL), folds=False,
)  # fmt: skip
BATCH = Dialect(
    "^", "^", "", '"', re.compile(rf"%({NAME})%|!({NAME})!|%~?\w+"),
    re.compile(rf"@?set\s+(?:/a\s+)?\"?({NAME})()=(.*?)\"?\s*", re.DOTALL | re.IGNORECASE),
    re.compile(r"@?rem\b|::|@echo\b|echo\b", re.IGNORECASE), "|&<>",
    re.compile(r"(if|for)\b|.*\($", re.IGNORECASE), re.compile(r"\)|(if|for)\b.*[^(]$", re.IGNORECASE),
)  # fmt: skip
POWERSHELL = Dialect(
    "`", "`", "'", '"', re.compile(rf"\$(?:env:)?({NAME})|\$\{{({NAME})\}}|@({NAME})|\$\([^)]*\)"),
    re.compile(rf"\$(?:env:)?({NAME})\s*(\+?)=\s*(.*)", re.DOTALL),
    re.compile(r"#"), "|;&<>",
    re.compile(r".*\{$"), re.compile(r"\}"),
)  # fmt: skip
DIALECTS = {".sh": POSIX, ".bat": BATCH, ".cmd": BATCH, ".ps1": POWERSHELL}


@dataclass
class Word:
    """A word, and what in it could not be replaced. is_end: it ends the command before it"""

    text: str = ""
    unknown: list[str] = field(default_factory=list)
    is_end: bool = False


Variables = Mapping[str, list[Word]]


def read_script(text: str, path: Path) -> dict[str, Any]:
    """The options of the one training command of a start script, as a document.

    A value is a text, a list of texts, or true for an option without one. "unresolved" holds options
    that need what the file does not hold, "conditional" what conditions and loops assign, "launcher"
    the options of the launcher. Raises ConfigError where there is no such command, or several.
    """
    reader = ScriptReader(DIALECTS.get(path.suffix.lower(), POSIX))
    for line in logical_lines(text, reader.dialect):
        reader.take(line)
    if len(reader.commands) != 1:
        count = f"{len(reader.commands)} commands" if reader.commands else "no command"
        raise ConfigError(
            f"has {count} with anima_train_network.py or train_network.py: expected one. "
            "It is read as text and not run."
        )
    conditional = {"conditional": reader.conditional} if reader.conditional else {}
    return options_of(reader.commands[0]) | conditional


class ScriptReader:
    """Goes through a script: variables, training commands, and what is assigned on a condition."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.variables: dict[str, list[Word]] = {}
        self.commands: list[list[Word]] = []
        self.conditional: dict[str, str] = {}
        self.depth = 0

    def take(self, line: str) -> None:
        opens, closes = self.dialect.opens.match(line), self.dialect.closes.match(line)
        words = split(line, self.dialect, self.variables)
        commands = [each for each in segments(words) if len(each) > 1 and trains(each)]
        found = (
            None if commands else self.dialect.assigns.fullmatch(line)
        )  # A=1 may begin a command
        self.commands += commands
        self.depth += bool(opens)
        if found and self.depth:
            self.keep_conditional(found[1], line)
        elif found:
            self.assign(found[1], found[3], more=bool(found[2]))
        elif opens and closes:
            for name in re.findall(rf"\b({NAME})\+?=", line):
                self.keep_conditional(name, line)
        self.depth = max(0, self.depth - bool(closes))

    def assign(self, name: str, value: str, *, more: bool) -> None:
        name = self.dialect.called(name)
        before = self.variables.get(name, []) if more else []
        self.variables[name] = [*before, *assigned(value, self.dialect, self.variables)]
        if len(self.variables[name]) > MOST_WORDS:
            raise ConfigError(f"has a variable of over {MOST_WORDS} words.")

    def keep_conditional(self, name: str, line: str) -> None:
        before = self.conditional.get(name)
        self.conditional[name] = f"{before}; {line}" if before else line


def segments(words: list[Word]) -> Iterator[list[Word]]:
    """The commands of a line."""
    found: list[Word] = []
    for word in words:
        if word.is_end:
            yield found
            found = []
        else:
            found.append(word)
    yield found


def trains(words: list[Word]) -> bool:
    return any(SCRIPT.search(word.text) for word in words)


def options_of(words: list[Word]) -> dict[str, Any]:
    """The options after the training program; what stands before it is the launcher's."""
    start = next(n for n, word in enumerate(words) if SCRIPT.search(word.text))
    launcher = {name.lstrip("-"): joined(None, values) for name, values in
                split_options([word.text for word in words[:start]]) if name}  # fmt: skip
    options: dict[str, Any] = {}
    unresolved: dict[str, Any] = {}
    unknown = {word.text for word in words if word.unknown}
    for name, values in split_options([word.text for word in words[start + 1 :]]):
        plain = name.lstrip("-") or NO_OPTION
        open_ones = [v for v in values if v in unknown or f"{name}={v}" in unknown]
        if open_ones and values[0] not in open_ones:  # a value, and then what may be more options
            unresolved[NO_OPTION] = joined(unresolved.get(NO_OPTION), open_ones)
            values, open_ones = [v for v in values if v not in open_ones], []
        place = unresolved if open_ones or plain == NO_OPTION else options
        place[plain] = joined(place.get(plain), values)
    program = "anima_train.py" if OF_MODELS.search(words[start].text) else ""
    extra = {"unresolved": unresolved, "launcher": launcher, "program": program}
    return options | {name: table for name, table in extra.items() if table}


def words_document(text: str) -> dict[str, Any]:
    """The options in a text that stands at the end of a command line."""
    return options_of([Word("train_network.py"), *split(text, POSIX, {})])


def joined(before: Any, values: list[str]) -> Any:
    """The value of an option: true without a word, a text, or the list of all where it is given again."""
    if not values:
        return before or True
    if before is None or before is True:
        return values if len(values) > 1 else values[0]
    return [*(before if isinstance(before, list) else [before]), *values]


def logical_lines(text: str, dialect: Dialect) -> Iterator[str]:
    """Lines with those that they go on in, and arrays in ( ) as one; without comments."""
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if dialect.comment.match(line):
            continue
        if line.endswith(dialect.goes_on) and not line.endswith(dialect.goes_on * 2):
            pending += line[:-1] + " "
            continue
        pending += line
        if re.search(r"=\s*@?\(", pending) and pending.count("(") > pending.count(")"):
            pending += " "
            continue
        if pending.strip():
            yield pending.strip()
        pending = ""
    if pending.strip():
        yield pending.strip()


def assigned(value: str, dialect: Dialect, variables: Variables) -> list[Word]:
    """The words that a variable stands for: one, or those of an array."""
    value = value.strip()
    if found := re.fullmatch(r"@?\((.*)\)", value, re.DOTALL):
        inner = found[1].replace(",", " ") if dialect is POWERSHELL else found[1]
        return split(inner, dialect, variables)
    if dialect is BATCH:
        return split(f'"{value}"', dialect, variables)
    return split(value, dialect, variables)[:1] or [Word()]


def split(line: str, dialect: Dialect, variables: Variables) -> list[Word]:
    """The words of a line, variables replaced."""
    return Splitter(line, dialect, variables).words()


class Splitter:
    """Splits one line. Raises ConfigError where variables in variables grow beyond any command."""

    def __init__(self, line: str, dialect: Dialect, variables: Variables) -> None:
        self.line, self.dialect, self.variables = line, dialect, variables
        self.found: list[Word] = []
        self.word: Word | None = None
        self.quote = ""
        self.is_empty = False
        self.at = 0
        self.size = 0

    def words(self) -> list[Word]:
        while self.at < len(self.line):
            is_literal = self.quote and self.quote in self.dialect.literal
            found = None if is_literal else self.dialect.variable.match(self.line, self.at)
            if found:
                self.replace(found)
            elif self.line[self.at] == "#" and self.begins_comment():
                break
            else:
                self.letter(self.line[self.at])
        self.end()
        return self.found

    def begins_comment(self) -> bool:
        return not self.quote and self.word is None and self.dialect is not BATCH

    def letter(self, letter: str) -> None:
        """One character of the line, or two where the first is the escape."""
        dialect = self.dialect
        self.at += 1
        if letter == dialect.escape and not (self.quote and self.quote in dialect.literal) and (
            follows := self.line[self.at : self.at + 1]
        ):  # fmt: skip
            if self.quote and follows not in (self.quote, letter, "$", "`"):
                follows = letter + follows  # between quotes it is a character as any other
            self.add(follows)
            self.at += 1
        elif self.quote:
            if letter == self.quote:
                self.quote = ""
            else:
                self.add(letter)
        elif letter in dialect.literal + dialect.quotes:
            self.quote = letter
            self.add("")
        elif letter.isspace():
            self.end()
        elif letter in dialect.ends:
            self.end_command(letter)
        else:
            self.add(letter)

    def replace(self, found: re.Match[str]) -> None:
        """A variable by its words; outside quotes a text with spaces is several, as in the shell."""
        name = next((group for group in found.groups() if group), "")
        values = self.variables.get(self.dialect.called(name))
        self.at = found.end()
        if values is None or any(value.unknown for value in values):
            self.add(found[0])
            assert self.word, "add made one"
            self.word.unknown.append(found[0])
            return
        texts = [value.text for value in values]
        self.is_empty = not texts  # an array without words is none, between quotes neither
        if not self.quote and len(texts) == 1 and self.dialect is not POWERSHELL:
            texts = re.split(r"\s+", texts[0])
        for number, each in enumerate(texts):
            if number:
                self.end()
            self.add(each)

    def add(self, text: str) -> None:
        self.size += len(text)
        if self.size > MOST_LETTERS or len(self.found) > MOST_WORDS:
            raise ConfigError(
                f"has a command of over {MOST_WORDS} words or {MOST_LETTERS} characters."
            )
        self.word = self.word or Word()
        self.word.text += text

    def end_command(self, letter: str) -> None:
        """`2>` takes its number with it."""
        if self.word and not (letter in "<>" and self.word.text.isdecimal()):
            self.found.append(self.word)
        self.word = None
        self.found.append(Word(letter, is_end=True))

    def end(self) -> None:
        if self.word and not (self.is_empty and not self.word.text):
            self.found.append(self.word)
        self.word, self.is_empty = None, False
