"""The report on a run: right about what would happen, no secrets, nothing made, in the trainer's words."""

import os

import pytest
import torch

from library.anima_doctor import page as run_report
from library.errors import DatasetError, UserError
from library.settings.flags.optimizer import OptimizerOptions
from library.settings.optimizer_names import OPTIMIZERS
from library.settings.user_classes import is_installed
from library.training.optimizers import create_optimizer
from tests.helpers import warm
from tests.helpers.paths import ROOT
from tests.helpers.processes import python
from tests.helpers.running import config_files, make_trainer, model_paths, report, train
from tests.helpers.tiny import golden


def line_of(text: str, start: str) -> str:
    """The one line of a report that starts with a name."""
    (found,) = [line for line in text.splitlines() if line.split("  ")[1:2] == [start]]
    return " ".join(found.split())


@pytest.mark.all_pictures
def test_a_good_run_is_described_and_would_start(demo, run_folder):
    settings = {"max_train_steps": 20, "gradient_checkpointing": True, "huber_c": 0.3}
    argv = config_files(demo, run_folder, settings, num_repeats=2, shuffle_caption=True)
    text, code = report(argv)
    assert code == 0 and "The run would start." in text, text
    for heading in (
        *("Environment / ", "Options that were set / ", "Model files / ", "Tokenizers / "),
        *("Dataset / ", "Length of the run / ", "Adapters / ", "Captions / ", "Result / "),
        *("Memory, expected / ", "Disk space / ", "Pictures and captions / "),
    ):
        assert text.count(f"== {heading}") == 1
    assert "effective" in line_of(text, "network_dim")
    assert "no effect: loss_type is l2" in line_of(text, "huber_c")
    assert line_of(text, "steps in all") == "steps in all 20"
    assert "12 pictures" in line_of(text, "looks at each picture")
    assert "character_lora_6gb" in line_of(text, "a preset for these")
    assert "12 pictures, 24 with repeats" in text
    assert "an Anima DiT" in text and "a VAE" in text and "a Qwen3 text encoder" in text
    assert "24 different captions" not in text, "shuffled captions differ between epochs"
    assert f"torch {torch.__version__}" in text


@pytest.mark.all_pictures
def test_looks_at_each_picture_that_are_unusual_for_the_preset_are_said(demo, run_folder):
    settings = {"preset": "character_lora_8gb", "vram_target": "", "max_train_steps": 30}
    text, code = report(config_files(demo, run_folder, settings, num_repeats=2))
    assert code == 0, text
    looks = line_of(text, "looks at each picture").split()[4]
    assert float(looks) == pytest.approx(30 * 2 / 12, abs=0.01)  # two pictures an update
    assert "each picture is seen 5 times; 30 to 300 are usual for a character" in text
    assert "12 pictures; 15 to 50 are usual for a character" in text
    assert "a preset for these" not in text


def test_a_check_makes_nothing(demo, run_folder):
    settings = {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True}
    argv = config_files(demo, run_folder, settings)
    before = sorted(run_folder.rglob("*"))
    assert report(argv)[1] == 0
    assert sorted(run_folder.rglob("*")) == before


def test_sizes_and_lengths_are_those_of_the_real_run(demo, run_folder):
    settings = {
        "max_train_steps": None,
        "max_train_epochs": 3,
        "save_every_n_steps": 2,
        "save_last_n_steps": 4,
        "save_every_n_epochs": 1,
        "save_state": True,
        "save_last_n_steps_state": 2,
        "network_dim": 64,
        "ema_decay": 0.9,
        "cache_latents_to_disk": True,
        "cache_text_encoder_outputs_to_disk": True,
    }
    dataset = {"flip_aug": True, "shuffle_caption": True}
    text, code = report(config_files(demo, run_folder, settings, **dataset))
    assert code == 0, text
    trainer = train(demo, run_folder, settings, **dataset)
    assert line_of(text, "steps in all") == f"steps in all {trainer.state.step}"
    files = sorted((run_folder / "out").glob("*.safetensors"))
    assert f"{len(files) // 2} at the end" in line_of(text, "adapter files")
    factors = sum(p.numel() * 4 for p in trainer.network.get_trainable_params())
    size = run_report.size_text(2 * factors)
    assert f"{size} each with its average" in line_of(text, "adapter files")
    assert run_report.size_text(factors) in line_of(text, "average (EMA)")
    states = sorted((run_folder / "out").glob("*-state"))
    assert f"{len(states)} at the end" in line_of(text, "states")
    all_of_them = 4 * factors  # AdamW has two more, and there is the average
    assert f"{run_report.size_text(all_of_them)} each" in line_of(text, "states")
    real = sum(file.stat().st_size for file in states[0].iterdir())
    assert all_of_them < real < 1.2 * all_of_them

    stored = list((run_folder / "pictures/_cache").iterdir())
    captions = [file for file in stored if file.name.startswith("text_")]
    assert f" {len(captions)} different captions" in line_of(text, "text outputs")
    for name, made in (("latents", set(stored) - set(captions)), ("text outputs", captions)):
        words = line_of(text, name).removeprefix(name).split()
        predicted = float(words[0]) * {"kB": 1e3, "MB": 1e6}[words[1]]
        assert predicted == pytest.approx(sum(f.stat().st_size for f in made), rel=0.1), name

    again, _ = report(config_files(demo, run_folder, settings, **dataset))
    assert line_of(again, "latents").startswith("latents 0 B"), "the caches are there now"


@pytest.mark.all_pictures
def test_a_bound_on_cached_text_bounds_what_is_expected(demo, run_folder):
    settings = {"max_train_steps": None, "max_train_epochs": 10, "text_cache_variants": 24}
    text, code = report(config_files(demo, run_folder, settings, shuffle_caption=True))
    assert code == 0 and "120 different captions, up to 24 at once" in text
    assert "Qwen, waiting" in text
    whole, _ = report(
        config_files(
            demo, run_folder, {**settings, "text_cache_variants": 999}, shuffle_caption=True
        )
    )
    assert "captions, up to" not in whole and "Qwen, waiting" not in whole


WRONG = {
    "several settings": ({"leanring_rate": 1, "learning_rate": "1e-4"}, {}),
    "flags and dataset file": ({"learning_rate": "fast"}, {"num_repeat": 3}),
    "the VAE as DiT, no VAE": ({"anima_transformer": "{vae}", "vae": "gone.safetensors"}, {}),
    "no tokenizer": ({"t5_tokenizer_dir": "nowhere", "auto_download_t5_tokenizer": False}, {}),
    "tokenizers swapped": ({"t5_tokenizer_dir": "{qwen_tokenizer_dir}"}, {}),
    "fp16 on the CPU": ({"mixed_precision": "fp16"}, {}),
    "unknown network argument": ({"network_args": ["lokr_facto=4"]}, {}),
    "no pattern matches": ({"network_args": ["target_modules=nothing_here"]}, {}),
    "network_weights of another kind": ({"network_weights": "{lokr}"}, {}),
    "no base_weights": ({"base_weights": ["gone.safetensors"]}, {}),
    "unknown optimizer argument": ({"optimizer_args": ["weight_decoy=0.1"]}, {}),
    "output_dir below a file": ({"output_dir": "{file}/out"}, {}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_fail_is_told_in_the_trainers_words(demo, run_folder, name):
    if name == "fp16 on the CPU" and torch.cuda.is_available():
        pytest.skip("a GPU can train in fp16")
    settings, dataset = WRONG[name]
    (run_folder / "file").write_text("x")
    lokr = golden("adapter_lokr_low.safetensors")
    here = {**model_paths(demo), "file": run_folder / "file", "lokr": lokr}
    settings = {
        key: value.format(**here) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    argv = config_files(demo, run_folder, settings, **dataset)
    text, code = report(argv)
    with pytest.raises(UserError) as caught:
        make_trainer(argv).train()
    assert code == 2 and "The run would fail." in text
    assert text.count(run_report.scrub(str(caught.value))) == 1
    assert "unexpected" not in text


def test_an_unreadable_picture_is_told(demo, run_folder):
    (run_folder / "pictures/x.png").write_text("not a picture")
    text, code = report(config_files(demo, run_folder, {}))
    assert code == 2 and "x.png" in text.partition("== Result")[2]


def test_a_missing_tokenizer_is_not_fetched_by_a_report(demo, run_folder):
    settings = {"t5_tokenizer_dir": str(run_folder / "t5")}
    text, code = report(config_files(demo, run_folder, settings))
    assert code == 0 and "missing; a run fetches it at its start into" in text
    assert not (run_folder / "t5").exists()


@pytest.mark.all_pictures
def test_problems_of_all_stages_stand_together_with_the_options_they_are_of(demo, run_folder):
    settings = {
        "learning_rate": "1e-4",
        "vae": "gone.safetensors",
        "t5_tokenizer_dir": "nowhere",
        "auto_download_t5_tokenizer": False,
        "anima_flow_shift": 3.0,
        "anima_timestep_sampling": "uniform",
        "huber_c": 0.3,
    }
    text, code = report(config_files(demo, run_folder, settings))
    result = text.partition("== Result")[2]
    assert code == 2
    for words in ("Remove the quotes", "gone.safetensors: no such file", "nowhere does not exist"):
        assert words in result
    for option in ("learning_rate", "vae", "t5_tokenizer_dir", "anima_timestep_sampling"):
        assert "in conflict" in line_of(text, option), option
    assert "no effect" in line_of(text, "huber_c")
    assert line_of(text, "qwen").endswith("effective")
    assert "12 pictures" in text, "what is in order is described all the same"


def test_secrets_are_not_printed(demo, run_folder):
    settings = {
        "wandb_api_key": "0123456789abcdef",
        "huggingface_tokn": "misspelt-name",
        "output_dir": str(run_folder / "home/out"),
    }
    (run_folder / "home").mkdir()
    argv = config_files(demo, run_folder, settings, keep_tokens=1)
    typed = ["--huggingface_token", "typed-secret", "and-more"]
    home = {"HOME": str(run_folder / "home"), "USERPROFILE": str(run_folder / "home")}
    endpoint = {"HF_ENDPOINT": "https://me:password@example.org"}
    environment = {**os.environ, **home, **endpoint}
    done = warm.run(["-m", "tools.doctor", *argv, *typed], cwd=run_folder, env=environment)
    text = done.stdout
    assert done.returncode == 2
    for secret in ("0123456789", "misspelt-name", "typed-secret", "and-more", "me:password"):
        assert secret not in done.stdout + done.stderr
    assert "***" in line_of(text, "wandb_api_key")
    assert str(run_folder / "home") not in text and os.path.join("~", "out") in text
    assert "keep_tokens = 1" in text


def test_it_runs_from_another_folder_as_a_process(demo, run_folder, tmp_path_factory):
    argv = config_files(demo, run_folder, {})
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = python(ROOT / "tools/doctor.py", *argv, cwd=elsewhere)
    assert done.returncode == 0 and "The run would start." in done.stdout, done.stderr
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("settings, code", [({}, 0), ({"vae": "gone.safetensors"}, 2)])
def test_the_trainer_gives_the_same_report_with_check_only(demo, run_folder, settings, code):
    argv = config_files(demo, run_folder, settings)
    done = warm.run(["anima_train_network.py", *argv, "--check_only"])
    expected, _ = report([*argv, "--check_only"])
    start = "== Options that were set"  # free memory before it differs from moment to moment
    shown, wanted = done.stdout.partition(start)[2], expected.partition(start)[2]
    assert done.returncode == code and line_of(done.stdout, "check_only").endswith("effective")
    assert [line for line in shown.splitlines() if "free" not in line] == [
        line for line in wanted.splitlines() if "free" not in line
    ]
    assert not (run_folder / "out").exists()


def test_without_arguments_it_describes_the_machine_and_says_what_is_needed(tmp_path):
    done = warm.run(["-m", "tools.doctor"], cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Python" in done.stdout and "anima_transformer  is needed" in done.stdout


def test_a_disk_that_is_too_small_is_a_problem(tmp_path):
    needs = [run_report.SpaceNeed("latents", tmp_path / "later", 1e18, "all")]
    with pytest.raises(DatasetError, match="1000000000.00 GB will be written"):
        run_report.disk(run_report.Page(), needs)
    run_report.disk(run_report.Page(), [run_report.SpaceNeed("latents", tmp_path, 10, "all")])


def test_columns_are_aligned_also_beside_chinese():
    page = run_report.Page()
    page.table([("角色", "a"), ("name", "b")])
    assert page.lines == ["  角色  a", "  name  b"]


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_state_has_the_size_that_is_reported(name):
    options = OptimizerOptions(optimizer_type=name, learning_rate=1.0)
    package = OPTIMIZERS[name].path.partition(".")[0]
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    parameter = torch.nn.Parameter(torch.randn(64, 1024))
    optimizer = create_optimizer(options, [{"params": [parameter]}])
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(2):
        parameter.pow(2).sum().backward()
        optimizer.step()
    tensors = [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    measured = sum(kept.values()) / parameter.numel()
    assert measured == pytest.approx(
        OPTIMIZERS[name].state_bytes, abs=1.0
    )  # Adafactor's depends on shapes


def test_a_configuration_without_a_folder_for_files_is_told_as_that_alone(demo, run_folder):
    argv = config_files(demo, run_folder, {"output_dir": ""})
    text, code = report(argv)
    assert code == 2 and "output_dir  is needed" in text
    assert "unexpected" not in text


def test_what_the_adapters_would_warn_about_is_told_once(demo, run_folder):
    settings = {"network_args": ["exclude_patterns=no_such_layer"], "attn_mode": "flash"}
    text, code = report(config_files(demo, run_folder, settings))
    warned = text.partition("== The run would warn")[2]
    assert code == 0
    assert warned.count("exclude_patterns 'no_such_layer' matches no module") == 1
    assert warned.count("attention by flash is for CUDA: torch's own is used here") == 1


def test_names_in_the_advice_about_a_foreign_file_are_not_in_conflict(demo, run_folder):
    argv = config_files(demo, run_folder, {"max_train_steps": 4})
    (run_folder / "job.json").write_text('{"job": "extension", "config": {"process": []}}')
    text, code = report([*argv, "--dataset_config", str(run_folder / "job.json")])
    assert code == 2 and "is a file of ai-toolkit" in text
    for option in ("output_dir", "max_train_steps"):
        assert line_of(text, option).endswith("effective"), option


def test_a_value_of_several_lines_keeps_its_row(demo, run_folder):
    argv = config_files(demo, run_folder, {"sample_prompts": "C:\new.txt"})
    text, _ = report(argv)
    assert line_of(text, "sample_prompts").split()[1] == r"C:\new.txt"


@pytest.mark.parametrize("mode", ["none", "offload"])
def test_the_memory_of_activations_is_counted_on_the_runs_own_step(demo, run_folder, mode):
    settings = {"cpu_offload_checkpointing": mode == "offload"}
    told = {"none": "no memory option", "offload": "cpu_offload_checkpointing"}
    text, code = report(config_files(demo, run_folder, settings))
    assert code == 0, text
    words = line_of(text, "activations").split()
    assert float(words[1]) > 0 and line_of(text, "activations").endswith(told[mode])
    assert ("block inputs" in text) is (mode == "offload")
