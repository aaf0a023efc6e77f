"""Anima's side of one training step: the settings of the path, and the one call of the DiT."""

from __future__ import annotations

from torch import Tensor, nn

from library.flow_matching import NoisyLatents
from library.strategy_anima import AnimaConditioning


def predict_velocity(
    dit: nn.Module, noisy: NoisyLatents, conditioning: AnimaConditioning
) -> Tensor:
    """The DiT's velocity for noisy latents, (B, 16, H, W), float32.

    The LLM adapter runs inside this one call, so that gradients reach it and several processes see
    every trainable tensor in one forward. sigma goes in as float32.
    """
    prediction = dit(
        noisy.latents,
        noisy.sigma,
        conditioning.qwen_hidden,
        conditioning.t5_ids,
        qwen_mask=conditioning.qwen_mask,
        t5_mask=conditioning.t5_mask,
    )
    return prediction.float()
