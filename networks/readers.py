"""The programs that read adapter files, one row each, and what each of them makes of a file.

Only names and metadata are looked at: no tensor is read, and no model is needed. What a row says was
read in the program's code, of ComfyUI and diffusers also seen by running them. A program that drops
keys mostly says nothing, so that a file seems to work and does less than was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from networks.file_contents import Contents, Entry, FamilyFiles, entries_of
from networks.reader_rules import (
    COMFY_RULES,
    DIFFUSERS_RULES,
    FORGE_RULES,
    INVOKE_RULES,
    MANAGER_WANTS,
    SD_NEXT_RULES,
    SD_NEXT_WANTS,
    SWARM_WANTS,
    Effect,
    Rule,
    Want,
)


@dataclass(frozen=True)
class Reader:
    """A program. id: for programs, and the beginning of its findings' ids; name: for people

    rules: the first that hits a key decides what becomes of it; a key that none hits is applied
    wants: what it needs of the metadata
    """

    id: str
    name: str
    rules: tuple[Rule, ...] = ()
    wants: tuple[Want, ...] = ()


READERS = (
    Reader("comfyui", "ComfyUI", COMFY_RULES),
    Reader("forge_neo", "Forge Neo", FORGE_RULES),
    Reader("sd_next", "SD.Next", SD_NEXT_RULES, SD_NEXT_WANTS),
    Reader("invokeai", "InvokeAI", INVOKE_RULES),
    Reader("diffusers", "diffusers", DIFFUSERS_RULES),
    Reader("swarmui", "SwarmUI", COMFY_RULES, SWARM_WANTS),  # its ComfyUI applies the file
    Reader("lora_manager", "Lora Manager and Civitai", (), MANAGER_WANTS),  # they apply nothing
)


class Answer(Enum):
    """What a program makes of a file as a whole."""

    ALL = "all of it"
    PART = "a part of it"
    NONE = "nothing of it"


@dataclass(frozen=True)
class Finding:
    """One thing that a program does not do with a file as it stands there.

    id:      stable, such as invokeai.norms: translations and tests go by it
    what:    a noun phrase, of the keys or of the metadata
    keys:    those it is about, in the file's order; none for metadata
    modules: how many modules they belong to
    advice:  what to do, a sentence; "" when there is nothing
    """

    id: str
    effect: Effect
    what: str
    keys: tuple[str, ...] = ()
    modules: int = 0
    advice: str = ""

    @property
    def text(self) -> str:
        """E.g. drops differences of norms (156 keys of 156 modules)."""
        return f"{self.effect.value} {self.object}"

    @property
    def object(self) -> str:
        """What it is about, with how many there are."""
        count = f" ({_count(len(self.keys), 'key')} of {_count(self.modules, 'module')})"
        return f"{self.what}{count if self.keys else ''}"


@dataclass(frozen=True)
class Verdict:
    """What a program makes of a file.

    taken: how many modules it adapts
    """

    reader: Reader
    answer: Answer
    taken: int
    findings: tuple[Finding, ...]

    @property
    def text(self) -> str:
        """One line with all findings, e.g. InvokeAI: nothing of it; refuses the whole file for ..."""
        told: dict[Effect, list[str]] = {}
        for finding in self.findings:
            told.setdefault(finding.effect, []).append(finding.object)
        parts = [f"{effect.value} {', '.join(objects)}" for effect, objects in told.items()]
        return "; ".join([f"{self.reader.name}: {self.answer.value}", *parts])


def verdicts(
    keys: Iterable[str], metadata: Mapping[str, str], family: FamilyFiles
) -> list[Verdict]:
    """What each program makes of a file with these keys and this metadata, in the table's order.

    Keys and metadata may be anything; whether the model has the modules is not asked.
    """
    contents = Contents(tuple(entries_of(keys)), metadata, family)
    return [verdict(reader, contents) for reader in READERS]


def verdict(reader: Reader, contents: Contents) -> Verdict:
    rules = [rule for rule in reader.rules if rule.of_file(contents)]
    hits: dict[Rule, list[Entry]] = {}
    taken: list[Entry] = []
    for entry in contents.entries:
        rule = next((rule for rule in rules if rule.hits(entry, contents)), None)
        (taken if rule is None else hits.setdefault(rule, [])).append(entry)
    wanted = [want for want in reader.wants if want.lacks(contents)]
    refusals = [rule for rule in hits if rule.effect is Effect.REFUSES]
    found = [_finding(reader, rule, hits[rule]) for rule in rules if rule in hits]
    if refusals:
        found = [finding for finding in found if finding.effect is Effect.REFUSES]
    modules = 0 if refusals else len({entry.name for entry in taken if entry.is_factor})
    answer = Answer.NONE if not modules else Answer.PART if found else Answer.ALL
    missing = [Finding(f"{reader.id}.{w.id}", w.effect, w.what, advice=w.advice) for w in wanted]
    return Verdict(reader, answer, modules, (*found, *missing))


def lines(found: Sequence[Verdict]) -> list[str]:
    """The verdicts for people: those that take all in one line, then a line for each other."""
    whole = [v.reader.name for v in found if v.answer is Answer.ALL and not v.findings]
    told = [f"{', '.join(whole)}: all of it"] if whole else []
    return told + [v.text for v in found if v.answer is not Answer.ALL or v.findings]


def _finding(reader: Reader, rule: Rule, entries: Sequence[Entry]) -> Finding:
    keys = tuple(entry.key for entry in entries)
    modules = len({entry.name for entry in entries})
    return Finding(f"{reader.id}.{rule.id}", rule.effect, rule.what, keys, modules, rule.advice)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
