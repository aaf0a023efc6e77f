"""Preview files: the pixels, and settings that ComfyUI and A1111's readers understand."""

import json

import pytest
import torch
from PIL import Image

from library.previews.pictures import Drawn, comfyui_prompt, save_png
from library.previews.prompt_file import PreviewPrompt

FILES = ("anima.safetensors", "qwen_3_06b.safetensors", "qwen_image_vae.safetensors")
PROMPT = PreviewPrompt(prompt='白い猫 "a" \\(b\\)', negative="<b>", sampler="euler", cfg=4.5, steps=12)


def drawn(**changes):
    return Drawn(**{"prompt": PROMPT, "seed": 7, "width": 32, "height": 16, "files": FILES, **changes})


def test_a_picture_keeps_its_pixels_and_its_settings(tmp_path):
    pixels = torch.randint(0, 256, (16, 32, 3), dtype=torch.uint8)
    save_png(tmp_path / "a.png", pixels, drawn(adapters=[("my_lora.safetensors", 0.8)]))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.tobytes() == pixels.numpy().tobytes()
        assert picture.text["parameters"] == (
            '白い猫 "a" \\(b\\) <lora:my_lora:0.8>\n'
            "Negative prompt: <b>\n"
            "Steps: 12, Sampler: euler, Schedule type: simple, CFG scale: 4.5, Seed: 7, Size: 32x16, "
            "Model: anima, Shift: 3"
        )
        graph = json.loads(picture.text["prompt"])
    assert graph == comfyui_prompt(drawn(adapters=[("my_lora.safetensors", 0.8)]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("start", [None, ("in.png", 0.6)])
@pytest.mark.parametrize("adapters", [(), [("a.safetensors", 1.0)], [("a", 0.5), ("b", -1.0)]])
def test_the_graph_leads_from_the_files_to_the_picture(adapters, start):
    graph = comfyui_prompt(drawn(adapters=adapters, start=start, batch=3))
    reached, waiting = set(), [next(k for k, n in graph.items() if n["class_type"] == "SaveImage")]
    while waiting:
        node = waiting.pop()
        reached.add(node)
        waiting += [v[0] for v in graph[node]["inputs"].values() if isinstance(v, list)]
    assert reached == set(graph)
    (sampler,) = (n["inputs"] for n in graph.values() if n["class_type"] == "KSampler")
    assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (7, 12, 4.5)
    assert (sampler["sampler_name"], sampler["scheduler"]) == ("euler", "simple")
    assert sampler["denoise"] == (0.6 if start else 1.0)
    (begin,) = sampler["latent_image"][:1]
    assert 3 in graph[begin]["inputs"].values()
    loras = [n["inputs"] for n in graph.values() if n["class_type"] == "LoraLoaderModelOnly"]
    assert [(n["lora_name"], n["strength_model"]) for n in loras] == list(adapters)
