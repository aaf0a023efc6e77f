"""Preview pictures as files: PNG that ComfyUI opens as a workflow and A1111's readers as parameters.

ComfyUI lays out a graph by itself when a picture holds only the API form of it, in `prompt`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from library.previews.prompt_file import PreviewPrompt
from library.utils import atomic_write

JPEG_QUALITY = 82


@dataclass(frozen=True)
class Drawn:
    """What a picture was drawn with. seed, width, height: as used.

    files:   names of the DiT, text encoder and VAE, as ComfyUI's loaders want them
    adapters: (file name, strength), applied in this order
    batch:   how many pictures one draw of noise made; place: which of them this is, from 0
    start:   (file name, denoise) of a picture that was changed; None: drawn from nothing
    """

    prompt: PreviewPrompt
    seed: int
    width: int
    height: int
    files: tuple[str, str, str]
    adapters: Sequence[tuple[str, float]] = ()
    batch: int = 1
    place: int = 0
    start: tuple[str, float] | None = None


def small_jpeg(path: Path, side: int) -> str:
    """The picture in a file as a data: URL, no side above `side`; "" where it cannot be read."""
    try:
        with Image.open(path) as opened:
            opened.thumbnail((side, side))
            small = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    file = io.BytesIO()
    small.save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def save_png(path: str | Path, pixels: Tensor, drawn: Drawn) -> None:
    """Write (H, W, 3) uint8 as a PNG with its settings; whole or not at all."""
    info = PngInfo()
    info.add_itxt("parameters", a1111_text(drawn))
    info.add_text("prompt", json.dumps(comfyui_prompt(drawn)))
    with atomic_write(path, sync=False) as temporary:
        Image.fromarray(pixels.cpu().numpy()).save(temporary, format="PNG", pnginfo=info)


def a1111_text(drawn: Drawn) -> str:
    """The `parameters` text of A1111 and those who read it."""
    prompt = drawn.prompt
    loras = "".join(f" <lora:{Path(name).stem}:{weight:g}>" for name, weight in drawn.adapters)
    settings: dict[str, object] = {
        "Steps": prompt.steps,
        "Sampler": prompt.sampler,
        "Schedule type": prompt.scheduler,
        "CFG scale": f"{prompt.cfg:g}",
        "Seed": drawn.seed,
        "Size": f"{drawn.width}x{drawn.height}",
        "Model": Path(drawn.files[0]).stem,
        "Shift": f"{prompt.shift:g}",
    }
    if drawn.batch > 1:
        settings |= {"Batch size": drawn.batch, "Batch pos": drawn.place}
    if drawn.start:
        settings["Denoising strength"] = f"{drawn.start[1]:g}"
    listed = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return f"{prompt.prompt}{loras}\nNegative prompt: {prompt.negative}\n{listed}"


Node = dict[str, Any]


def comfyui_prompt(drawn: Drawn) -> dict[str, Node]:
    """The graph in ComfyUI's API form, by node id: it draws the same picture."""
    prompt, (dit, encoder, vae) = drawn.prompt, drawn.files
    nodes: dict[str, Node] = {
        "1": _node("UNETLoader", unet_name=dit, weight_dtype="default"),
        "2": _node("CLIPLoader", clip_name=encoder, type="qwen_image", device="default"),
        "3": _node("VAELoader", vae_name=vae),
        "4": _node("CLIPTextEncode", text=prompt.prompt, clip=["2", 0]),
        "5": _node("CLIPTextEncode", text=prompt.negative, clip=["2", 0]),
        **_start_nodes(drawn),
    }
    model: list[Any] = ["1", 0]
    denoise = drawn.start[1] if drawn.start else 1.0
    for number, (name, strength) in enumerate(drawn.adapters, start=20):
        nodes[str(number)] = _node(
            "LoraLoaderModelOnly", lora_name=name, strength_model=strength, model=model
        )
        model = [str(number), 0]
    nodes["7"] = _node("ModelSamplingAuraFlow", shift=prompt.shift, model=model)
    nodes["8"] = _node(
        "KSampler",
        seed=drawn.seed, steps=prompt.steps, cfg=prompt.cfg, sampler_name=prompt.sampler,
        scheduler=prompt.scheduler, denoise=denoise, model=["7", 0], positive=["4", 0],
        negative=["5", 0], latent_image=["6", 0],
    )  # fmt: skip
    nodes["9"] = _node("VAEDecode", samples=["8", 0], vae=["3", 0])
    nodes["13"] = _node("SaveImage", filename_prefix="preview", images=["9", 0])
    return nodes


def _start_nodes(drawn: Drawn) -> dict[str, Node]:
    """Those that make the latents to begin with; they come out of node 6."""
    if drawn.start is None:
        sizes = {"width": drawn.width, "height": drawn.height, "batch_size": drawn.batch}
        return {"6": _node("EmptyLatentImage", **sizes)}
    sizes = {"width": drawn.width, "height": drawn.height}
    return {
        "10": _node("LoadImage", image=drawn.start[0]),
        "11": _node(
            "ImageScale", image=["10", 0], upscale_method="lanczos", crop="center", **sizes
        ),
        "12": _node("VAEEncode", pixels=["11", 0], vae=["3", 0]),
        "6": _node("RepeatLatentBatch", samples=["12", 0], amount=drawn.batch),
    }


def _node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}
