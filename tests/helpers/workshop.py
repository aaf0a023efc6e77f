"""What an adapter file does, whatever made it: applied to the golden network by the product's own merging,
which is compared with ComfyUI's outputs elsewhere."""

import torch

from library.anima_workshop.base import open_base
from library.anima_workshop.layout import open_anima_adapter
from networks.merging import merge_file, weighted_modules
from tests.helpers.tiny import golden, golden_vectors, tiny_transformer
from tests.helpers.written_adapters import LINEARS, random


def outputs(model):
    """(velocity, context) of the golden inputs."""
    vectors = golden_vectors()
    with torch.no_grad():
        velocity = model(
            vectors["in.x.sq"][:, :, 0], vectors["in.t.sq"], vectors["in.qwen_hidden.a"],
            vectors["in.t5_ids.a"],
        )  # fmt: skip
        context = model.preprocess_text_embeds(vectors["in.qwen_hidden.a"], vectors["in.t5_ids.a"])
    return velocity, context


def applied(*files, strength=1.0):
    """(velocity, context) with these files merged into the tiny DiT, in float32."""
    model = tiny_transformer()
    for file in files:
        merge_file(model, str(file), strength)
    return outputs(model)


def assert_same_effect(one, other, tolerance=2e-6):
    """Two results of `applied`, up to `tolerance` (relative, L2)."""
    for here, there in zip(one, other):
        distance = float((here - there).norm() / there.norm())
        assert distance < tolerance, distance


def of_every_kind(model):
    """One file with a module of each kind that ComfyUI reads."""
    weights = {path: module.weight for path, module in weighted_modules(model).items()}
    first, second, third = LINEARS
    out, width = weights[first].shape
    more = "blocks.0.cross_attn.q_proj", "blocks.1.self_attn.v_proj", "blocks.1.mlp.layer2"
    loha_out, loha_in = weights[third].shape
    tensors = {
        f"diffusion_model.{first}.lora_down.weight": random(4, width),
        f"diffusion_model.{first}.lora_up.weight": random(out, 4),
        f"diffusion_model.{first}.alpha": torch.tensor(2.0),
        f"diffusion_model.{second}.lokr_w1": random(4, 4),
        f"diffusion_model.{second}.lokr_w2_a": random(weights[second].shape[0] // 4, 2),
        f"diffusion_model.{second}.lokr_w2_b": random(2, weights[second].shape[1] // 4),
        f"diffusion_model.{second}.alpha": torch.tensor(1.0),
        f"lora_unet_{third.replace('.', '_')}.hada_w1_a": random(loha_out, 2),
        f"lora_unet_{third.replace('.', '_')}.hada_w1_b": random(2, loha_in),
        f"lora_unet_{third.replace('.', '_')}.hada_w2_a": random(loha_out, 3),
        f"lora_unet_{third.replace('.', '_')}.hada_w2_b": random(3, loha_in),
        "diffusion_model.t_embedding_norm.w_norm": random(*weights["t_embedding_norm"].shape),
        f"diffusion_model.{more[0]}.diff": random(*weights[more[0]].shape),
        f"diffusion_model.{more[1]}.set_weight": random(*weights[more[1]].shape),
        f"diffusion_model.{more[2]}.lora_A.weight": random(4, weights[more[2]].shape[1]),
        f"diffusion_model.{more[2]}.lora_B.weight": random(weights[more[2]].shape[0], 4),
        f"diffusion_model.{more[2]}.dora_scale": random(weights[more[2]].shape[0], 1) + 1,
        "diffusion_model.llm_adapter.out_proj.diff_b": random(
            *model.llm_adapter.out_proj.bias.shape
        ),
    }
    return {key: tensor.clone() for key, tensor in tensors.items()}


def deltas(file):
    """What a file adds to each parameter of the tiny DiT, dense, float64, by name."""
    dit = golden("anima_tiny_dit.safetensors")
    opened, base = open_anima_adapter(file, dit), open_base(dit)
    return {
        f"{path}.{name}": delta.dense().double()
        for path in opened
        for name, delta in opened.deltas(path, base.of_module(path)).items()
    }


def apart(one, other):
    """|one - other| / |one| of two results of `deltas`, over all parameters."""
    assert one.keys() == other.keys()
    lost = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return (lost / sum(float(delta.square().sum()) for delta in one.values())) ** 0.5
