"""tools/generate.py draws what its command line orders, by the rules that ComfyUI applies files by."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from library.anima_models import (
    load_anima_qwen_model,
    load_anima_qwen_tokenizer,
    load_anima_t5_tokenizer,
    load_anima_transformer,
    load_anima_vae,
)
from library.anima_runtime.text_contexts import prompt_context
from library.errors import AdapterFileError, ConfigError, UserError
from library.previews.painting import Contexts, Drawing, paint
from library.previews.prompt_file import COMFYUIS_NEGATIVE, PreviewPrompt
from library.previews.sampling import to_uint8
from library.strategy_anima import AnimaTextEncodingStrategy, AnimaTokenizeStrategy
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.running import model_paths, write_toml
from tests.helpers.tiny import rel_l2
from tests.helpers.written_adapters import write_lokr, write_lora
from tools._drawing_order import read_order, split_strength
from tools._drawing_plan import plan_of
from tools.generate import generate

WORDS, DARK = "a (meadow:1.3), 花", "a dark city --w 96 --h 128 --d 9 --am 0.5"
SIZE = ["--width", "128", "--height", "96", "--steps", "2", "--seed", "5"]


class Scene:
    """A folder with the two adapter files, in two styles of keys, and a training file."""

    def __init__(self, folder, demo):
        self.folder, self.models = folder, model_paths(demo)
        base = load_anima_transformer(self.models["anima_transformer"], dtype=torch.float32)
        self.rules = {}
        for name, style, write in (("lora", "kohya", write_lora), ("lokr", "comfy", write_lokr)):
            for spelling in (style, "comfy"):  # the same numbers: once to be read, once for the rules
                torch.manual_seed(2)
                tensors = write(base.state_dict(), style=spelling).tensors
                if spelling == style:
                    save_file(tensors, folder / f"{name}.safetensors")
            self.rules[name] = weight_differences(tensors)
        settings = {**self.models, "mixed_precision": "no", "learning_rate": "not for drawing", "seed": 1}
        self.argv = ["--config_file", str(write_toml(folder / "train_args.toml", settings))]
        (folder / "prompts.txt").write_text(f"{WORDS}\n{DARK}\n", encoding="utf-8")

    def file(self, name):
        return str(self.folder / name)

    def draw(self, *argv, out="out"):
        """The files that a command line leaves, and what it told."""
        return generate([*self.argv, *SIZE, *argv, "--output", self.file(out)])

    def encoding(self):
        tokenize = AnimaTokenizeStrategy(
            load_anima_qwen_tokenizer(self.models["qwen_tokenizer_dir"]),
            load_anima_t5_tokenizer(self.models["t5_tokenizer_dir"]),
        )
        qwen = load_anima_qwen_model(self.models["qwen"], dtype=torch.float32)
        encoding = AnimaTextEncodingStrategy(tokenize, qwen)
        return lambda text: encoding.encode_prompt(tokenize.tokenize_prompt(text))

    def merged(self, **strengths):
        """A model of its own with files merged by ComfyUI's rules."""
        model = load_anima_transformer(self.models["anima_transformer"], dtype=torch.float32)
        for name, strength in strengths.items():
            for key, change in self.rules[name].items():
                weight = model.get_parameter(key)
                weight.data = weight.data + strength * change.float()
        return model


@pytest.fixture(scope="module")
def scene(tmp_path_factory, demo):
    return Scene(tmp_path_factory.mktemp("scene"), demo)


def told(picture):
    with Image.open(picture) as image:
        return image.text["parameters"], json.loads(image.text["prompt"])


def test_pictures_are_those_of_a_model_with_the_files_merged_as_comfyui_does(scene):
    files = scene.draw(
        "--prompts", scene.file("prompts.txt"), "--lora", scene.file("lora.safetensors:0.8"),
        "--lora", scene.file("lokr.safetensors"), "--latents", scene.file("latents.safetensors"),
    )  # fmt: skip
    assert [file.name for file in files] == [
        *("picture_0001.png", "picture_0002.png", "latents.safetensors")
    ]
    found, encode = load_file(files[-1]), scene.encoding()
    vae = load_anima_vae(scene.models["vae"])
    expected = [
        (scene.merged(lora=0.8, lokr=1.0), WORDS, 5, (12, 16)),
        (scene.merged(lora=0.4, lokr=0.5), "a dark city", 9, (16, 12)),  # --am 0.5
    ]
    for file, (model, words, seed, size) in zip(files, expected):
        texts = [prompt_context(model, encode(text)) for text in (words, COMFYUIS_NEGATIVE)]
        drawing = Drawing(PreviewPrompt(prompt=words, steps=2), seed, (1, 16, *size))
        latents = paint(model, drawing, Contexts(*texts))
        assert found[file.stem].dtype == torch.float32
        assert rel_l2(found[file.stem], latents[0]) < 1e-5
        pixels = to_uint8(vae.decode(latents))[0]
        with Image.open(file) as picture:
            apart = torch.tensor(list(picture.tobytes())).view(pixels.shape) - pixels.int()
        assert apart.abs().max() <= 1
    text, graph = told(files[1])
    assert text.startswith("a dark city <lora:lora:0.4> <lora:lokr:0.5>\n")
    assert "Seed: 9, Size: 96x128, Model: anima_dit" in text
    assert graph["20"]["inputs"]["strength_model"] == 0.4


def test_a_matrix_is_drawn_with_one_load_and_ends_in_a_grid(scene, caplog):
    caplog.set_level("INFO")
    files = scene.draw(
        "--prompt", WORDS, "--compare", "0,1", "--matrix", scene.file("lora.safetensors"),
        scene.file("lokr.safetensors"), out="matrix/m.png",
    )  # fmt: skip
    assert [file.name for file in files] == [f"m_{n:04d}.png" for n in (1, 2, 3)] + ["m_grid_0004.png"]
    assert caplog.text.count("loading the DiT") == 1
    loras = [told(file)[0].split("\n")[0].removeprefix(WORDS) for file in files[:3]]
    assert loras == ["", " <lora:lora:1>", " <lora:lokr:1>"]  # strength 0 is drawn once
    alone = [Image.open(file).convert("RGB") for file in files[:3]]
    assert len({picture.tobytes() for picture in alone}) == 3
    with Image.open(files[3]) as grid:
        assert json.loads(grid.text["grid"]) == {"rows": ["lora", "lokr"], "columns": ["0", "1"]}
        corners = [(grid.width - right * 136, grid.height - down * 104) for down in (2, 1) for right in (2, 1)]
        shown = [grid.crop((x, y, x + 128, y + 96)).tobytes() for x, y in corners]
    base, lora, lokr = (picture.tobytes() for picture in alone)
    assert shown == [base, lora, base, lokr]


def test_a_picture_is_changed_and_a_batch_is_one_draw(scene):
    Image.linear_gradient("L").resize((131, 100)).convert("RGB").save(scene.file("start.png"))
    argv = ["--steps", "2", "--seed", "5", "--prompt", WORDS, "--negative", "", "--image", scene.file("start.png")]
    files = generate([
        *scene.argv, *argv, "--denoise", "0.05", "--batch", "2", "--output", scene.file("changed"),
        "--latents", scene.file("changed.safetensors"), "--vae_chunk_size", "4",
    ])  # fmt: skip
    found = load_file(files[-1])
    with Image.open(scene.file("start.png")) as start, Image.open(files[0]) as picture:
        assert picture.size == (128, 96)
        cut = torch.tensor(list(start.crop((1, 2, 129, 98)).tobytes())).view(1, 96, 128, 3)
    kept = load_anima_vae(scene.models["vae"]).encode(cut.movedim(-1, 1) / 127.5 - 1)[0]
    first, second = (found[file.stem] for file in files[:2])
    assert not torch.equal(first, second)
    assert 0 < rel_l2(first, kept) < 0.35
    text, graph = told(files[1])
    assert "Negative prompt: \n" in text
    assert text.endswith("Batch size: 2, Batch pos: 1, Denoising strength: 0.05")
    kinds = {node["class_type"] for node in graph.values()}
    assert {"LoadImage", "VAEEncode", "RepeatLatentBatch"} < kinds


def test_nothing_is_overwritten_unasked(scene):
    argv = ["--prompt", "x", "--cfg", "1", "--steps", "1"]
    names = [file.name for _ in range(2) for file in scene.draw(*argv, out="kept/cat.png")]
    assert names == ["cat.png", "cat_0001.png"]
    (again,) = scene.draw(*argv, "--overwrite", out="kept/cat.png")
    assert again.name == "cat.png"
    (scene.folder / "there.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is there already"):
        scene.draw(*argv, "--latents", scene.file("there.safetensors"))


def problems(argv):
    with pytest.raises(UserError) as caught:
        read_order(argv)
    return [f"{p.where}: {p.message}" for p in caught.value.problems]


def test_all_that_is_wrong_is_told_at_once(scene):
    (scene.folder / "bad.txt").write_text("a --s x\n")
    save_file({"diffusion_model.no.lora_down.weight": torch.ones(2)}, scene.folder / "bad.safetensors")
    found = problems([
        *scene.argv, "--prompts", scene.file("bad.txt"), "--width", "100", "--sampler", "eulr", "--batch", "2",
        "--learning_rate", "1", "--matrix", scene.file("bad.safetensors"), "--compare", "0,x", "--denoise", "0.3",
        "--device", "cudaa", "--latents", "x.pt", "--stepz", "3", "--output", "x.jpg", "--negative", "a", "b",
    ])  # fmt: skip
    for expected in (
        "--width 100: expected a multiple of 8",
        "--sampler eulr: no such sampler. Did you mean euler?",
        "--batch 2: a grid shows one picture in each place",
        "--learning_rate 1: is for training",
        "--compare 0,x: expected up to 50 numbers",
        "--denoise 0.3: is for a picture to change",
        "--device cudaa: cannot be used here: expected one of cuda",
        "--latents x.pt: expected a name ending in .safetensors",
        "--stepz: no such option. Did you mean --steps?",
        "--output x.jpg: pictures are written as .png",
        "--negative a b: expected one text",
        "line 1  --s x: expected a whole number",
        "diffusion_model.no.lora_down.weight: the model has no such module",
    ):
        assert [line for line in found if line.startswith(expected)], (expected, found)
    assert len(found) <= 14


def test_what_is_needed_is_named():
    found = "\n".join(problems([]))
    for name in ("dit", "qwen", "vae", "prompt"):
        assert f"{name}: " in found
    assert len(found.splitlines()) == 4


def test_contradictions_of_a_training_file_are_told(tmp_path):
    other = {"pretrained_model_name_or_path": "b", "xformers": True, "attn_mode": "flash"}
    file = write_toml(tmp_path / "t.toml", {"anima_transformer": "a", **other})
    found = "\n".join(problems(["--config_file", str(file), "--prompt", "x", "--lora"]))
    assert "pretrained_model_name_or_path is b. Keep one." in found
    assert "name different backends" in found
    assert "--lora: expected a value" in found
    assert "Keep one" not in "\n".join(problems(["--dit", "c", "--lora", "x", "--prompt", "x"]))


def test_base_weights_of_a_training_file_are_named(scene, tmp_path):
    settings = {**scene.models, "base_weights": [scene.file("lora.safetensors")]}
    file = write_toml(tmp_path / "t.toml", settings)
    notes = read_order(["--config_file", str(file), "--prompt", "x", "--sampler", "pndm"]).notes
    assert any(f"--lora {scene.file('lora.safetensors')}" in note for note in notes)
    assert any("lms is used instead" in note for note in notes)


def test_an_adapter_that_is_not_there_is_named(scene):
    assert "no such file" in problems([*scene.argv, "--prompt", "x", "--lora", "nope.safetensors:1"])[0]
    with pytest.raises(UserError) as caught:
        read_order([*scene.argv, "--prompt", "x", "--image", scene.file("nope.png")])
    assert "nope.png" in str(caught.value)
    assert not isinstance(caught.value, AdapterFileError)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("a.safetensors:-1", ("a.safetensors", -1.0)),
        (r"C:\loras\a.safetensors", (r"C:\loras\a.safetensors", 1.0)),
        (r"C:\loras\a.safetensors:2", (r"C:\loras\a.safetensors", 2.0)),
        ("a:b.safetensors", ("a:b.safetensors", 1.0)),
        ("a.safetensors:nan", ("a.safetensors:nan", 1.0)),
        (":3", (":3", 1.0)),
    ],
)
def test_a_strength_stands_after_a_colon(text, expected):
    assert split_strength(text) == expected


def test_a_name_that_ends_as_a_strength_does_is_a_name(tmp_path):
    (tmp_path / "a:2").write_bytes(b"")
    assert split_strength(str(tmp_path / "a:2")) == (str(tmp_path / "a:2"), 1.0)


def test_pictures_with_the_same_weights_are_drawn_together(scene):
    files = [scene.file("lora.safetensors"), scene.file("lokr.safetensors")]
    argv = [*scene.argv, "--prompts", scene.file("prompts.txt")]
    plan = plan_of(read_order([*argv, "--lora", f"{files[0]}:0.5", "--compare", "1,0,-2"]))
    assert plan.columns == ("x1", "x0", "x-2")
    strengths = [dict(piece.adapters).get(files[0], 0) for piece in plan.pieces]
    assert strengths == [0.5, 0.25, 0, 0, -1, -0.5]
    plan = plan_of(read_order([*argv, "--lora", files[0], "--matrix", *files]))
    assert (plan.rows, plan.columns) == ((WORDS, "a dark city"), ("lora", "lokr"))
    assert plan.pieces[0].adapters == ((files[0], 1.0), (files[0], 1.0))
    assert plan.pieces[0].places == ((0, 0),)
    assert {piece.prompt.seed for piece in plan.pieces if piece.prompt.prompt == WORDS} != {1}
