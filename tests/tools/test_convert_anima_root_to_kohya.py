"""The converter: every row of its table, what it refuses, and that its result trains."""

import shlex

import pytest
import toml

from library.errors import UserError
from tests.helpers import warm
from tests.helpers.paths import ROOT
from tests.helpers.processes import python
from tests.helpers.running import model_paths, toml_value
from tools.convert_anima_root_to_kohya import SHIFT_LINES, run
from tools.importers import root_style

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

TOOL = ROOT / "tools" / "convert_anima_root_to_kohya.py"
MINIMAL = {
    "model": {"transformer_path": "dit.safetensors", "vae_path": "vae.safetensors",
              "text_encoder_path": "qwen", "t5_tokenizer_dir": "t5"},
    "training": {},
    "dataset": {"data_dir": "pictures", "resolution": 512},
    "output": {"output_dir": "out"},
}  # fmt: skip


def write(path, document):
    lines = []
    for section, values in document.items():
        if isinstance(values, dict):
            lines += [f"[{section}]", *(f"{k} = {toml_value(v)}" for k, v in values.items())]
        else:
            lines.insert(0, f"{section} = {toml_value(values)}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def merged(**changes):
    document = {section: dict(values) for section, values in MINIMAL.items()}
    for name, value in changes.items():
        section, dot, key = name.partition("__")
        if not dot:
            document[name] = value
            continue
        document.setdefault(section, {})
        if value is None:
            document[section].pop(key, None)
        else:
            document[section][key] = value
    return document


def converted(tmp_path, *more, **changes):
    """(train_args, dataset) as read back, the same by the toml package as by tomllib."""
    source = write(tmp_path / "old.toml", merged(**changes))
    files = run(["--input", str(source), "--overwrite", *more])
    found = [tomllib.loads(file.read_text(encoding="utf-8")) for file in files]
    assert found == [toml.load(file) for file in files]
    return found


# old key -> (value, where: t train, n network_args, o optimizer_args, g general, d dataset, s subset;
# new key, new value); "@" stands for the old file's folder
ROWS = [
    (
        "model.transformer_path",
        "a/dit.safetensors",
        "t",
        "anima_transformer",
        "@/a/dit.safetensors",
    ),
    ("model.transformer_path", "x", "t", "pretrained_model_name_or_path", "@/x"),
    ("model.vae_path", "../vae", "t", "vae", "@/../vae"),
    ("model.text_encoder_path", "/abs/qwen", "t", "qwen", "/abs/qwen"),
    ("model.t5_tokenizer_dir", "t5 dir", "t", "t5_tokenizer_dir", "@/t5 dir"),
    ("lora.network_type", "lokr", "t", "network_module", "networks.lokr_anima"),
    ("lora.network_type", "LoRA", "t", "network_module", "networks.lora_anima"),
    ("lora.lora_rank", 16, "t", "network_dim", 16),
    ("lora.lora_alpha", 0.5, "t", "network_alpha", 0.5),
    ("lora.lora_dropout", 0.1, "t", "network_dropout", 0.1),
    ("lora.lora_targets", "q_proj", "n", "target_modules", "q_proj"),
    ("lora.lora_targets", ["q_proj", "k_proj"], "n", "target_modules", "q_proj,k_proj"),
    ("lora.lora_targets", "re:.*\\.q_proj", "n", "target_modules", "re:.*\\.q_proj"),
    ("lora.lokr_factor", 8, "n", "lokr_factor", "8"),
    ("lora.lokr_full_matrix", True, "n", "lokr_full_matrix", "true"),
    ("lora.lokr_full_matrix", "False", "n", "lokr_full_matrix", "false"),
    ("lora.lokr_decompose_both", "true", "n", "lokr_decompose_both", "true"),
    ("lora.lokr_rank_dropout", 0.2, "n", "lokr_rank_dropout", "0.2"),
    ("lora.lokr_module_dropout", 0, "n", "lokr_module_dropout", "0"),
    ("lora.lora_name", "aoi", "t", "output_name", "aoi"),
    ("output.output_dir", "o", "t", "output_dir", "@/o"),
    ("output.output_name", "葵", "t", "output_name", "葵"),
    ("output.save_every", 100, "t", "save_every_n_steps", 100),
    ("output.save_state", True, "t", "save_state", True),
    ("training.max_steps", 300, "t", "max_train_steps", 300),
    ("training.epochs", 7, "t", "max_train_epochs", 7),
    ("training.grad_accum", 4, "t", "gradient_accumulation_steps", 4),
    ("training.learning_rate", 1e-4, "t", "learning_rate", 1e-4),
    ("training.mixed_precision", "bf16", "t", "mixed_precision", "bf16"),
    ("training.seed", 42, "t", "seed", 42),
    ("training.resume", "state", "t", "resume", "@/state"),
    ("training.grad_checkpoint", False, "t", "gradient_checkpointing", False),
    ("training.num_workers", 2, "t", "max_data_loader_n_workers", 2),
    ("training.persistent_data_loader_workers", True, "t", "persistent_data_loader_workers", True),
    ("training.xformers", False, "t", "xformers", False),
    ("training.seq_len", 256, "t", "anima_seq_len", 256),
    ("training.noise_offset", 0.03, "t", "anima_noise_offset", 0.03),
    ("training.caption_tag_dropout_rate", 0.1, "g", "caption_tag_dropout_rate", 0.1),
    ("training.lr_scheduler", "linear", "t", "lr_scheduler", "linear"),
    ("training.lr_warmup_steps", 10, "t", "lr_warmup_steps", 10),
    ("training.lr_warmup_ratio", 0.05, "t", "lr_warmup_steps", 0.05),
    ("training.lr_scheduler_num_cycles", 1.5, "t", "lr_scheduler_num_cycles", 1.5),
    ("training.batch_size", 2, "d", "batch_size", 2),
    ("optimizer.type", "AdamW8bit", "t", "optimizer_type", "AdamW8bit"),
    ("optimizer.weight_decay", 0.01, "o", "weight_decay", "0.01"),
    ("optimizer.eps", 1e-8, "o", "eps", "1e-08"),
    ("dataset.data_dir", "p", "s", "image_dir", "@/p"),
    ("dataset.data_dir", "C:\\图片\\a", "s", "image_dir", "C:/图片/a"),
    ("dataset.repeats", 3, "s", "num_repeats", 3),
    ("dataset.repeats", 0, "s", "num_repeats", 1),
    ("dataset.repeats", " ", "s", "num_repeats", 1),
    ("dataset.resolution", [768, 1024], "d", "resolution", [768, 1024]),
    ("dataset.enable_bucket", False, "d", "enable_bucket", False),
    ("dataset.min_reso", 256, "d", "min_bucket_reso", 256),
    ("dataset.max_reso", 1536, "d", "max_bucket_reso", 1536),
    ("dataset.reso_step", 64, "d", "bucket_reso_steps", 64),
    ("dataset.shuffle_caption", True, "g", "shuffle_caption", True),
    ("dataset.keep_tokens", 1, "g", "keep_tokens", 1),
    ("dataset.keep_tokens_separator", "|||", "g", "keep_tokens_separator", "|||"),
    ("dataset.caption_extension", ".txt", "g", "caption_extension", ".txt"),
    ("dataset.flip_augment", True, "g", "flip_aug", True),
    ("dataset.cache_latents", True, "t", "cache_latents", True),
]


@pytest.mark.parametrize("old, value, where, new, expected", ROWS)
def test_every_row_of_the_mapping(tmp_path, old, value, where, new, expected):
    train, data = converted(tmp_path, **{old.replace(".", "__"): value})
    if isinstance(expected, str) and expected.startswith("@"):
        expected = (tmp_path / expected[2:]).resolve().as_posix()
    arguments = {"n": "network_args", "o": "optimizer_args"}
    if where in arguments:
        assert f"{new}={expected}" in train[arguments[where]]
        return
    (dataset,) = data["datasets"]
    place = {"t": train, "g": data.get("general"), "d": dataset, "s": dataset["subsets"][0]}[where]
    assert place[new] == expected and type(place[new]) is type(expected)


def test_every_rule_has_a_row():
    elsewhere = {"model.t5_tokenizer_path", "training.lr_min_ratio", "optimizer.beta1",
                 "optimizer.beta2"}  # fmt: skip
    assert {row[0] for row in ROWS} | elsewhere == set(root_style.RULES)


def test_keys_that_depend_on_others(tmp_path):
    train, _ = converted(tmp_path, optimizer__beta1=0.9, optimizer__beta2=0.99)
    assert train["optimizer_args"] == ["betas=(0.9,0.99)"]
    train, _ = converted(tmp_path, model__t5_tokenizer_dir=None, model__t5_tokenizer_path="other")
    assert train["t5_tokenizer_dir"] == (tmp_path / "other").as_posix()
    train, _ = converted(tmp_path, training__max_steps=5, training__epochs=2)
    assert train["max_train_steps"] == 5 and "max_train_epochs" not in train
    train, _ = converted(tmp_path, training__max_steps=0, training__epochs=2)
    assert train["max_train_epochs"] == 2 and "max_train_steps" not in train
    train, _ = converted(tmp_path, lora__lora_name="a", output__output_name="b")
    assert train["output_name"] == "b"
    train, _ = converted(tmp_path, training__lr_warmup_steps=3, training__lr_warmup_ratio=0.1)
    assert train["lr_warmup_steps"] == 3
    train, _ = converted(tmp_path, training__resume="", model__t5_tokenizer_path="")
    assert "resume" not in train


def test_a_least_rate_makes_cosine_the_schedule_that_has_one(tmp_path, capsys):
    settings = {"training__lr_scheduler": "cosine", "training__lr_min_ratio": 0.1}
    train, _ = converted(tmp_path, **settings)
    assert train["lr_scheduler"] == "cosine_with_min_lr"
    assert train["lr_scheduler_min_lr_ratio"] == 0.1
    train, _ = converted(tmp_path, training__lr_scheduler="linear", training__lr_min_ratio=0.1)
    assert train["lr_scheduler"] == "linear" and "lr_scheduler_min_lr_ratio" not in train
    assert "training.lr_min_ratio with linear" in capsys.readouterr().out


@pytest.mark.parametrize("more", [{"lr_scheduler": "cosine"}, {"lr_warmup_steps": 5}])
def test_a_schedule_beside_a_schedule_free_optimizer_is_reported(tmp_path, capsys, more):
    changes = {f"training__{key}": value for key, value in more.items()}
    train, _ = converted(tmp_path, optimizer__type="radam_schedulefree", **changes)
    assert train["lr_scheduler"] == "constant" and "lr_warmup_steps" not in train
    assert "radam_schedulefree schedules itself" in capsys.readouterr().out


def test_bucket_sizes_turn_buckets_on_unless_the_file_says_otherwise(tmp_path):
    _, data = converted(tmp_path, dataset__min_reso=256)
    assert data["datasets"][0]["enable_bucket"] is True
    _, data = converted(tmp_path, dataset__min_reso=256, dataset__enable_bucket=False)
    assert data["datasets"][0]["enable_bucket"] is False
    _, data = converted(tmp_path)
    assert "enable_bucket" not in data["datasets"][0]


def test_unsupported_and_unknown_keys_are_reported_apart(tmp_path, capsys):
    changes = {name.replace(".", "__"): 1 for name in root_style.UNSUPPORTED}
    converted(
        tmp_path,
        **changes,
        monitor__alert="warn",
        training__leanring_rate=1,
        training__ema=1,
        extra__a=1,
        top=3,
    )
    unsupported, unknown = capsys.readouterr().out.split("unknown, not converted")
    for name, instead in root_style.UNSUPPORTED.items():
        assert f"{name}: use {instead}" in unsupported
    assert "[monitor]: use" in unsupported
    assert "training.leanring_rate (did you mean training.learning_rate?)" in unknown
    assert "training.ema\n" in unknown  # like no key of its section, however long their common name
    assert "extra" in unknown and "top" in unknown


PROBLEMS = [
    ({"lora__lora_rank": "16"}, "lora.lora_rank", "expected a whole number, got '16'"),
    ({"training__learning_rate": True}, "training.learning_rate", "expected a number"),
    ({"lora__lokr_full_matrix": "maybe"}, "lora.lokr_full_matrix", "expected true or false"),
    ({"dataset__resolution": [1]}, "dataset.resolution", "expected a whole number or [width"),
    ({"lora__network_type": "loha"}, "lora.network_type", "Choose one of lora, lokr"),
    ({"optimizer__beta1": 0.9}, "optimizer", "go together"),
    ({"model__vae_path": None}, "model.vae_path", "is missing"),
    ({"dataset__data_dir": ""}, "dataset.data_dir", "is missing"),
    ({"model__t5_tokenizer_dir": None}, "model.t5_tokenizer_dir, model.t5_tokenizer_path", "both"),
]


@pytest.mark.parametrize("changes, where, message", PROBLEMS)
def test_a_problem_names_its_key(tmp_path, changes, where, message):
    with pytest.raises(UserError) as caught:
        converted(tmp_path, **changes)
    (problem,) = caught.value.problems
    assert problem.where == where and message in problem.message
    assert not (tmp_path / "kohya_converted").exists()


def test_all_problems_come_at_once(tmp_path):
    changes = {key: value for row in PROBLEMS for key, value in row[0].items()}
    changes |= {"dataset__resolution": "x"}
    with pytest.raises(UserError) as caught:
        converted(tmp_path, **changes)
    assert len(caught.value.problems) == len(PROBLEMS)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[model]\na = 1\n", "has no [training]"),
        (b"[training]\na = 1\n", "has no [model]"),
        (b"a = 1\n", "has no [model] and [training]"),
        (b"a = C:\\b\n", "not valid TOML"),
        (b"a = " + b"[" * 3000, "not valid TOML"),
        (b"a = " + b"1" * 5000, "not valid TOML"),
        ("a = '训练'".encode("gbk"), "not UTF-8"),
        (None, "no such file"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "old.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        run(["--input", str(path)])
    assert message in str(caught.value)


def test_nothing_that_is_there_is_overwritten_unasked(tmp_path):
    source = write(tmp_path / "old.toml", MINIMAL)
    train, _ = run(["--input", str(source)])
    train.write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        run(["--input", str(source)])
    assert train.read_text() == "mine"
    run(["--input", str(source), "--overwrite"])
    assert "anima_transformer" in train.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="three files"):
        run(
            ["--input", str(source), "--output_dir", str(tmp_path), "--train_args_name", "old.toml"]
        )


def test_names_and_folder_can_be_chosen_and_a_bom_does_not_matter(tmp_path):
    source = write(tmp_path / "old.toml", MINIMAL)
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    names = ["--train_args_name", "a.toml", "--dataset_name", "b.toml"]
    files = run(["--input", str(source), "--output_dir", str(tmp_path / "in" / "deep"), *names])
    assert [str(f) for f in files] == [
        str(tmp_path / "in" / "deep" / n) for n in ("a.toml", "b.toml")
    ]


def test_from_the_old_file_to_a_trained_adapter_by_the_printed_commands(demo, run_folder, tmp_path):
    """The trainer refuses the old file and prints the converter, which prints the trainer."""
    paths = model_paths(demo)
    folder = tmp_path / "with spaces"
    folder.mkdir()
    (folder / "pictures").symlink_to(run_folder / "pictures")
    old = write(folder / "old.toml", {
        "model": {"transformer_path": paths["anima_transformer"], "vae_path": paths["vae"],
                  "text_encoder_path": paths["qwen"], "t5_tokenizer_dir": paths["t5_tokenizer_dir"]},
        "training": {"max_steps": 2, "learning_rate": 1e-3, "mixed_precision": "no", "seed": 1,
                     "lr_scheduler": "cosine", "lr_min_ratio": 0.1, "batch_size": 2},
        "lora": {"network_type": "lokr", "lora_rank": 4, "lokr_factor": 4, "lora_name": "aoi"},
        "optimizer": {"type": "AdamW", "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01},
        "dataset": {"data_dir": "pictures", "resolution": 128, "min_reso": 64, "max_reso": 256,
                    "shuffle_caption": True, "cache_latents": True},
        "output": {"output_dir": "out", "save_every": 1},
    })  # fmt: skip
    trainer = str(ROOT / "anima_train_network.py")
    refused = warm.run([trainer, "--config_file", str(old)], cwd=tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    printed = shlex.split(refused.stderr.rpartition("Convert it: python ")[2].strip())
    done = python(*printed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(line in done.stdout for line in SHIFT_LINES)
    following = shlex.split(done.stdout.strip().splitlines()[-1])
    assert following[:3] == ["accelerate", "launch", "anima_train_network.py"]
    more = ["--learning_rate", "5e-4", "--qwen_tokenizer_dir", paths["qwen_tokenizer_dir"]]
    trained = warm.run([str(ROOT / following[2]), *following[3:], *more], cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert (folder / "out" / "aoi.safetensors").is_file()
    from safetensors import safe_open

    with safe_open(folder / "out" / "aoi.safetensors", "pt") as file:
        assert float(file.metadata()["ss_learning_rate"]) == 5e-4  # the command line wins


def test_mistakes_on_its_own_command_line_end_with_code_2(tmp_path):
    done = warm.run(["-m", "tools.convert_anima_root_to_kohya"], cwd=tmp_path)
    assert done.returncode == 2 and "--input" in done.stderr and "Traceback" not in done.stderr
