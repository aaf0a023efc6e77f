"""What an adapter file does, whatever made it: applied to the golden network by the product's own merging,
which is compared with ComfyUI's outputs elsewhere."""

import torch

from networks.merging import merge_file
from tests.helpers.tiny import golden_vectors, tiny_transformer


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
