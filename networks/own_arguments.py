"""The arguments that single kinds of adapter have, of all kinds that one network trains.

A network is of one kind, that of its --network_module; network_reg_kinds names others for some modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from library.errors import Problem
from networks.arguments import argument_text, read_words
from networks.kinds.decomposed import without_magnitudes
from networks.kinds.kind import FULL_MATRIX_DIM, KindArguments, Kinds, Request
from networks.kinds.linear import LinearAdapter

OPTION = "network_reg_kinds"


@dataclass(frozen=True)
class OwnArguments:
    """kind: that of the network; by_kind: the arguments of each kind that it trains, this one's first"""

    kind: str
    by_kind: Mapping[str, KindArguments]

    @property
    def main(self) -> KindArguments:
        return self.by_kind[self.kind]

    def of(self, kind: str | None) -> KindArguments:
        """Those of a kind; None is the network's."""
        return self.by_kind[kind or self.kind]

    def for_request(self, request: Request) -> OwnArguments:
        """The arguments as the flags change them."""
        changed = {name: own.for_request(request) for name, own in self.by_kind.items()}
        return replace(self, by_kind=changed)

    def plain(self) -> OwnArguments:
        """The same without what was given."""
        return OwnArguments(self.kind, {self.kind: type(self.main)()})

    def told(self) -> dict[str, str]:
        """As metadata: all of them."""
        return {
            field.name: argument_text(getattr(own, field.name))
            for own in self.by_kind.values()
            for field in fields(own)
        }

    def remarks(
        self, adapters: Sequence[LinearAdapter], request: Request, kinds: Kinds
    ) -> Iterator[str]:
        """What was asked for and has no effect on these adapters; sentences to log."""
        for name, own in self.by_kind.items():
            of_kind = [each for each in adapters if kind_of_adapter(each, kinds) == name]
            yield from own.remarks(of_kind, request)


def kind_of_adapter(adapter: LinearAdapter, kinds: Kinds) -> str:
    """Of what is trained, whether or not magnitudes stand beside it."""
    return kinds.among(without_magnitudes(adapter).factors())[0].name


def kinds_by_word(kinds: Kinds) -> dict[str, str]:
    """How the trained kinds are called in arguments."""
    return {training.module: name for name, training in kinds.trained.items()}


def kinds_of(kind: str, values: Mapping[str, Any], kinds: Kinds) -> tuple[list[str], list[Problem]]:
    """The kinds that a network of this kind trains with these arguments; what is wrong with the words.

    What cannot be read at all is told where all arguments are read.
    """
    try:
        pairs = read_words(values.get(OPTION) or ())
    except ValueError:
        pairs = ()
    words, found, problems = kinds_by_word(kinds), [kind], []
    for pattern, word in pairs:
        if word.lower() in words:
            found.append(words[word.lower()])
        else:
            message = f"no such kind. Known: {', '.join(words)}."
            problems.append(Problem(message, f"{OPTION} {pattern}={word}"))
    return list(dict.fromkeys(found)), problems


def too_full(
    used: Mapping[str, type[KindArguments]], ranks: Mapping[str, float], module: str
) -> list[Problem]:
    """Ranks that ask for full matrices, where a kind has none.

    ranks: where one is asked for -> rank; module: the --network_module that has them
    """
    narrow = [name for name, own in used.items() if not own.FULL_MATRICES]
    if not narrow:
        return []
    advice = f"use --network_module {module}, or a rank such as 16"
    if len(narrow) < len(used):
        advice = "write lokr_full_matrix=true, and a rank such as 16"
    message = f"asks for full matrices, which only LoKr has and {' and '.join(narrow)} not: {advice}."
    return [Problem(message, where) for where, rank in ranks.items() if rank >= FULL_MATRIX_DIM]


def undecomposed(used: Mapping[str, type[KindArguments]]) -> list[Problem]:
    """The kinds beside which DoRA's magnitudes cannot stand."""
    turning = [name for name, own in used.items() if not own.ADDS]
    message = "stands beside what is added to a weight; {} adds nothing. Remove it."
    return [Problem(message.format(name), "dora_wd") for name in turning]
