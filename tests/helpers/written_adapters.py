"""Adapter files written by hand in every format, with the differences they stand for in float64."""

from dataclasses import dataclass, field

import torch

from networks.kinds.linear import base_product
from tests.helpers.running import config_files, make_trainer
from tests.helpers.tiny import rel_l2

LINEARS = ("blocks.0.mlp.layer1", "blocks.1.cross_attn.k_proj", "llm_adapter.blocks.0.mlp.0")
NORMS = ("blocks.0.self_attn.q_norm", "t_embedding_norm", "llm_adapter.norm")
RANK = 3


def random(*shape):
    return 0.1 * torch.randn(*shape)


@dataclass
class Written:
    """The tensors of a file, and the difference it stands for by parameter name."""

    tensors: dict = field(default_factory=dict)
    expected: dict = field(default_factory=dict)


DOTTED = {
    "comfy": "diffusion_model.{}.",
    "bare": "{}.",
    "net": "net.{}.",
    "transformer": "transformer.{}.",
    "model.diffusion_model": "model.diffusion_model.{}.",
    "unet": "unet.{}.",
    "peft": "base_model.model.{}.",
    "peft of diffusers": "base_model.model.transformer.{}.",
}
FLAT = {
    "kohya": "lora_unet_{}.",
    "kohya of net": "lora_unet_net_{}.",
    "lycoris": "lycoris_{}.",
    "lora_transformer": "lora_transformer_{}.",
}
DOWN_UP = {
    "down/up": ("lora_down.weight", "lora_up.weight"),
    "A/B": ("lora_A.weight", "lora_B.weight"),
    "A/B default": ("lora_A.default.weight", "lora_B.default.weight"),
    "A/B bare": ("lora_A", "lora_B"),
    "lora.down": ("lora.down.weight", "lora.up.weight"),
    "linear layer": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
}


def prefix(style, path):
    return (
        FLAT[style].format(path.replace(".", "_")) if style in FLAT else DOTTED[style].format(path)
    )


def write_norms(written, base, style, how="w_norm"):
    for path in NORMS:
        weight, change = base[f"{path}.weight"], random(*base[f"{path}.weight"].shape)
        whole = how in ("set_weight", "weight")
        start = "__anima_norm__." + path + "." if style == "fork" else prefix(style, path)
        written.tensors[f"{start}{how}"] = weight + change if whole else change
        written.expected[f"{path}.weight"] = change.double()


def write_lora(base, style="comfy", names=DOWN_UP["down/up"], alpha=2.0, rank=RANK):
    """alpha: None for no key, else anything torch.tensor takes"""
    written = Written()
    for path in LINEARS:
        out, width = base[f"{path}.weight"].shape
        down, up = random(rank, width), random(out, rank)
        start = prefix(style, path)
        written.tensors |= {start + names[0]: down, start + names[1]: up}
        scale = 1.0
        if alpha is not None:
            written.tensors[start + "alpha"] = torch.as_tensor(alpha).clone()
            scale = written.tensors[start + "alpha"].item() / rank
        written.expected[f"{path}.weight"] = scale * up.double() @ down.double()
    return written


def write_lokr(base, style="comfy", *, factored=(), alpha=2.0, groups=4, suffix=""):
    """factored: which of w1 and w2 are products of rank RANK"""
    written = Written()
    for path in LINEARS:
        out, width = base[f"{path}.weight"].shape
        full, tensors = {}, {}
        for name, rows, columns in (
            ("lokr_w1", groups, groups),
            ("lokr_w2", out // groups, width // groups),
        ):
            if name in factored:
                a, b = random(rows, RANK), random(RANK, columns)
                tensors |= {f"{name}_a": a, f"{name}_b": b}
                full[name] = a.double() @ b.double()
            else:
                tensors[name] = random(rows, columns)
                full[name] = tensors[name].double()
        written.tensors |= {f"{prefix(style, path)}{n}{suffix}": t for n, t in tensors.items()}
        scale = 1.0
        if alpha is not None:
            written.tensors[prefix(style, path) + "alpha"] = torch.as_tensor(alpha).clone()
            scale = float(alpha) / RANK if factored else 1.0
        written.expected[f"{path}.weight"] = scale * torch.kron(full["lokr_w1"], full["lokr_w2"])
    return written


def start(demo, folder, settings):
    """The stages of a run that load and attach; the trainer as it stands before the first step."""
    trainer = make_trainer(config_files(demo, folder, settings))
    trainer.prepare_process()
    trainer.open_state()
    trainer.check()
    trainer.prepare_data()
    trainer.check_compile()
    trainer.check_products()
    trainer.check_attention()
    trainer.plan_memory()
    trainer.load_models()
    trainer.prepare_model()
    trainer.attach_network()
    return trainer


def assert_same(found, expected):
    """Differences by parameter; what a file does not hold is zero."""
    assert expected.keys() <= found.keys()
    for name, change in found.items():
        if name in expected and expected[name].any():
            assert rel_l2(change, expected[name]) < 1e-6, name
        else:
            assert not change.any(), name


def loha(base, path):
    out, width = base[f"{path}.weight"].shape
    w1_a, w2_a = random(out, RANK), random(out, RANK)
    w1_b, w2_b = random(RANK, width), random(RANK, width)
    tensors = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b}
    product = (w1_a.double() @ w1_b.double()) * (w2_a.double() @ w2_b.double())
    return {**tensors, "alpha": torch.tensor(2.0)}, 2 / RANK * product


def dora_of_rows(base, path):
    """The magnitude belongs to the rows of the base weight (LyCORIS)."""
    return dora(base, path, lambda weight, total: weight.norm(dim=1, keepdim=True))


def dora_of_columns(base, path):
    """The magnitude belongs to the columns of the sum."""
    return dora(base, path, lambda weight, total: total.norm(dim=0, keepdim=True))


def dora(base, path, norm_of):
    weight = base[f"{path}.weight"].double()
    down, up = random(RANK, weight.shape[1]), random(weight.shape[0], RANK)
    total = weight + up.double() @ down.double()
    norm = norm_of(weight, total)
    magnitude = (norm * (1 + 0.1 * torch.rand_like(norm))).float()
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
    return tensors, total * (magnitude.double() / norm) - weight


def dora_of_lokr(base, path):
    weight = base[f"{path}.weight"].double()
    out, width = weight.shape
    w1, w2 = random(4, 4), random(out // 4, width // 4)
    norm = weight.norm(dim=1, keepdim=True)
    magnitude = (1.1 * norm).float()
    total = weight + torch.kron(w1.double(), w2.double())
    tensors = {"lokr_w1": w1, "lokr_w2": w2, "dora_scale": magnitude}
    return tensors, total * (magnitude.double() / norm) - weight


def lokr_with_alpha_inf(base, path):
    out, width = base[f"{path}.weight"].shape
    w1, w2 = random(4, 4), random(out // 4, width // 4)
    alpha = torch.tensor(1e5, dtype=torch.float16)
    tensors = {"lokr_w1": w1, "lokr_w2": w2, "alpha": alpha}
    return tensors, torch.kron(w1.double(), w2.double())


def difference(base, path):
    change = random(*base[f"{path}.weight"].shape)
    return {"diff": change}, change.double()


def whole(base, path):
    change = random(*base[f"{path}.weight"].shape)
    return {"set_weight": base[f"{path}.weight"] + change}, change.double()


def plain(base, path):
    out, width = base[f"{path}.weight"].shape
    down, up = random(RANK, width), random(out, RANK)
    return {"lora_A.weight": down, "lora_B.weight": up}, up.double() @ down.double()


def live_differences(network):
    """What the adapters add to each weight, in float64, through the layers themselves."""
    differences = {}
    for placement in network.placements:
        layer = network.model.get_submodule(placement.path)
        if placement.is_norm:
            for name, change in placement.adapter.changes().items():
                differences[f"{placement.path}.{name}"] = change.detach().double()
            continue
        layer.double()  # exact, so that what the base adds cancels
        probe = torch.eye(layer.in_features, dtype=torch.float64)
        with torch.no_grad():
            differences[f"{placement.path}.weight"] = (
                layer(probe) - base_product(probe, layer.weight, layer.bias)
            ).T
        layer.float()
    return differences
