"""Bad input is told before any heavy work: what, where, what to do; nothing is written or lost."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from library.errors import UserError
from tests.helpers import warm
from tests.helpers.pictures import has_caches_as_given
from tests.helpers.processes import ACCELERATE, TRAINER
from tests.helpers.running import config_files, make_trainer
from tests.helpers.tiny import golden
from tests.helpers.workers import forking_program


def complaint(argv, *words):
    """The error of a run that must fail before heavy work; `words` must all be in it."""
    with pytest.raises(UserError) as caught:
        make_trainer(argv).train()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return str(caught.value)


def nothing_was_made(demo: Path, folder: Path) -> bool:
    return not (folder / "out").exists() and has_caches_as_given(demo, folder)


FLAGS = {
    "misspelt": ({"leanring_rate": 1}, ["leanring_rate", "Did you mean learning_rate?", "line"]),
    "text for a number": ({"learning_rate": "1e-4"}, ["Remove the quotes", "learning_rate"]),
    "no such choice": ({"mixed_precision": "bf61"}, ["Did you mean bf16?"]),
    "refused": ({"deepspeed": True}, ["deepspeed", "every process holds all that trains"]),
    "two forms": ({"fp8_base": True, "int8_base": True}, ["one form", "int8_base"]),
    "three forms": ({"fp8_base": True, "nf4_base": True}, ["one form", "fp8_base, nf4_base"]),
    "8 bits of float32": ({"int8_base": True}, ["int8_base", "needs mixed_precision = bf16"]),
    "unknown network argument": ({"network_args": ["lokr_facto=4"]}, ["lokr_facto"]),
    "no pattern matches": ({"network_args": ["target_modules=nothing_here"]}, ["nothing_here"]),
    "argument without =": ({"network_args": ["rank_dropout"]}, ["rank_dropout", "key=value"]),
    "full matrices as LoRA": ({"network_dim": 100000}, ["networks.lokr_anima"]),
    "unknown network module": ({"network_module": "networks.lora"}, ["networks.lora_anima"]),
    "lycoris": (
        {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "factor=8"]},
        ["networks.lokr_anima", "lokr_factor=8"],
    ),
    "schedule-free with cosine": (
        {"optimizer_type": "RAdamScheduleFree", "lr_scheduler": "cosine"},
        ["constant", "RAdamScheduleFree"],
    ),
    "constant with warm-up": ({"lr_warmup_steps": 10}, ["constant_with_warmup"]),
    "unknown optimizer": ({"optimizer_type": "AdamV"}, ["AdamV", "Did you mean"]),
    "optimizer argument without =": ({"optimizer_args": ["weight_decay"]}, ["weight_decay"]),
    "fp16 on the CPU": ({"mixed_precision": "fp16"}, ["fp16", "CUDA", "bf16"]),
    "output_dir missing": ({"output_dir": None}, ["output_dir", "needed"]),
    "output_dir below a file": ({"output_dir": "{file}/out"}, ["is a file", "expected a folder"]),
    "no model files": (
        {"anima_transformer": "a.safetensors", "vae": "v.safetensors", "qwen": "q.safetensors"},
        ["a.safetensors", "v.safetensors", "q.safetensors", "no such file"],
    ),
    "the VAE as DiT": ({"anima_transformer": "{vae}"}, ["is a VAE", "expected Anima's DiT"]),
    "the DiT as text encoder": ({"qwen": "{dit}"}, ["is an Anima DiT", "Qwen3"]),
    "a LoRA as base": ({"anima_transformer": "{lora}"}, ["a LoRA or LoKr, not a base model"]),
    "no tokenizer": ({"t5_tokenizer_dir": "nowhere"}, ["nowhere", "spiece.model", "download"]),
    "tokenizers swapped": ({"t5_tokenizer_dir": "{qwen_tokenizer}"}, ["T5", "qwen_tokenizer"]),
    "no network_weights": ({"network_weights": "gone.safetensors"}, ["gone.safetensors"]),
    "network_weights of another kind": ({"network_weights": "{lokr}"}, ["networks.lokr_anima"]),
    "no base_weights": ({"base_weights": ["gone.safetensors"]}, ["gone.safetensors"]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_wrong_setting_is_named_before_anything_is_made(demo, run_folder, name):
    settings, words = FLAGS[name]
    (run_folder / "taken").write_text("x")
    here = {
        "file": run_folder / "taken",
        "vae": demo / "models/qwen_image_vae.safetensors",
        "dit": demo / "models/anima_dit.safetensors",
        "qwen_tokenizer": demo / "models/qwen_tokenizer",
        "lora": golden("adapter_lora.safetensors"),
        "lokr": golden("adapter_lokr_low.safetensors"),
    }
    settings = {
        key: value.format(**here) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    complaint(config_files(demo, run_folder, settings), *words)
    assert nothing_was_made(demo, run_folder)


def test_problems_of_both_files_are_told_at_once(demo, run_folder):
    settings = {"learning_rate": "fast", "leanring_rate": 1}
    argv = config_files(demo, run_folder, settings, num_repeat=3, image_dir="/nowhere")
    message = complaint(argv, "learning_rate", "leanring_rate", "num_repeats", "/nowhere")
    assert "train_args.toml" in message and "dataset.toml" in message


def damaged(path: Path, keep: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


PICTURES = {
    "a folder without pictures": (lambda p: [f.unlink() for f in p.iterdir()], ["no picture"]),
    "a truncated picture": (lambda p: damaged(p / "01_meadow.png", 2000), ["01_meadow.png"]),
    "text named png": (lambda p: (p / "x.png").write_text("not a picture"), ["x.png"]),
    "a caption in GBK": (
        lambda p: (p / "01_meadow.txt").write_bytes("一个女孩".encode("gbk")),
        ["01_meadow.txt", "UTF-8"],
    ),
    "a caption that is a folder": (
        lambda p: [(p / "01_meadow.txt").unlink(), (p / "01_meadow.txt").mkdir()],
        ["01_meadow.txt"],
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_bad_pictures_and_captions_are_named(demo, run_folder, name):
    spoil, words = PICTURES[name]
    spoil(run_folder / "pictures")
    complaint(config_files(demo, run_folder, {}), *words)
    assert nothing_was_made(demo, run_folder)


@pytest.mark.parametrize("size", [130, 16])
def test_a_resolution_that_does_not_fit_the_buckets_is_refused(demo, run_folder, size):
    complaint(config_files(demo, run_folder, {}, resolution=size), "resolution", str(size))


def test_a_quantised_or_truncated_checkpoint_is_refused(demo, run_folder):
    tensors = load_file(demo / "models/anima_dit.safetensors")
    quantised = run_folder / "q.safetensors"
    save_file({**tensors, "net.blocks.0.mlp.layer1.comfy_quant": torch.zeros(1)}, quantised)
    settings = {"anima_transformer": str(quantised)}
    complaint(config_files(demo, run_folder, settings), "quantised", "bf16")
    damaged(quantised, 4000)
    complaint(config_files(demo, run_folder, settings), "not a whole", "q.safetensors")


def test_a_text_encoder_of_another_width_is_refused(demo, run_folder):
    tensors = load_file(demo / "models/qwen_3_06b.safetensors")
    width = tensors["model.norm.weight"].shape[0]
    wider = {
        key: torch.zeros([2 * edge if edge == width else edge for edge in tensor.shape])
        for key, tensor in tensors.items()
    }
    save_file(wider, run_folder / "wide.safetensors")
    argv = config_files(demo, run_folder, {"qwen": str(run_folder / "wide.safetensors")})
    complaint(argv, f"is {2 * width} wide", "wide.safetensors", "LLM adapter reads")


def test_missing_files_are_told_together(demo, run_folder):
    argv = config_files(demo, run_folder, {"vae": "v.safetensors", "qwen": "q.safetensors"})
    complaint(argv, "2 problems", "v.safetensors", "q.safetensors")


def captions_seen(trainer):
    requests = [request for batch in trainer.sampler.batches(0) for request in batch]
    return {trainer.dataset[r].key.rpartition("/")[2]: trainer.dataset[r].caption for r in requests}


@pytest.mark.parametrize("tokens, expected", [({}, ""), ({"class_tokens": "a girl"}, "a girl")])
def test_a_picture_without_caption_is_named_and_trained(demo, run_folder, caplog, tokens, expected):
    (run_folder / "pictures" / "01_meadow.txt").unlink()
    trainer = make_trainer(config_files(demo, run_folder, {}, **tokens))
    trainer.prepare()
    assert captions_seen(trainer)["01_meadow.png"] == expected
    assert len([r for r in caplog.records if "01_meadow.png" in r.getMessage()]) == 1


def test_chinese_folders_and_names_with_spaces_train(demo, tmp_path):
    folder = tmp_path / "我的 角色"
    (folder / "pictures").mkdir(parents=True)
    for number in range(2):
        name = folder / "pictures" / f"图 {number}.png"
        Image.new("RGB", (128, 128), (40 * number, 90, 200)).save(name)
        name.with_suffix(".txt").write_text("蓝色", encoding="utf-8")
    settings = {"output_name": "角色 一", "max_train_steps": 1, "cache_latents_to_disk": True}
    make_trainer(config_files(demo, folder, settings)).train()
    assert (folder / "out" / "角色 一.safetensors").is_file()


def test_as_a_process_it_exits_with_2_and_no_traceback(demo, run_folder):
    argv = config_files(demo, run_folder, {"leanring_rate": 1})
    done = warm.run(["anima_train_network.py", *argv])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("ConfigError: 1 problem in ")


def test_under_the_launcher_the_message_stays_whole(demo, run_folder):
    argv = config_files(demo, run_folder, {"vae": "v.safetensors", "qwen": "q.safetensors"})
    done = warm.run([*ACCELERATE, TRAINER, *argv], python=forking_program(run_folder))
    assert done.returncode != 0
    assert "v.safetensors: no such file" in done.stderr and "q.safetensors: no such" in done.stderr


PATHS = ["anima_transformer", "llm_adapter_path", "vae", "qwen", "qwen_tokenizer_dir",
         "t5_tokenizer_dir", "network_weights", "base_weights", "output_dir", "logging_dir",
         "console_log_file", "log_tracker_config", "output_name", "metadata_thumbnail",
         "image_dir"]  # fmt: skip


@pytest.mark.parametrize("value", ["x" * 300, "a\0b", "\x1b[2J", "/dev/null/x", "."])
@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_cannot_be_is_told(demo, run_folder, monkeypatch, name, value):
    monkeypatch.chdir(run_folder)
    settings = {} if name == "image_dir" else {name: [value] if name == "base_weights" else value}
    dataset = {"image_dir": value} if name == "image_dir" else {}
    argv = config_files(demo, run_folder, settings, **dataset)
    try:
        trainer = make_trainer(argv)
        trainer.prepare_process()
        trainer.open_state()
        trainer.check()
        trainer.prepare_data()
    except UserError as error:
        assert "\x1b" not in str(error) and "\0" not in str(error)
