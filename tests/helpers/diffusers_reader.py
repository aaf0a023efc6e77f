"""diffusers' own pipeline for this family with the weights of the tiny model, and what it computes."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.helpers.tiny import golden, golden_vectors

SIZES = {
    "in_channels": 17,  # the padding mask among them: diffusers resizes one by torchvision
    "concat_padding_mask": False,
    "out_channels": 16,
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "num_layers": 2,
    "text_embed_dim": 64,
    "adaln_lora_dim": 16,
    "rope_scale": (1.0, 4.0, 4.0),
    "extra_pos_embed_type": None,
}
FRONT_SIZES = {
    "source_dim": 64,
    "target_dim": 64,
    "model_dim": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "target_vocab_size": 512,
}


class DiffusersReader:
    """A pipeline that LoRA files are loaded into and taken out of again."""

    def __init__(self):
        from diffusers import (
            AnimaModularPipeline,
            AnimaTextConditioner,
            CosmosTransformer3DModel,
        )
        from diffusers.loaders.single_file_utils import (
            convert_cosmos_transformer_checkpoint_to_diffusers,
        )

        weights = load_file(golden("anima_tiny_dit.safetensors"))
        start = "net.llm_adapter."
        front = {k.removeprefix(start): t for k, t in weights.items() if k.startswith(start)}
        rest = {k: t for k, t in weights.items() if not k.startswith(start)}
        self.transformer = CosmosTransformer3DModel(**SIZES)
        self.transformer.load_state_dict(convert_cosmos_transformer_checkpoint_to_diffusers(rest))
        self.conditioner = AnimaTextConditioner(**FRONT_SIZES)
        self.conditioner.load_state_dict(front)
        self.pipeline = AnimaModularPipeline()
        self.pipeline.update_components(
            transformer=self.transformer, text_conditioner=self.conditioner
        )

    @property
    def models(self):
        return self.transformer, self.conditioner

    def load(self, file):
        """Load a LoRA file's path, or a copy of its tensors, in the place of the one before."""
        self.unload()
        given = dict(file) if isinstance(file, dict) else str(file)
        self.pipeline.load_lora_weights(given)

    def unload(self):
        for model in self.models:
            if getattr(model, "peft_config", None):
                model.unload_lora()

    def factors(self):
        """Every factor that stands in the models now."""
        return [
            parameter.detach()
            for model in self.models
            for name, parameter in model.named_parameters()
            if "lora_" in name
        ]

    @torch.no_grad()
    def velocity(self):
        """(B, C, H, W), for the inputs of the golden vectors"""
        vectors = golden_vectors()
        x = vectors["in.x.sq"]
        context = self.conditioner(vectors["in.qwen_hidden.a"], vectors["in.t5_ids.a"])
        out = self.transformer(
            hidden_states=torch.cat([x, torch.zeros_like(x[:, :1])], dim=1),
            timestep=vectors["in.t.sq"],
            encoder_hidden_states=context,
            return_dict=False,
        )[0]
        return out[:, :, 0]
