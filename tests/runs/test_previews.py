"""Pictures drawn while a run goes on: they are drawn as asked, and the run does not know of them."""

import functools
import json
import shutil
import signal
import sys

import numpy
import pytest
import torch
from PIL import Image

from anima_train_network import AnimaNetworkTrainer
from library.errors import ConfigError
from tests.helpers.processes import TRAINER, ended, start_ranks
from tests.helpers.running import config_files, make_trainer, train

KINDS = {
    "lora": {"network_dropout": 0.3, "network_args": ["rank_dropout=0.2", "module_dropout=0.2"]},
    "lokr": {
        "network_module": "networks.lokr_anima", "network_dropout": 0.3,
        "network_args": ["lokr_factor=4", "module_dropout=0.2"],
        "optimizer_type": "AdamWScheduleFree",
    },
}  # fmt: skip
PROMPTS = "a (red:1.3) house --w 72 --h 64 --s 2 --d 3\na meadow --s 2 --l 1 --am 0.5 --ss euler\n"
SMALL = "a --s 1 --l 1 --w 64 --h 64\n"
EACH_STEP = {
    "max_train_steps": 3, "sample_every_n_steps": 1, "save_state": True, "log_with": "none",
    "no_metadata": True, "report": "none",
}  # fmt: skip
SIZES = {"batch_size": 4, "resolution": 64}


def with_prompts(folder, text=PROMPTS):
    (folder / "prompts.txt").write_text(text)
    return {"sample_prompts": str(folder / "prompts.txt")}


def pixels(path):
    with Image.open(path) as picture:
        return numpy.asarray(picture)


def drawn(trainer):
    return [(each.step, each.epoch, each.number) for each in trainer.previews.drawn]


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    """By kind: the same run without pictures, and with them at every place; an epoch has three steps."""

    @functools.cache
    def made(kind):
        folder = tmp_path_factory.mktemp("previews")
        (folder / "pictures").symlink_to(demo / "pictures")
        settings = {**KINDS[kind], "max_train_steps": 4, "no_metadata": True, "report": "none"}
        train(demo, folder, settings, **SIZES)
        without = (folder / "out" / "run.safetensors").read_bytes()
        settings |= {
            "sample_every_n_steps": 2, "sample_every_n_epochs": 1, "sample_at_first": True,
            "sample_sampler": "heun", **with_prompts(folder),
        }  # fmt: skip
        return folder, train(demo, folder, settings, **SIZES), without

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_training_does_not_know_of_the_pictures(runs, kind):
    folder, _, without = runs(kind)
    assert (folder / "out" / "run.safetensors").read_bytes() == without


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_drawn_when_they_are_due_and_once_for_each_step(runs, kind):
    _, trainer, _ = runs(kind)
    places = [(0, None), (2, None), (3, 1), (4, None)]
    assert drawn(trainer) == [(*place, number) for place in places for number in (0, 1)]


def test_a_picture_says_how_it_was_drawn(runs):
    _, trainer, _ = runs("lora")
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
    folder, trainer, _ = runs("lokr")
    (tmp_path / "pictures").symlink_to(demo / "pictures")
    settings = {
        "network_weights": str(folder / "out" / "run.safetensors"), "dim_from_weights": True,
        "network_module": trainer.cfg.network.network_module, "sample_at_first": True,
        "sample_every_n_steps": 9, "sample_sampler": "heun", "max_train_steps": 1, "log_with": "none",
        "report": "none", **with_prompts(tmp_path),
    }  # fmt: skip
    again = train(demo, tmp_path, settings, **SIZES).previews.drawn
    last = trainer.previews.drawn[-2:]
    assert [(each.step, each.number) for each in again] == [(0, 0), (0, 1)]
    for one, other in zip(again, last):
        difference = pixels(one.path).astype(int) - pixels(other.path)
        assert abs(difference).max() <= 1  # a file holds factors, rounded where they are merged
    first = trainer.previews.drawn[0].path
    assert (pixels(first) != pixels(last[0].path)).any()


def test_settings_of_the_decoder_reach_it(demo, run_folder):
    settings = {
        "cache_latents": False, "sample_on_cpu_vae": True, "vae_chunk_size": 2, "log_with": "none",
        "mixed_precision": "bf16",
    }  # fmt: skip
    trainer = make_trainer(config_files(demo, run_folder, settings))
    trainer.prepare()
    studio = trainer.previews.studio
    assert studio.rows == 2 and not studio.keeps_decoder
    assert studio.decoder is not trainer.latents_strategy
    assert (studio.decoder.vae.device.type, studio.decoder.vae.dtype) == ("cpu", torch.float32)


def test_mistakes_in_the_prompts_are_told_with_all_others(demo, run_folder):
    settings = {**with_prompts(run_folder, "a --w 500\nb --ss eulr\n"), "learning_rte": 1}
    with pytest.raises(ConfigError) as caught:
        make_trainer(config_files(demo, run_folder, settings))
    told = str(caught.value)
    assert "learning_rte" in told and "line 1  --w 500" in told and "Did you mean euler?" in told


class Eventful(AnimaNetworkTrainer):
    """A trainer to which something happens while it draws after a step, or trains after it.

    events: by (step, "draws" or "trains")
    """

    def __init__(self, argv, events):
        trainer = make_trainer(argv)
        super().__init__(trainer.cfg, trainer.datasets, trainer.anima)
        self.events = events

    def prompt_context(self, model, outputs):
        self.events.pop((self.state.step, "draws"), lambda: None)()
        return super().prompt_context(model, outputs)

    def train_step(self, window):
        self.events.pop((self.state.step, "trains"), lambda: None)()
        super().train_step(window)


def eventful(demo, folder, events, text=SMALL, **settings):
    settings = {**EACH_STEP, **with_prompts(folder, text), **settings}
    trainer = Eventful(config_files(demo, folder, settings, **SIZES), events)
    trainer.train()
    return trainer


def test_a_run_that_is_stopped_while_drawing_goes_on_to_the_same_and_draws_what_is_missing(
    demo, run_folder
):
    out, text, short = run_folder / "out", SMALL * 2, {"max_train_steps": 2}
    eventful(demo, run_folder, {}, text, **short)
    whole = (out / "run.safetensors").read_bytes()
    pictures = {path.name[:13]: path for path in sorted((out / "sample").glob("*.png"))}
    assert list(pictures) == [f"run_00000{step}_0{n}" for step in (1, 2) for n in (0, 1)]
    expected = {name: pixels(path) for name, path in pictures.items()}
    for name in ("run_000001_01", "run_000002_00", "run_000002_01"):
        pictures[name].unlink()
    interrupt = functools.partial(signal.raise_signal, signal.SIGINT)
    (out / "run.safetensors").unlink()
    stopped = eventful(demo, run_folder, {(1, "draws"): interrupt}, text, **short)
    assert stopped.state.step == 1 and drawn(stopped) == []
    assert not (out / "run.safetensors").exists()
    state = str(out / "run-step00000001-state")
    goes_on = eventful(demo, run_folder, {}, text, resume=state, **short)
    assert drawn(goes_on) == [(1, None, 1), (2, None, 0), (2, None, 1)]
    assert (out / "run.safetensors").read_bytes() == whole
    found = {path.name[:13]: pixels(path) for path in (out / "sample").glob("*.png")}
    assert all((found[name] == expected[name]).all() for name in expected)
    with Image.open(out / "sample" / "run_sheet.jpg") as sheet:
        assert sheet.height > 2 * 64


def test_what_goes_wrong_costs_the_pictures_and_a_new_prompt_is_drawn(demo, run_folder, caplog):
    """Memory that is too short, a folder that is lost; a prompt more, whose encoder has gone."""
    folder = run_folder / "out" / "sample"

    def too_short():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 GiB")

    def lost():
        shutil.rmtree(folder)
        folder.write_text("in the way")

    def more():
        folder.unlink()
        with_prompts(run_folder, SMALL + "a (dog:1.2) --s 1 --w 64 --h 64\n")

    events = {(1, "draws"): too_short, (3, "draws"): lost, (3, "trains"): more}
    trainer = eventful(demo, run_folder, events, max_train_steps=4)
    assert drawn(trainer) == [(2, None, 0), (4, None, 0), (4, None, 1)]
    assert "step 1: memory is too short to draw; training goes on (CUDA out of memory.)" in caplog.text
    assert "step 3: pictures are lost; training goes on (" in caplog.text
    assert (run_folder / "out" / "run.safetensors").is_file()
    late = trainer.previews.drawn[-1].path
    (run_folder / "known").mkdir()
    (run_folder / "known" / "pictures").symlink_to(run_folder / "pictures")
    text = (run_folder / "prompts.txt").read_text()
    known = eventful(demo, run_folder / "known", {}, text, max_train_steps=4, sample_every_n_steps=4)
    assert (pixels(known.previews.drawn[-1].path) == pixels(late)).all()


@pytest.mark.all_pictures
def test_pictures_are_the_same_whatever_saves_memory_and_without_caches(runs, demo, run_folder):
    _, plain, _ = runs("lora")
    settings = {
        **KINDS["lora"], **with_prompts(run_folder), "sample_sampler": "heun", "sample_every_n_steps": 2,
        "max_train_steps": 2, "blocks_to_swap": 2, "gradient_checkpointing": True,
        "cpu_offload_checkpointing": True, "checkpoint_every_n": 2, "recompute": "cheap",
        "cache_latents": False, "cache_text_encoder_outputs": False, "log_with": "none",
        "report": "none",
    }  # fmt: skip
    trainer = train(demo, run_folder, settings, **SIZES)
    studio = trainer.previews.studio
    assert studio.decoder is trainer.latents_strategy and studio.keeps_decoder
    for one, other in zip(trainer.previews.drawn, plain.previews.drawn[2:4], strict=True):
        difference = pixels(one.path).astype(int) - pixels(other.path)
        assert abs(difference).max() <= 1  # pictures encoded together round otherwise than one alone


@pytest.mark.skipif(sys.platform == "win32", reason="gloo as on Linux")
def test_several_processes_share_the_prompts(demo, run_folder):
    settings = {
        **EACH_STEP, **with_prompts(run_folder, SMALL * 3), "max_train_steps": 1, "save_state": False,
        "network_args": ["train_llm_adapter=false"],
    }  # fmt: skip
    argv = config_files(demo, run_folder, settings, batch_size=1, resolution=64)
    said = ended(start_ranks(2, [TRAINER, *argv], CUDA_VISIBLE_DEVICES=""))
    assert said.count("step 1: 3 pictures in") == 1
    files = sorted(path.name for path in (run_folder / "out" / "sample").iterdir())
    assert [name[:13] for name in files] == [
        "run_000001_00", "run_000001_01", "run_000001_02", "run_sheet.jpg"
    ]  # fmt: skip
