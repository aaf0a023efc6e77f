"""Small models with adapters, to compare memory modes: what they give and what they keep."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from library.anima_backend.modelling.dit import Anima
from library.anima_backend.modelling.params import DiTParams, LLMAdapterParams
from library.memory.kept import storage_key
from networks import lokr_anima, lora_anima, oft_anima
from tests.helpers.alive import Alive

BLOCK_LINEARS = "q_proj,k_proj,v_proj,output_proj,layer1,layer2"
KINDS = {
    "lora": (lora_anima, {}),
    "lora linears": (lora_anima, {"train_norm": "false", "target_modules": BLOCK_LINEARS}),
    "lora dropouts": (
        lora_anima, {"rank_dropout": 0.2, "module_dropout": 0.1, "neuron_dropout": 0.1},
    ),
    "lokr full": (lokr_anima, {"lokr_full_matrix": True, "neuron_dropout": 0.1}),
    "lokr low": (lokr_anima, {"lokr_factor": 4}),
    "dora": (lora_anima, {"dora_wd": "true", "train_norm": "false"}),
    "modulation": (lora_anima, {"train_norm": "false", "train_adaln": "true"}),
    "norms": (lora_anima, {"target_modules": "none"}),
}  # fmt: skip
RARE = {
    "dora of inputs": (
        lora_anima, {"dora_wd": "true", "wd_on_out": "false", "train_norm": "false", "target_modules": "layer1"},
    ),
    "oft": (oft_anima, {"target_modules": "q_proj,layer2", "train_norm": "false"}),
}  # fmt: skip
"""Where KINDS would be looked at in every way, these are in one or two."""


def small_dit(blocks: int = 2, width: int = 32) -> Anima:
    """The proportions of the true one: text half as wide, an MLP four times."""
    torch.manual_seed(0)
    adapter = LLMAdapterParams(
        vocab=16, source_dim=16, target_dim=width // 2, model_dim=16, head_dim=8, mlp_dim=16,
        num_blocks=1,
    )  # fmt: skip
    return Anima(
        DiTParams(
            channels=16, patch=2, model_dim=width, head_dim=min(width // 2, 64),
            text_dim=width // 2, adaln_dim=8, mlp_dim=4 * width, num_blocks=blocks,
            llm_adapter=adapter,
        )
    )  # fmt: skip


def adapted(kind: str, dtype: torch.dtype = torch.float32, **sizes: int):
    """A small model with adapters away from zero, its matrices as a run lays them; its network."""
    model = small_dit(**sizes).to(dtype).requires_grad_(False)
    model.lay_side_by_side()
    return model, attached(model, *{**KINDS, **RARE}[kind])


def attached(model: Anima, module: Any, options: dict[str, Any]):
    """A network of adapters on a model, away from zero."""
    network = module.create_network(1.0, 2, 1, None, None, model, **options)
    network.apply_to(None, model)
    network.on_epoch_start(None, model)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def loss_of(model: torch.nn.Module, side: int = 8, seed: int = 0) -> torch.Tensor:
    """Of two noisy latents of side x side with two texts; draws the same dropout each time."""
    generator = torch.Generator().manual_seed(seed)
    source = model.params.llm_adapter.source_dim
    latents = torch.randn(2, 16, side, side, generator=generator)
    hidden = torch.randn(2, 5, source, generator=generator)
    ids = torch.randint(0, 16, (2, 4), generator=generator)
    torch.manual_seed(seed)
    inputs = latents, torch.tensor([0.3, 0.8]), hidden, ids
    velocity = model(*(each.to(model.device) for each in inputs))
    return velocity.float().square().mean()


def gradients(model: torch.nn.Module, **how: int) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss_of(model, **how).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert expected and found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def kept_by_forward(model: torch.nn.Module, side: int) -> int:
    """Bytes that wait for the backward pass; the model's own are not counted."""
    with Alive(model.parameters()) as alive:
        loss = loss_of(model, side)
        size = alive.size()
    del loss
    return size


class OnlyCopied(TorchDispatchMode):
    """Fails where anything but a copy touches the memory of some tensors: as on two devices."""

    def __init__(self, tensors):
        super().__init__()
        self.places = {storage_key(tensor) for tensor in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten, plain = torch.ops.aten, ("copy_", "detach", "empty_like", "is_pinned")
        if function not in [getattr(aten, name).default for name in plain]:
            for tensor in tree_iter((args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    assert storage_key(tensor) not in self.places, f"{function} of a weight in RAM"
        return function(*args, **(kwargs or {}))
