"""Text contexts made ahead: where the LLM adapter does not train, it need not run in every step.

In a batch of several captions the shorter ones are padded, and the LLM adapter then rounds otherwise than
for one caption alone. Hence contexts are made ahead only where every batch has one picture: there
they are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from library.device_utils import clean_memory_on_device

if TYPE_CHECKING:
    from library.anima_backend.modelling.dit import Anima
    from library.data.data_types import TextOutputs
    from library.data.dataset_config import DatasetGroupConfig

LLM_ADAPTER = "llm_adapter."


def adapts_text(adapted: Iterable[str]) -> bool:
    """Whether the LLM adapter is among the modules at these paths, or has one of them."""
    return any(path.startswith(LLM_ADAPTER) for path in adapted)


def can_be_made_ahead(adapted: Iterable[str], datasets: DatasetGroupConfig) -> bool:
    """Whether every step would make the same context of a caption. adapted: paths of modules."""
    is_alone = all(dataset.batch_size == 1 for dataset in datasets.datasets)
    return is_alone and not adapts_text(adapted)


@torch.no_grad()
def prompt_context(model: Anima, outputs: TextOutputs) -> Tensor:
    """(1, max(512, T), X) of a prompt to draw, by the model's LLM adapter as it is now.

    outputs: of AnimaTextEncodingStrategy.encode_prompt. In the model's dtype, where the model computes;
    an LLM adapter that waits elsewhere goes back there.
    """
    home = next(model.llm_adapter.parameters()).device
    model.llm_adapter.to(model.device)
    names = "qwen_hidden", "t5_ids", "t5_weights"
    hidden, ids, weights = (outputs[name][None].to(model.device) for name in names)
    context = model.preprocess_text_embeds(hidden, ids, t5_weights=weights)
    model.llm_adapter.to(home)
    return context


class TextContexts:
    """The frozen LLM adapter of a model, which is in the host's memory while it rests."""

    def __init__(self, model: Anima) -> None:
        self.model = model

    @torch.no_grad()
    def make(self, outputs: TextOutputs) -> TextOutputs:
        """context (T, X) of a caption's outputs, on the CPU, in the model's dtype."""
        device = self.model.device
        self.model.llm_adapter.to(device)
        names = "qwen_hidden", "t5_ids", "t5_mask"
        hidden, ids, mask = (outputs[name][None].to(device) for name in names)
        real = torch.ones(hidden.shape[:2], dtype=torch.long, device=device)
        context = self.model.preprocess_text_embeds(hidden, ids, qwen_mask=real, t5_mask=mask)
        return {"context": context[0, : ids.shape[1]].cpu().clone()}

    def rest(self) -> None:
        if self.model.device.type != "cpu":
            self.model.llm_adapter.cpu()
            clean_memory_on_device(self.model.device)
