"""What the benchmarks compare with: diffusers' transformer, and adapters of peft and of LyCORIS.

All of them are optional: whoever asks for one that is not installed gets Missing with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.anima_backend.modelling.params import DiTParams
from tools.bench.measuring import Missing

LINEARS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
"""Of each of diffusers' blocks, as the project's adapters have them by default."""


class LycorisAdapter(Protocol):
    """What is used of LyCORIS' modules."""

    def to(self, device: torch.device) -> LycorisAdapter: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def apply_to(self) -> None: ...


def peft() -> ModuleType:
    try:
        import peft as package
    except ImportError as error:
        raise Missing(f"peft cannot be imported ({error}); pip install peft") from error
    return package


def lycoris_kind(name: str) -> Callable[..., LycorisAdapter]:
    """LyCORIS' module for "lora" or "lokr"."""
    try:
        from lycoris.logging import logger
        from lycoris.modules.locon import LoConModule
        from lycoris.modules.lokr import LokrModule
    except ImportError as error:
        raise Missing(f"LyCORIS cannot be imported ({error}); pip install lycoris-lora") from error
    logger.setLevel(logging.ERROR)
    return {"lora": LoConModule, "lokr": LokrModule}[name]


def attach_lycoris(
    places: Sequence[nn.Linear], kind: str, rank: int, **more: object
) -> list[nn.Parameter]:
    """Adapters on Linears, whose forward calls them from now on; what they train."""
    make = lycoris_kind(kind)
    trained: list[nn.Parameter] = []
    for number, linear in enumerate(places):
        each = make(f"bench_{number}", linear, 1.0, rank, rank, **more).to(linear.weight.device)
        each.apply_to()
        trained += list(each.parameters())
    return trained


def quiet_diffusers() -> None:
    """It warns of dtypes of parts that these models lack."""
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()


def diffusers_transformer(params: DiTParams, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Anima as diffusers has it, frozen, with random weights."""
    try:
        from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
    except ImportError as error:
        raise Missing(f"this diffusers has no Anima ({error})") from error
    quiet_diffusers()
    with device:
        model = CosmosTransformer3DModel(
            in_channels=params.channels
            + 1,  # the mask given with them: adding it needs torchvision
            concat_padding_mask=False,
            out_channels=params.channels,
            num_attention_heads=params.model_dim // params.head_dim,
            attention_head_dim=params.head_dim,
            num_layers=params.num_blocks,
            mlp_ratio=params.mlp_dim / params.model_dim,
            text_embed_dim=params.text_dim,
            adaln_lora_dim=params.adaln_dim,
            patch_size=(1, params.patch, params.patch),
            rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        )
    return model.to(dtype).requires_grad_(False)


def diffusers_velocity(model: nn.Module, noisy: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
    """(B, 16, H, W), as the project's Anima gives it."""
    masked = F.pad(noisy, (0, 0, 0, 0, 0, 1))[:, :, None]
    result: tuple[Tensor] = model(masked, sigma, context, return_dict=False)
    return result[0][:, :, 0]


def adapted_linears(model: nn.Module) -> list[nn.Linear]:
    """Of diffusers' transformer."""
    return [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
        and name.startswith("transformer_blocks.")
        and any(name.endswith(f".{end}") for end in LINEARS)
    ]


def attach_peft(model: nn.Module, rank: int) -> list[nn.Parameter]:
    """LoRA on every Linear of LINEARS; what it trains, in float32."""
    package = peft()
    options = package.LoraConfig(r=rank, lora_alpha=rank, target_modules=LINEARS)
    package.inject_adapter_in_model(options, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained
