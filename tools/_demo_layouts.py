"""Names and shapes of the tensors in Anima's three model files, as functions of a few sizes.

The true sizes are constants here; the demo uses small ones. Order is that of the networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from library.anima_backend.modelling.params import PUBLISHED

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class DiTSize:
    """Widths and depths of the DiT and its LLM adapter (whose own width is `context`)."""

    width: int
    blocks: int
    head: int
    modulation: int
    context: int
    adapter_blocks: int
    adapter_head: int
    t5_rows: int


@dataclass(frozen=True, kw_only=True)
class QwenSize:
    """Widths and depths of the text encoder."""

    width: int
    layers: int
    head: int
    heads: int
    kv_heads: int
    hidden: int
    rows: int


TRUE_DIT = DiTSize(
    width=PUBLISHED.model_dim,
    blocks=PUBLISHED.num_blocks,
    head=PUBLISHED.head_dim,
    modulation=PUBLISHED.adaln_dim,
    context=PUBLISHED.text_dim,
    adapter_blocks=PUBLISHED.llm_adapter.num_blocks,
    adapter_head=PUBLISHED.llm_adapter.head_dim,
    t5_rows=PUBLISHED.llm_adapter.vocab,
)
TRUE_QWEN = QwenSize(
    width=1024, layers=28, head=128, heads=16, kv_heads=8, hidden=3072, rows=151936
)
TRUE_VAE_WIDTH = 96
TINY_VAE_WIDTH = 8


def tiny_qwen(rows: int) -> QwenSize:
    """The demo's text encoder, for so many ids."""
    return QwenSize(width=64, layers=2, head=32, heads=4, kv_heads=2, hidden=160, rows=rows)


def tiny_dit(width: int, blocks: int, t5_rows: int) -> DiTSize:
    """A DiT of the demo, for its text encoder and so many T5 ids."""
    return DiTSize(
        width=width,
        blocks=blocks,
        head=32,
        modulation=32,
        context=64,
        adapter_blocks=2,
        adapter_head=32,
        t5_rows=t5_rows,
    )


def dit_shapes(size: DiTSize) -> Shapes:
    """The DiT with its LLM adapter, official names."""
    d = size.width
    shapes: Shapes = {
        "x_embedder.proj.1.weight": (d, 68),
        "t_embedder.1.linear_1.weight": (d, d),
        "t_embedder.1.linear_2.weight": (3 * d, d),
        "t_embedding_norm.weight": (d,),
    }
    for i in range(size.blocks):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in _dit_block(size)}
    shapes |= {
        "final_layer.linear.weight": (64, d),
        "final_layer.adaln_modulation.1.weight": (size.modulation, d),
        "final_layer.adaln_modulation.2.weight": (2 * d, size.modulation),
    }
    shapes |= {f"llm_adapter.{name}": shape for name, shape in _adapter(size)}
    return {f"net.{name}": shape for name, shape in shapes.items()}


def _dit_block(size: DiTSize) -> Iterator[tuple[str, tuple[int, ...]]]:
    d = size.width
    for attention, source in (("self_attn", d), ("cross_attn", size.context)):
        yield from _attention(attention, d, source, size.head, "output_proj")
    yield "mlp.layer1.weight", (4 * d, d)
    yield "mlp.layer2.weight", (d, 4 * d)
    for part in ("self_attn", "cross_attn", "mlp"):
        yield f"adaln_modulation_{part}.1.weight", (size.modulation, d)
        yield f"adaln_modulation_{part}.2.weight", (3 * d, size.modulation)


def _attention(
    name: str, width: int, source: int, head: int, output: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.q_proj.weight", (width, width)
    yield f"{name}.q_norm.weight", (head,)
    yield f"{name}.k_proj.weight", (width, source)
    yield f"{name}.k_norm.weight", (head,)
    yield f"{name}.v_proj.weight", (width, source)
    yield f"{name}.{output}.weight", (width, width)


def _adapter(size: DiTSize) -> Iterator[tuple[str, tuple[int, ...]]]:
    w = size.context
    yield "embed.weight", (size.t5_rows, w)
    for i in range(size.adapter_blocks):
        block = f"blocks.{i}"
        for part in ("self_attn", "cross_attn"):
            yield f"{block}.norm_{part}.weight", (w,)
            yield from _attention(f"{block}.{part}", w, w, size.adapter_head, "o_proj")
        yield f"{block}.norm_mlp.weight", (w,)
        yield f"{block}.mlp.0.weight", (4 * w, w)
        yield f"{block}.mlp.0.bias", (4 * w,)
        yield f"{block}.mlp.2.weight", (w, 4 * w)
        yield f"{block}.mlp.2.bias", (w,)
    yield "out_proj.weight", (w, w)
    yield "out_proj.bias", (w,)
    yield "norm.weight", (w,)


def qwen_shapes(size: QwenSize) -> Shapes:
    """The text encoder, with the `model.` prefix of the single file and no lm_head."""
    w, q, kv = size.width, size.heads * size.head, size.kv_heads * size.head
    shapes: Shapes = {"embed_tokens.weight": (size.rows, w)}
    for i in range(size.layers):
        layer = {
            "self_attn.q_proj.weight": (q, w),
            "self_attn.k_proj.weight": (kv, w),
            "self_attn.v_proj.weight": (kv, w),
            "self_attn.o_proj.weight": (w, q),
            "self_attn.q_norm.weight": (size.head,),
            "self_attn.k_norm.weight": (size.head,),
            "mlp.gate_proj.weight": (size.hidden, w),
            "mlp.up_proj.weight": (size.hidden, w),
            "mlp.down_proj.weight": (w, size.hidden),
            "input_layernorm.weight": (w,),
            "post_attention_layernorm.weight": (w,),
        }
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["norm.weight"] = (w,)
    return {f"model.{name}": shape for name, shape in shapes.items()}


def vae_shapes(width: int) -> Shapes:
    """The VAE in the original Wan 2.1 layout: 16 latent channels, four levels of 1, 2, 4, 4."""
    shapes = dict(_vae_encoder(width))
    shapes |= {"conv1.weight": (32, 32, 1, 1, 1), "conv1.bias": (32,)}
    shapes |= {"conv2.weight": (16, 16, 1, 1, 1), "conv2.bias": (16,)}
    return shapes | dict(_vae_decoder(width))


def _vae_encoder(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _conv("encoder.conv1", width, 3)
    channels, index = width, 0
    for level, factor in enumerate((1, 2, 4, 4)):
        for _ in range(2):
            yield from _residual(f"encoder.downsamples.{index}", channels, factor * width)
            channels, index = factor * width, index + 1
        if level < 3:
            name = f"encoder.downsamples.{index}"
            yield from _conv(f"{name}.resample.1", channels, channels, (3, 3))
            if level > 0:  # the first level does not shrink in time
                yield from _conv(f"{name}.time_conv", channels, channels, (3, 1, 1))
            index += 1
    yield from _middle("encoder.middle", channels)
    yield "encoder.head.0.gamma", (channels, 1, 1, 1)
    yield from _conv("encoder.head.2", 32, channels)


def _vae_decoder(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    channels, index = 4 * width, 0
    yield from _conv("decoder.conv1", channels, 16)
    yield from _middle("decoder.middle", channels)
    for level, factor in enumerate((4, 4, 2, 1)):
        for _ in range(3):
            yield from _residual(f"decoder.upsamples.{index}", channels, factor * width)
            channels, index = factor * width, index + 1
        if level < 3:
            name = f"decoder.upsamples.{index}"
            yield from _conv(f"{name}.resample.1", channels // 2, channels, (3, 3))
            if level < 2:  # the last enlargement is not in time
                yield from _conv(f"{name}.time_conv", 2 * channels, channels, (3, 1, 1))
            channels, index = channels // 2, index + 1
    yield "decoder.head.0.gamma", (channels, 1, 1, 1)
    yield from _conv("decoder.head.2", 3, channels)


def _residual(name: str, source: int, target: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.residual.0.gamma", (source, 1, 1, 1)
    yield from _conv(f"{name}.residual.2", target, source)
    yield f"{name}.residual.3.gamma", (target, 1, 1, 1)
    yield from _conv(f"{name}.residual.6", target, target)
    if source != target:
        yield from _conv(f"{name}.shortcut", target, source, (1, 1, 1))


def _middle(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _residual(f"{name}.0", channels, channels)
    yield f"{name}.1.norm.gamma", (channels, 1, 1)
    yield from _conv(f"{name}.1.to_qkv", 3 * channels, channels, (1, 1))
    yield from _conv(f"{name}.1.proj", channels, channels, (1, 1))
    yield from _residual(f"{name}.2", channels, channels)


def _conv(
    name: str, target: int, source: int, kernel: tuple[int, ...] = (3, 3, 3)
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (target, source, *kernel)
    yield f"{name}.bias", (target,)
