"""The text encoder inside the DiT, where adapters of it train: called from ids, in the DiT's own forward.

So whatever works on the DiT (several processes, checkpointing, one call that sees all that trains) works on
it too. It stands where ComfyUI's adapter files say, so that its modules have one name everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from library.memory.recomputation import recompute

PLACE = "text_encoders.qwen3_06b.transformer.model"
"""Where it stands in the DiT."""


def hold(model: nn.Module, encoder: nn.Module, recomputes: Callable[[], bool]) -> None:
    """Put transformers' Qwen3Model in its place; its layers are recomputed where `recomputes` says so."""
    *parents, name = PLACE.split(".")
    for parent in parents:
        model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    model.add_module(name, encoder)
    layers = encoder.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    for layer in layers:
        layer.forward = partial(run_layer, layer.forward, recomputes)


def held(model: nn.Module) -> nn.Module | None:
    """The text encoder that a model holds, if it does."""
    return model.get_submodule(PLACE) if hasattr(model, PLACE.partition(".")[0]) else None


def run_layer(
    forward: Callable[..., Tensor], recomputes: Callable[[], bool], hidden: Tensor, **more: Any
) -> Tensor:
    """A layer's output, of which the backward pass has only the input where it `recomputes`."""
    if not recomputes():
        return forward(hidden, **more)
    return recompute(partial(forward, **more), hidden)


def hidden_states(encoder: Callable[..., Any], ids: Tensor, mask: Tensor | None) -> Tensor:
    """(B, S) ids -> (B, S, D), after the final norm. mask: (B, S), 1 = real, padded at the right; None: all are.

    Masks are made here: transformers would read its own, and so wait for the device, in every step.
    """
    seen: object = mask
    if not getattr(encoder, "has_sliding_layers", False):
        # of a caption alone nothing is padded: without a mask attention is causal
        seen = {"full_attention": None if mask is None or len(ids) == 1 else causal_mask(mask)}
    output: Tensor = encoder(ids, attention_mask=seen, use_cache=False).last_hidden_state
    return output


def first_layer(encoder: Any, ids: Tensor) -> Tensor:
    """(B, S) ids, nothing padded -> (B, S, D), what the first layer makes: by the kernels of all layers."""
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    hidden = encoder.embed_tokens(ids)
    turns = encoder.rotary_emb(hidden, places)
    output: Tensor = encoder.layers[0](
        hidden, attention_mask=None, position_ids=places, position_embeddings=turns
    )
    return output


def causal_mask(mask: Tensor) -> Tensor:
    """(B, S), 1 = real, padded at the right -> (B, 1, S, S), true where a position sees another."""
    size = mask.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=mask.device).tril()
    return earlier & mask.bool()[:, None, None]
