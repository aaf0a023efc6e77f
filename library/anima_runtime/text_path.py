"""How text comes to a DiT's blocks, by the shapes on its way: from the text encoder through the LLM adapter.

A model of another family may hold a DiT of the same layout behind another text encoder; every way in which
its path is another is told together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from library.anima_backend.modelling.params import Shapes
from library.anima_runtime.key_mapping import ADAPTER_PREFIX
from library.anima_runtime.tokenizer_assets import KINDS

READS = "blocks.0.cross_attn.k_proj.weight"
"""Of the DiT, and of the LLM adapter: (its own width, the width of what it reads)."""
TABLE = "embed.weight"
"""Of the LLM adapter: (T5 ids, the width of what it gives)."""


@dataclass(frozen=True)
class TextEncoderSize:
    """file: or folder; rows: of its table, that is how many ids it reads; width: of its states"""

    file: str
    rows: int
    width: int


def text_differences(dit: Shapes, encoder: TextEncoderSize | None) -> Iterator[str]:
    """In what text reaches this DiT otherwise than it does Anima's; each without a full stop.

    dit:     shapes by module name, the LLM adapter's among them
    encoder: None where it is not known
    """
    read = dit.get(READS, ())
    given, source = dit.get(ADAPTER_PREFIX + TABLE, ()), dit.get(ADAPTER_PREFIX + READS, ())
    if not any(name.startswith(ADAPTER_PREFIX) for name in dit):
        yield "it has no LLM adapter (if it is in a file of its own, give that with --llm_adapter_path)"
    if len(given) == 2 and given[0] > (known := KINDS["t5"].real_rows):
        yield f"its LLM adapter has a table of {given[0]} token ids, T5's {known}"
    if len(given) == 2 and len(read) == 2 and given[1] != read[1]:
        yield f"its LLM adapter gives text {given[1]} wide, and its blocks read text {read[1]} wide"
    if encoder is None:
        return
    if len(source) == 2 and source[1] != encoder.width:
        yield (
            f"its LLM adapter reads a text encoder {source[1]} wide, and {encoder.file} is "
            f"{encoder.width} wide"
        )
    if encoder.rows > (known := KINDS["qwen"].real_rows):
        yield f"{encoder.file} has a table of {encoder.rows} token ids, Qwen3's {known}"
