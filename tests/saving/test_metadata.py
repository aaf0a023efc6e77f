"""What a file says of its making: the table of its entries against the files of real runs."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.anima_workshop.checked import look_at
from library.anima_workshop.checkup import findings_of
from library.anima_workshop.findings import Severity, worst
from library.anima_workshop.metadata_checks import claims_of
from library.data.dataset_config import SubsetConfig
from library.saving.metadata import minimum, start_entries
from library.saving.metadata_datasets import dataset_dirs, tag_frequency, tags_of
from library.saving.metadata_table import (
    FACTS,
    MINIMUM,
    OF_ADAPTERS,
    OF_DATASETS,
    OF_SUBSETS,
    OPTIONS,
    TOTAL,
    WHERE_SET,
    RunFacts,
)
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.options import all_flags
from library.settings.run_config import GROUPS
from library.training.optimizers import create_optimizer, describe_optimizer
from tests.helpers.running import config_files, make_trainer, model_paths, train, write_toml

OF_ANIMA = {
    "base_model_version", "qwen3_max_token_length", "t5_max_token_length", "empty_caption",
    "attention", "fused_kernels", "text_padding",
    *(f"{role}_{what}" for role in ("sd_model", "vae", "qwen3") for what in ("name", "hash")),
    *(f"new_{role}_hash" for role in ("sd_model", "vae", "qwen3")),
}  # fmt: skip
AT_SAVE = ("steps", "epoch", "training_finished_at")
ALWAYS = {*OPTIONS, *FACTS, *OF_ADAPTERS, *AT_SAVE, *OF_ANIMA}
MODELSPEC = {"sai_model_spec", "title", "resolution", "date", "architecture", "implementation"}
DECIDE_THE_RESULT = ("optimizer", "schedule", "network", "loss", "flow", "validation")
ELSEWHERE = {
    "optimizer_type": "ss_optimizer", "use_8bit_adam": "ss_optimizer",
    "use_lion_optimizer": "ss_optimizer", "optimizer_args": "ss_optimizer",
    "network_dim": "ss_network_dim", "network_alpha": "ss_network_alpha",
    "network_args": "ss_network_args", "network_weights": "ss_network_weights",
    "base_weights": "ss_base_weights", "dim_from_weights": "ss_network_dim",
    "validation_split": "ss_validation_split", "validation_seed": "ss_validation_seed",
    "network_train_unet_only": "ss_text_encoder_lr", "text_encoder_lr": "ss_text_encoder_lr",
    "prior_preservation_prompts": "ss_prior_preservation_prompts",
}  # fmt: skip


def metadata_of(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def entries(found, prefix):
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


@pytest.mark.all_pictures
def test_the_file_of_a_plain_run_has_every_entry_of_the_table(demo, run_folder):
    settings = {
        "max_train_steps": 1, "gradient_accumulation_steps": 3, "scale_weight_norms": 1.5,
        "optimizer_type": "SGDNesterov", "optimizer_args": ["weight_decay=0.25"],
    }  # fmt: skip
    dataset = {"resolution": 128, "shuffle_caption": True, "keep_tokens": 1, "num_repeats": 2}
    train(demo, run_folder, settings, **dataset)
    found = metadata_of(run_folder / "out" / "run.safetensors")
    assert entries(found, "ss_") == ALWAYS | {*OF_DATASETS, *OF_SUBSETS, TOTAL}
    assert entries(found, "modelspec.") == MODELSPEC
    assert found["ss_resolution"] == "(128, 128)" and found["ss_enable_bucket"] == "True"
    assert (found["ss_min_bucket_reso"], found["ss_max_bucket_reso"]) == ("64", "256")
    assert (found["ss_batch_size_per_device"], found["ss_total_batch_size"]) == ("2", "6")
    assert (found["ss_shuffle_caption"], found["ss_keep_tokens"]) == ("True", "1")
    assert found["ss_flip_aug"] == "False" and found["ss_scale_weight_norms"] == "1.5"
    assert found["ss_optimizer"] == (
        "torch.optim.sgd.SGD(momentum=0.9,nesterov=True,weight_decay=0.25)"
    )
    buckets = json.loads(found["ss_bucket_info"])["buckets"].values()
    assert sum(bucket["count"] for bucket in buckets) == int(found["ss_num_train_images"]) == 24
    (dataset,) = json.loads(found["ss_datasets"])
    assert dataset["bucket_info"] == json.loads(found["ss_bucket_info"])
    assert dataset["tag_frequency"] == json.loads(found["ss_tag_frequency"])
    assert dataset["num_train_images"] == 24 and dataset["is_dreambooth"]
    (subset,) = dataset["subsets"]
    assert (subset["img_count"], subset["num_repeats"], subset["is_reg"]) == (12, 2, False)
    assert subset["image_dir"] == "pictures" and str(run_folder) not in str(found)
    assert len(found["ss_vae_hash"]) == len(found["ss_sd_model_hash"]) == 8
    assert_parts_are_named(found, load_file(run_folder / "out" / "run.safetensors"))
    assert_nothing_is_said_falsely(run_folder / "out" / "run.safetensors", demo)


def assert_parts_are_named(found, tensors):
    """The model's blocks are counted, and every adapted module is told by a name of its part."""
    paths = {re.sub(r"\.(lora_.*|alpha|._norm)$", "", key).removeprefix("diffusion_model.") for key in tensors}
    own = {path.split(".")[1] for path in paths if path.startswith("blocks.")}
    parts = json.loads(found["ss_adapted_parts"])
    assert found["ss_num_blocks"] == str(len(own)) and sum(parts.values()) == len(paths)
    for path in paths:
        assert re.sub(r"blocks\.\d+\.", "blocks.*.", path) in parts
    assert parts["blocks.*.mlp.layer1"] == len(own) and "llm_adapter.norm" in parts


def assert_nothing_is_said_falsely(file, demo):
    """Compared with the tensors, as tools/check_lora.py does; the file is healthy else too."""
    checked = look_at(file, model_paths(demo)["anima_transformer"])
    claims = {claim.entry: claim.is_true for claim in claims_of(checked)}
    assert len(claims) == 11 and False not in claims.values() and claims["sshs_model_hash"]
    assert worst(findings_of(checked)) is Severity.NOTE


def test_no_metadata_keeps_the_modelspec_and_the_minimum(demo, run_folder):
    settings = {"max_train_steps": 1, "no_metadata": True, "metadata_title": "A title"}
    train(demo, run_folder, settings)
    found = metadata_of(run_folder / "out" / "run.safetensors")
    assert entries(found, "ss_") == set(MINIMUM)
    assert entries(found, "modelspec.") == MODELSPEC - {"date"}
    assert found["modelspec.title"] == "A title" and "anima" in found["modelspec.architecture"]


def test_every_option_that_decides_the_result_is_recorded():
    options = [*OPTIONS.values(), *WHERE_SET.values()]
    recorded = {option.rpartition(".")[2] for option in options} | set(ELSEWHERE)
    flags = all_flags([GROUPS[name] for name in DECIDE_THE_RESULT])
    acting = {dest for dest, flag in flags.items() if not (flag.ignored or flag.refused)}
    assert acting <= recorded


def facts_of(demo, folder, text):
    """A run's facts from a dataset file, up to where its data is known."""
    argv = config_files(demo, folder, {})
    (folder / "dataset.toml").write_text(text, encoding="utf-8")
    trainer = make_trainer(argv)
    trainer.prepare_process()
    trainer.open_state()
    trainer.check()
    trainer.prepare_data()
    return RunFacts(trainer.cfg, trainer.catalogue, trainer.plan, trainer.outline, "O", 1, 2)


def folder_of(path, captions):
    """A folder of pictures that differ in size only, with their captions."""
    from PIL import Image

    path.mkdir(parents=True)
    for number, caption in enumerate(captions):
        Image.new("RGB", (128 + number, 128)).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(caption, encoding="utf-8")
    return path


def subset_lines(path, **keys):
    values = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    return f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(path))}\n{values}"


def test_folders_of_one_name_are_told_apart_and_their_tags_add_up(demo, run_folder):
    first = folder_of(run_folder / "a" / "img", ["cat, red", "cat"])
    second = folder_of(run_folder / "b" / "img", ["cat, blue\ncat, on a second line"])
    reg = folder_of(run_folder / "c" / "reg", ["dog"])
    facts = facts_of(
        demo, run_folder,
        "[[datasets]]\nresolution = 128\nbatch_size = 2\n"
        + subset_lines(reg, is_reg=True) + subset_lines(first, num_repeats=3)
        + subset_lines(f"{second}/", flip_aug=True, caption_lines="each")
        + "[[datasets]]\nresolution = 192\nbatch_size = 1\n" + subset_lines(first),
    )  # fmt: skip
    assert dataset_dirs(facts.catalogue, is_reg=False) == {
        "img": {"n_repeats": 3, "img_count": 2},
        "img (2)": {"n_repeats": 1, "img_count": 1},
        "img (3)": {"n_repeats": 1, "img_count": 2},
    }
    assert dataset_dirs(facts.catalogue, is_reg=True) == {"reg": {"n_repeats": 1, "img_count": 1}}
    tags = tag_frequency(facts.catalogue)
    assert list(tags) == ["img", "reg"]
    assert tags["img"] == {"cat": 4, "red": 1, "blue": 1, "on a second line": 1}
    found = start_entries(facts)
    assert not {"ss_resolution", "ss_batch_size_per_device", "ss_total_batch_size"} & set(found)
    assert "ss_flip_aug" not in found and found["ss_keep_tokens"] == "0"


def test_a_list_of_resolutions_tells_of_its_folders_once(demo, run_folder):
    images = folder_of(run_folder / "img", ["cat", "cat"])
    text = "[[datasets]]\nresolutions = [128, 192]\nbatch_size = 2\n" + subset_lines(images)
    facts = facts_of(demo, run_folder, text)
    assert dataset_dirs(facts.catalogue, is_reg=False) == {"img": {"n_repeats": 1, "img_count": 2}}
    assert tag_frequency(facts.catalogue) == {"img": {"cat": 2}}
    assert len(json.loads(start_entries(facts)["ss_datasets"])) == 2


def test_folders_named_by_flags_are_told_as_sd_scripts_does(demo, run_folder):
    folder_of(run_folder / "train" / "2_cat", ["cat"])
    settings = {
        **model_paths(demo), "train_data_dir": str(run_folder / "train"), "resolution": "128,192",
        "network_module": "networks.lora_anima", "output_dir": str(run_folder / "out"),
        "train_batch_size": 3, "caption_dropout_every_n_epochs": 2, "flip_aug": True,
    }  # fmt: skip
    trainer = make_trainer(["--config_file", str(write_toml(run_folder / "a.toml", settings))])
    trainer.prepare_process()
    trainer.open_state()
    trainer.check()
    trainer.prepare_data()
    parts = (trainer.cfg, trainer.catalogue, trainer.plan, trainer.outline, "O", 1, 2)
    found = start_entries(RunFacts(*parts))
    assert found["ss_resolution"] == "(128, 192)" and found["ss_total_batch_size"] == "6"
    assert found["ss_caption_dropout_every_n_epochs"] == "2" and found["ss_flip_aug"] == "True"
    assert json.loads(found["ss_dataset_dirs"]) == {"2_cat": {"n_repeats": 2, "img_count": 1}}
    assert {f"ss_{name}" for name in ("enable_bucket", "keep_tokens", "bucket_info")} <= set(found)


@pytest.mark.parametrize(
    "caption, tags",
    [
        ("1girl, solo , smile", ["1girl", "solo", "smile"]),
        ("1girl, looking at viewer.", ["1girl", "looking at viewer."]),
        ("A girl with long hair, standing in the rain.", None),
        ('She says "no, it is not so far away!"', None),
        ("1girl, solo\nA girl stands in the pouring rain, wet and cold.",
         ["1girl", "solo", "A girl stands in the pouring rain, wet and cold."]),
        ("tag with many words in it, another", ["tag with many words in it", "another"]),
        ("一个女孩站在海边,她的头发在风中飘动。", None),
        ("蓝色长发, 微笑, 看向镜头", ["蓝色长发", "微笑", "看向镜头"]),
        ("She walks alone through the rain (and sings, too).)", None),
        ("a girl with long hair stands on the beach, looking at the sea", None),
        ("1girl, a girl with long hair stands on the beach",
         ["1girl", "a girl with long hair stands on the beach"]),
    ],
)  # fmt: skip
def test_sentences_are_not_cut_into_tags(caption, tags):
    subset = SubsetConfig(image_dir="a", caption_lines="join")
    image = SimpleNamespace(sentences=None, caption=caption, subset=subset)
    assert tags_of(image) == ([caption] if tags is None else tags)


@pytest.mark.parametrize(
    "name, args, expected",
    [
        ("", (), "torch.optim.adamw.AdamW"),
        ("AdamW", ("weight_decay=0.2", "betas=0.9,0.95"),
         "torch.optim.adamw.AdamW(weight_decay=0.2,betas=(0.9, 0.95))"),
        ("Adafactor", (), "transformers.optimization.Adafactor(relative_step=True)"),
        ("Prodigy", ("safeguard_warmup=True",), "prodigyopt.prodigy.Prodigy(safeguard_warmup=True)"),
    ],
)  # fmt: skip
def test_the_optimizer_is_named_with_its_arguments(name, args, expected):
    options = OptimizerOptions(optimizer_type=name, optimizer_args=args, learning_rate=1.0)
    made = create_optimizer(options, [{"params": [torch.nn.Parameter(torch.ones(2, 2))]}])
    assert describe_optimizer(made, options) == expected


def test_the_minimum_is_what_no_metadata_leaves():
    full = {"ss_v2": "False", "ss_seed": "1", "modelspec.title": "t", "modelspec.date": "d"}
    assert minimum(full) == {"ss_v2": "False", "modelspec.title": "t"}
