"""Networks on the tiny model as they are after training: every factor random."""

import torch

from networks import loha_anima, lokr_anima, lora_anima, oft_anima
from tests.helpers.tiny import tiny_transformer

MODULES = {"lora": lora_anima, "lokr": lokr_anima, "loha": loha_anima, "oft": oft_anima}
OPTIONS = {
    "lora": ("lora", {}),
    "loha": ("loha", {}),
    "lokr low": ("lokr", {"lokr_factor": 4}),
    "lokr full": ("lokr", {"lokr_full_matrix": "true"}),
    "lokr both": ("lokr", {"lokr_decompose_both": 1, "factor": -1}),
    "lokr sentinel": ("lokr", {"network_dim": 100_000}),
}
TURNED = {"oft": ("oft", {}), "boft": ("oft", {"boft": "true", "network_dim": 6})}


def trained(name="lora", alpha=1, model=None, scale=0.05, **kwargs):
    """A network on the tiny model whose every factor is random, as after training."""
    kind, options = (OPTIONS | TURNED)[name]
    options = {"network_dim": 3, **options, **kwargs}
    model = model or tiny_transformer()
    network = MODULES[kind].create_network(
        1.0, options.pop("network_dim"), alpha, None, None, model, **options
    )
    network.apply_to(None, model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.get_trainable_params():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network
