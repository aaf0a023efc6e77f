"""Pictures drawn while a run goes on: they are drawn as asked, and the run does not know of them."""

import json

import numpy
import pytest
import torch
from PIL import Image

from tests.helpers.running import config_files, make_trainer, train

LORA = {"network_dropout": 0.3, "network_args": ["rank_dropout=0.2", "module_dropout=0.2"]}
LOKR = {
    "network_module": "networks.lokr_anima", "network_dropout": 0.3,
    "network_args": ["lokr_factor=4", "module_dropout=0.2"], "optimizer_type": "AdamWScheduleFree",
}  # fmt: skip
PROMPTS = "a (red:1.3) house --w 72 --h 64 --s 2 --d 3\na meadow --s 2 --l 1 --am 0.5 --ss euler\n"
SIZES = {"batch_size": 4, "resolution": 64}


def with_prompts(folder, text=PROMPTS):
    (folder / "prompts.txt").write_text(text)
    return {"sample_prompts": str(folder / "prompts.txt")}


def pixels(path):
    with Image.open(path) as picture:
        return numpy.asarray(picture)


def drawn(trainer):
    return [(each.step, each.epoch, each.number) for each in trainer.previews.drawn]


@pytest.fixture(scope="module", params=[LORA, LOKR], ids=["lora", "lokr"])
def runs(demo, tmp_path_factory, request):
    """The same run without pictures, and with them at every place; an epoch has three steps."""
    folder = tmp_path_factory.mktemp("previews")
    (folder / "pictures").symlink_to(demo / "pictures")
    settings = {**request.param, "max_train_steps": 4, "no_metadata": True}
    train(demo, folder, settings, **SIZES)
    without = (folder / "out" / "run.safetensors").read_bytes()
    settings |= {
        "sample_every_n_steps": 2, "sample_every_n_epochs": 1, "sample_at_first": True,
        "sample_sampler": "heun", **with_prompts(folder),
    }  # fmt: skip
    trainer = train(demo, folder, settings, **SIZES)
    return folder, trainer, without


def test_training_does_not_know_of_the_pictures(runs):
    folder, _, without = runs
    assert (folder / "out" / "run.safetensors").read_bytes() == without


def test_pictures_are_drawn_when_they_are_due_and_once_for_each_step(runs):
    _, trainer, _ = runs
    places = [(0, None), (2, None), (3, 1), (4, None)]
    assert drawn(trainer) == [(*place, number) for place in places for number in (0, 1)]


def test_a_picture_says_how_it_was_drawn(runs):
    _, trainer, _ = runs
    told = []
    for each in trainer.previews.drawn:
        with Image.open(each.path) as picture:
            graph = json.loads(picture.text["prompt"])
            size = picture.size
        sampler = next(n for n in graph.values() if n["class_type"] == "KSampler")["inputs"]
        loras = [n["inputs"] for n in graph.values() if n["class_type"] == "LoraLoaderModelOnly"]
        names = [(lora["lora_name"], lora["strength_model"]) for lora in loras]
        told.append((size, sampler["sampler_name"], sampler["seed"], names))
    expected = [((72, 64), "heun", 3, []), ((64, 64), "euler", 8, [])]
    for file in ["run-step00000002", "run-step00000003", "run"]:
        expected.append(((72, 64), "heun", 3, [(f"{file}.safetensors", 1.0)]))
        expected.append(((64, 64), "euler", 8, [(f"{file}.safetensors", 0.5)]))
    assert told == expected


def test_the_pictures_are_those_of_the_file_that_is_saved(demo, runs, tmp_path):
    """A run that begins with the last run's file draws the last run's last pictures."""
    folder, trainer, _ = runs
    (tmp_path / "pictures").symlink_to(demo / "pictures")
    settings = {
        "network_weights": str(folder / "out" / "run.safetensors"), "dim_from_weights": True,
        "network_module": trainer.cfg.network.network_module, "sample_at_first": True,
        "sample_every_n_steps": 9, "sample_sampler": "heun", "max_train_steps": 1, "log_with": "none",
        **with_prompts(tmp_path),
    }  # fmt: skip
    again = train(demo, tmp_path, settings, **SIZES).previews.drawn
    last = trainer.previews.drawn[-2:]
    assert [(each.step, each.number) for each in again] == [(0, 0), (0, 1)]
    for one, other in zip(again, last):
        difference = pixels(one.path).astype(int) - pixels(other.path)
        assert abs(difference).max() <= 1  # a file holds factors, rounded where they are merged
    first = trainer.previews.drawn[0].path
    assert (pixels(first) != pixels(last[0].path)).any()


@pytest.mark.parametrize("settings, is_shared", [
    ({"cache_latents": True}, False),
    ({"cache_latents": False}, True),
    ({"cache_latents": False, "sample_on_cpu_vae": True}, False),
])  # fmt: skip
def test_settings_of_the_decoder_reach_it(demo, run_folder, settings, is_shared):
    """The VAE that training needs for uncached pictures decodes too, unless that is for the CPU."""
    settings = {**settings, "vae_chunk_size": 2, "mixed_precision": "bf16", "log_with": "none"}
    trainer = make_trainer(config_files(demo, run_folder, settings))
    trainer.prepare()
    studio = trainer.previews.studio
    assert studio.rows == 2 and studio.keeps_decoder is is_shared
    assert (studio.decoder is trainer.latents_strategy) is is_shared
    if not is_shared:
        assert (studio.decoder.vae.device.type, studio.decoder.vae.dtype) == ("cpu", torch.float32)
