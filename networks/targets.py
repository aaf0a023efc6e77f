"""Which modules are adapted, with what rank, alpha and learning rate, and which pattern chose them.

`target_modules` patterns choose Linears by suffix, glob or `re:` regex; exclude, include and
network_reg_* patterns are regexes that must match the whole module path. A pattern that matches
nothing is an error: it is a typing mistake that would otherwise train something else in silence. An
exclusion that matches nothing is a warning: what it leaves out may belong to another model.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from torch import nn

from library.errors import ConfigError, Problem
from library.utils import nearest_name
from networks.kinds.norm import Norm

logger = logging.getLogger(__name__)

Value = TypeVar("Value", float, str)
Module_co = TypeVar("Module_co", bound=nn.Module, covariant=True)


@dataclass(frozen=True)
class TargetRules:
    """What the user, or a family's default, asks for.

    targets:  patterns of Linears; () adapts no Linear
    exclude:  regexes of modules left out, norms included
    include:  regexes of Linears added whatever `targets` and `exclude` say
    prefixes: paths below which nothing is adapted, e.g. "llm_adapter."
    kinds:    regex -> word for a kind of adapter; the first that matches wins
    dims, alphas, lrs: regex -> value; the first that matches wins; rank 0 leaves a module out
    """

    targets: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    train_norm: bool = True
    kinds: tuple[tuple[str, str], ...] = ()
    dims: tuple[tuple[str, float], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    lrs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Target(Generic[Module_co]):
    """A module to adapt; rank, alpha, lr and kind are None where no network_reg_* pattern names it."""

    path: str
    module: Module_co
    rank: int | None = None
    alpha: float | None = None
    lr: float | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Selection:
    """The modules to adapt, in the model's order, and how many each pattern matched.

    added: paths of Linears that include_patterns alone reach
    """

    linears: tuple[Target[nn.Linear], ...]
    norms: tuple[Target[Norm], ...]
    matches: Mapping[str, int]
    added: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[Target[nn.Module], ...]:
        return (*self.linears, *self.norms)


class PatternTally:
    """Counts what each (option, pattern) matched, so that those matching nothing can be named."""

    def __init__(self, rules: TargetRules) -> None:
        self.options = {
            "target_modules": rules.targets,
            "exclude_patterns": rules.exclude,
            "include_patterns": rules.include,
            "network_reg_kinds": tuple(p for p, _ in rules.kinds),
            "network_reg_dims": tuple(p for p, _ in rules.dims),
            "network_reg_alphas": tuple(p for p, _ in rules.alphas),
            "network_reg_lrs": tuple(p for p, _ in rules.lrs),
        }
        self.counts: Counter[tuple[str, str]] = Counter()

    def match_any(self, option: str, path: str, test: Callable[[str, str], bool]) -> bool:
        """Whether any of the option's patterns matches; every one that does is counted."""
        found = [pattern for pattern in self.options[option] if test(pattern, path)]
        self.counts.update((option, pattern) for pattern in found)
        return bool(found)

    def unmatched(self, paths: Iterable[str]) -> list[Problem]:
        """One problem per pattern that matched nothing, with the name nearest to it."""
        parts = sorted({part for path in paths for part in name_parts(path)})
        problems = []
        for option, patterns in self.options.items():
            for pattern in patterns:
                if not self.counts[option, pattern]:
                    near = nearest_name(pattern.removeprefix("transformer."), parts)
                    hint = f" Did you mean {near}?" if near else UNMATCHED_HINTS[option]
                    message = f"matches no module of the model.{hint}"
                    problems.append(Problem(message, f"{option} {pattern!r}"))
        return problems


_REGEX_HINT = " It is a regular expression for the whole module path, e.g. .*self_attn.*"
UNMATCHED_HINTS = {
    "target_modules": " Write the end of a Linear's path (q_proj), a glob of the whole path"
    " (*.mlp.*), or re: and a regular expression.",
    "exclude_patterns": _REGEX_HINT,
    "include_patterns": _REGEX_HINT,
    "network_reg_kinds": _REGEX_HINT,
    "network_reg_dims": _REGEX_HINT,
    "network_reg_alphas": _REGEX_HINT,
    "network_reg_lrs": _REGEX_HINT,
}


def select_targets(
    linears: Mapping[str, nn.Linear], norms: Mapping[str, Norm], rules: TargetRules
) -> Selection:
    """Apply the rules to a model's Linears and norms. Raises ConfigError with every bad pattern."""
    check_regexes(rules)
    tally = PatternTally(rules)
    chosen: dict[str, nn.Linear] = {}
    added: list[str] = []
    for path, module in linears.items():
        excluded = tally.match_any("exclude_patterns", path, matches_regex)
        included = tally.match_any("include_patterns", path, matches_regex)
        if path.startswith(rules.prefixes):
            continue
        named = tally.match_any("target_modules", path, matches_target)
        if included or (named and not excluded):
            chosen[path] = module
            added += [] if named else [path]
    chosen_norms = [
        (path, module)
        for path, module in norms.items()
        if not tally.match_any("exclude_patterns", path, matches_regex)
        and rules.train_norm
        and not path.startswith(rules.prefixes)
    ]
    targets = [apply_reg_rules(path, module, rules, tally) for path, module in chosen.items()]
    norm_targets = [apply_lr_rules(path, module, rules, tally) for path, module in chosen_norms]
    problems = tally.unmatched([*linears, *norms])
    harmless = [p for p in problems if p.where.startswith("exclude_patterns ")]
    if len(problems) > len(harmless):
        raise ConfigError(problems, source="network_args")
    for problem in harmless:
        logger.warning("%s %s", problem.where, problem.message)
    matches = {f"{option} {p}": n for (option, p), n in sorted(tally.counts.items())}
    used = tuple(t for t in targets if t.rank != 0)
    return Selection(used, tuple(norm_targets), matches, tuple(added))


def check_regexes(rules: TargetRules) -> None:
    """Raise ConfigError with every pattern that is no regular expression."""
    if problems := regex_problems(PatternTally(rules).options):
        raise ConfigError(problems, source="network_args")


def regex_problems(patterns: Mapping[str, Iterable[str]]) -> list[Problem]:
    """One for each pattern, by option, that is no regular expression."""
    problems = []
    for option, pattern in ((option, p) for option, found in patterns.items() for p in found):
        if option == "target_modules" and not pattern.startswith("re:"):
            continue
        try:
            re.compile(pattern.removeprefix("re:") if option == "target_modules" else pattern)
        except re.error as error:
            problems.append(Problem(f"not a regular expression: {error}.", f"{option} {pattern!r}"))
    return problems


def apply_reg_rules(
    path: str, module: nn.Linear, rules: TargetRules, tally: PatternTally
) -> Target[nn.Linear]:
    rank = first_value("network_reg_dims", rules.dims, path, tally)
    alpha = first_value("network_reg_alphas", rules.alphas, path, tally)
    lr = first_value("network_reg_lrs", rules.lrs, path, tally)
    kind = first_value("network_reg_kinds", rules.kinds, path, tally)
    return Target(path, module, None if rank is None else int(rank), alpha, lr, kind)


def apply_lr_rules(
    path: str, module: Norm, rules: TargetRules, tally: PatternTally
) -> Target[Norm]:
    return Target(path, module, lr=first_value("network_reg_lrs", rules.lrs, path, tally))


def first_value(
    option: str, rules: tuple[tuple[str, Value], ...], path: str, tally: PatternTally
) -> Value | None:
    """The value of the first rule that matches the path; every matching rule is counted."""
    tally.match_any(option, path, matches_regex)
    return next((value for pattern, value in rules if matches_regex(pattern, path)), None)


def matches_regex(pattern: str, path: str) -> bool:
    return re.fullmatch(pattern, path) is not None


def matches_target(pattern: str, path: str) -> bool:
    """`re:` searches the path; a pattern with * or ? matches it whole; any other is its end.

    A leading `transformer.`, as diffusers users write it, is ignored.
    """
    if pattern.startswith("re:"):
        return re.search(pattern[3:], path) is not None
    pattern = pattern.removeprefix("transformer.")
    if "*" in pattern or "?" in pattern:
        return fnmatchcase(path, pattern)
    return path == pattern or path.endswith("." + pattern)


def name_parts(path: str) -> list[str]:
    """Every ending of a path: a.b.c, b.c, c."""
    words = path.split(".")
    return [".".join(words[start:]) for start in range(len(words))]
