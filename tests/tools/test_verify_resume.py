"""Runs killed with SIGKILL at random moments end in the same bytes: real processes, many settings.

Eight configurations cover every pair of settings. Runs are forked from a process that has imported
everything, but for one that goes on: it starts Python anew. The rest are marked slow.
"""

import itertools
import os
import random

import pytest
import torch

from library.saving.state_folder import open_state
from tests.helpers import documented, warm
from tests.helpers.processes import python
from tests.helpers.running import model_paths, toml_value, write_toml
from tests.helpers.workers import forking_program
from tools.verify_resume import Job, verify

LARGE_LORA = {"network_module": "networks.lora_anima", "network_dim": 64, "network_alpha": 8}
LARGE_LOKR = {
    "network_module": "networks.lokr_anima", "network_dim": 100000, "network_alpha": 1,
    "network_args": ["lokr_factor=2"],
}  # fmt: skip
OPTIMIZERS = {
    "AdamW": {"learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 3},
    "AdamW8bit": {"learning_rate": 1e-3, "lr_scheduler": "polynomial", "lr_scheduler_power": 2},
    "Prodigy": {"learning_rate": 1.0},
    "AdamWScheduleFree": {"learning_rate": 1e-3},
    "RAdamScheduleFree": {"learning_rate": 1e-3},
    "PagedAdamW8bit": {"learning_rate": 1e-3},
    "SGDNesterov": {"learning_rate": 1e-2},
    "Adafactor": {"learning_rate": 1e-3},
    "DAdaptAdam": {"learning_rate": 1.0},
    "Lion8bit": {"learning_rate": 1e-4},
}
CACHED = {
    f"cache_{what}{where}": True
    for what in ("latents", "text_encoder_outputs")
    for where in ("", "_to_disk")
}
SWITCHES = {
    "adapter": (LARGE_LORA, LARGE_LOKR),
    "norms": ({"train_norm": True}, {"train_norm": False}),
    "caches": (CACHED, {}),
    "accumulation": ({}, {"gradient_accumulation_steps": 3}),
    "datasets": (1, 2),
    "dropout": ({}, {"network_dropout": 0.2}),
    "captions": (
        {},
        {"shuffle_caption": True, "caption_dropout_rate": 0.3, "caption_tag_dropout_rate": 0.2,
         "flip_aug": True},
    ),
    "precision": ({"mixed_precision": "no"}, {"mixed_precision": "bf16"}),
}  # fmt: skip
PAIRWISE_OPTIMIZERS = ("AdamW", "AdamW8bit", "Prodigy", "AdamWScheduleFree")


def pairwise() -> list[dict]:
    """Two rows per optimizer, the second the opposite of the first: with columns that are neither
    equal nor opposite, every pair of settings occurs."""
    rows = []
    for index, optimizer in enumerate(PAIRWISE_OPTIMIZERS):
        for half in (0, 1):
            bits = {name: (code >> index & 1) ^ half for code, name in enumerate(SWITCHES)}
            rows.append({"optimizer": optimizer, **bits})
    return rows


def the_rest() -> list[dict]:
    """Every optimizer, pairwise or not, with settings that the eight do not combine."""
    rng, chosen = random.Random(5), []
    for optimizer in OPTIMIZERS:
        for _ in range(3):
            bits = {name: rng.randrange(2) for name in SWITCHES}
            chosen.append({"optimizer": optimizer, **bits})
    return [row for row in chosen if row not in pairwise()]


def test_the_eight_configurations_hold_every_pair_of_settings():
    names = ("optimizer", *SWITCHES)
    for first, second in itertools.combinations(names, 2):
        seen = {(row[first], row[second]) for row in pairwise()}
        values = [
            PAIRWISE_OPTIMIZERS if name == "optimizer" else (0, 1) for name in (first, second)
        ]
        assert seen == set(itertools.product(*values)), (first, second)


def write_run(demo, folder, row, **more) -> list[str]:
    """The files of a configuration of the table, as command-line arguments."""
    chosen = {name: SWITCHES[name][row[name]] for name in SWITCHES}
    adapter = dict(chosen["adapter"])
    if "network_args" in adapter and row["dropout"]:
        adapter["network_args"] = [*adapter["network_args"], "lokr_module_dropout=0.1"]
    settings = {
        **model_paths(demo), "output_dir": str(folder / "out"), "seed": 7, "max_train_steps": 30,
        "optimizer_type": row["optimizer"], **OPTIMIZERS[row["optimizer"]], **adapter,
        **chosen["norms"], **chosen["caches"], **chosen["accumulation"], **chosen["dropout"],
        **chosen["precision"], "max_data_loader_n_workers": 2, **more,
    }  # fmt: skip
    subset = {"image_dir": str(folder / "pictures"), **chosen["captions"]}
    lines = [f"{key} = {toml_value(value)}" for key, value in subset.items()]
    datasets = [
        f"[[datasets]]\nresolution = {resolution}\nbatch_size = {size}\nenable_bucket = true\n"
        "min_bucket_reso = 64\nmax_bucket_reso = 256\n[[datasets.subsets]]\n" + "\n".join(lines)
        for resolution, size in ((64, 2), (128, 3))[: chosen["datasets"]]
    ]
    dataset = folder / "dataset.toml"
    dataset.write_text("\n".join(datasets) + "\n", encoding="utf-8")
    config = write_toml(folder / "train_args.toml", settings)
    return ["--config_file", str(config), "--dataset_config", str(dataset)]


class WarmJob(Job):
    """Its runs are forked: processes of their own without the seven seconds of imports."""

    def spawn(self, arguments, **keywords):
        return warm.start(arguments, **keywords)


def check(demo, folder, row, kind=Job, **more):
    seed = random.SystemRandom().randrange(10**6)
    job = kind(write_run(demo, folder, row, **more), folder / "runs", steps=4, every=1)
    exact, told = verify(job, random.Random(seed), together=not torch.cuda.is_available())
    assert exact, f"{told} (kill drawn with {seed})"
    if row["optimizer"].endswith("8bit"):
        kept = open_state(job.states("whole")[0], "anima_resume_snapshot/v2").training()
        dtypes = {
            value.dtype
            for state in kept["optimizer"]["state"]["state"].values()
            for value in state["__bnb_optimizer_quant_state__"].values()
        }
        assert torch.uint8 in dtypes  # else nothing was kept in 8 bits


def named(row):
    return "-".join([row["optimizer"], *(name for name in SWITCHES if row[name])])


*OF_PAIRS, LEAST, LAST = pairwise()


@pytest.mark.parametrize("row", [*OF_PAIRS, LAST], ids=named)
def test_a_killed_run_ends_in_the_same_bytes(demo, run_folder, row):
    check(demo, run_folder, row, WarmJob)


@documented.runs(f"python tools/verify_resume.py {documented.PAIR}")
def test_the_command_shows_it_of_runs_that_share_nothing(demo, run_folder, command):
    """Not even the seed of hash(): the one that goes on is Python started anew."""
    write_run(demo, run_folder, LEAST)
    python = forking_program(run_folder, anew='"resume": "')
    done = documented.run(command, run_folder, python=python)
    assert done.returncode == 0 and "Resuming is exact." in done.stdout, done.stdout + done.stderr
    assert "resumed from run-step" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("row", the_rest(), ids=named)
def test_a_killed_run_of_any_settings_ends_in_the_same_bytes(demo, run_folder, row):
    pytest.importorskip("dadaptation") if row["optimizer"] == "DAdaptAdam" else None
    if row["optimizer"].startswith("Paged") and not torch.cuda.is_available():
        pytest.skip("paged optimizers need a CUDA device")
    check(demo, run_folder, row)


@pytest.mark.slow
def test_a_killed_run_of_two_processes_ends_in_the_same_bytes(demo, run_folder):
    argv = write_run(demo, run_folder, pairwise()[1])
    exact, told = verify(Job(argv, run_folder / "runs", processes=2), random.Random())
    assert exact, told


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu_deterministic_runs_resume_exactly(demo, run_folder, precision):
    check(demo, run_folder, pairwise()[3], mixed_precision=precision, deterministic=True)


def test_the_command_tells_a_wrong_configuration_before_it_starts_anything(run_folder):
    done = python("tools/verify_resume.py", "--learnin_rate", "1")
    assert done.returncode == 2 and "Did you mean" in done.stderr
    assert os.listdir(run_folder) == ["pictures"]
