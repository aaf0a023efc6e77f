"""Prompts for previews, which other programs keep among their options, as the file that sample_prompts names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.importers.draft import UNSET, Draft, Waiting

OPTIONS = {
    "width": "--w", "height": "--h", "steps": "--s", "cfg": "--l", "seed": "--d", "negative": "--n",
}  # fmt: skip
"""What a prompt's line may say behind the prompt."""


def write_prompts(
    draft: Draft,
    prompts: Sequence[Waiting],
    options: Mapping[str, Waiting | None],
    *,
    zeros: bool = False,
    off: str = "",
) -> None:
    """A line for each prompt, with the options behind it; told of all.

    prompts: texts, lists of them, or of {"prompt": text}
    options: by OPTIONS' names
    zeros:   0 is a value of an option; else it leaves it out
    off:     why nothing is drawn there; "" where something is
    """
    given = {name: waiting for name, waiting in options.items() if waiting}
    ending = [
        f"{OPTIONS[name]} {' '.join(str(waiting.value).split())}"
        for name, waiting in given.items()
        if waiting.value or (zeros and waiting.value == 0)
    ]
    lines = []
    for waiting in prompts:
        listed = waiting.value if isinstance(waiting.value, list) else [waiting.value]
        lines += [" ".join([*words, *ending]) for each in listed if (words := words_of(each))]
    for waiting in (*prompts, *given.values()):
        if lines and not off:
            content = "\n".join(lines) + "\n"
            draft.write(waiting.leaf, "sample_prompts", "sample_prompts.txt", content)
        else:
            draft.find(UNSET, waiting.leaf, why=off or "there are no prompts")


def words_of(prompt: Any) -> list[str]:
    return str(prompt.get("prompt", "") if isinstance(prompt, dict) else prompt).split()
