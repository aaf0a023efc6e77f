"""What the documents say is so: tables, examples, links."""

import importlib
import re
import shutil
from pathlib import Path

import pytest

from library.config_util import load_dataset_config
from library.settings.dataset_keys import KEYS
from tests.helpers import documented
from tests.helpers.dataset_files import draw
from tests.helpers.documented import LAUNCH, PAIR
from tests.helpers.paths import ROOT
from tests.helpers.processes import read_until
from tests.helpers.running import config_files
from tools._imports import Product

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
DATASET_DOCUMENT = ROOT / "docs" / "config_README.md"


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


DATASET_EXAMPLES = [
    pytest.param(block, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, block in enumerate(blocks(document, "toml"))
    if "[[datasets]]" in block
]


@pytest.mark.parametrize("text", DATASET_EXAMPLES)
def test_dataset_examples_load(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in re.findall(r'(?:image_dir|mask_path|conditioning_data_dir) = "([^"]+)"', text):
        draw(tmp_path / folder / "0.png")
    path = tmp_path / "dataset.toml"
    path.write_text(text, encoding="utf-8")
    group = load_dataset_config(path, {})
    assert not group.notes, group.notes


def test_both_halves_have_the_same_examples():
    text = DATASET_DOCUMENT.read_text(encoding="utf-8")
    halves = text.split("\n## English\n")
    chinese, english = (
        re.findall(r"^```toml\n(.*?)^```", h, flags=re.MULTILINE | re.DOTALL) for h in halves
    )
    strip = [[re.sub(r"\s*#.*", "", block) for block in half] for half in (chinese, english)]
    assert strip[0] == strip[1] and len(strip[0]) > 4


def test_every_key_of_the_dataset_file_stands_in_both_tables():
    text = DATASET_DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| (.) \| (.) \| (.) \| (.+) \|$", text, re.MULTILINE
    )
    assert [row[0] for row in rows] == 2 * list(KEYS)
    for name, default, *marks, meaning in rows:
        key = KEYS[name]
        levels = "".join(letter for letter, mark in zip("gds", marks) if mark == "x")
        assert levels == "".join(letter for letter in "gds" if letter in key.levels), name
        shown = default.strip(" `").strip('"')
        wanted = {None: "-", True: "true", False: "false"}.get(key.default)
        wanted = wanted if type(key.default) in (bool, type(None)) else str(key.default)
        assert shown == wanted or float(shown) == float(wanted), name
        assert meaning.strip()


OF_OTHERS = {  # messages of torch, its launcher and ComfyUI
    "CUDA out of memory", "does not have a deterministic implementation", "lora key not loaded",
    "torch.cuda.is_available() = False", "ChildFailedError", "Root Cause (first observed failure)",
    "To enable traceback see",
}  # fmt: skip
OF_PARTS = {  # a kind of error before its text, or a value within it
    "expected a number, got text. Remove the quotes", "is a LoRA or LoKr, not a base model",
    "does not fit the network. N missing tensors", "OutOfMemory: no more memory at step",
    "cannot be written (No space left on device)", "ProcessLost: another process of the run is gone",
    "color_aug changes pictures every time, and --cache_latents encodes them once",
}  # fmt: skip


def test_messages_to_look_for_are_the_programs_own():
    product = Product(ROOT)
    text = "\n".join(map(product.source, product.files)).replace('\\"', '"')
    text = re.sub(r"""(["'])\s*\n\s*f?\1""", "", text)  # a string that goes on in the next line
    rows = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").split("|---|---|---|\n")[1]
    cells = [re.split(r"(?<!\\) \| ", row)[0] for row in rows.splitlines()]
    said = [phrase for cell in cells for phrase in re.findall(r"`+ ?([^`]+?) ?`+", cell)]
    parts = [part.strip(" :?,.") for phrase in said for part in re.split(r"\.\.\.|<|>|\d+", phrase)]
    strange = {part for part in parts if part not in text and len(part) > 7}
    assert strange == OF_OTHERS | OF_PARTS and len(said) > 50


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


BY_ANOTHER_TEST = {
    f"accelerate launch {LAUNCH}":
        "saving.test_stopping.test_a_launcher_that_is_gone_first_does_not_harm_the_save",
    f"torchrun --nproc_per_node 2 {LAUNCH}":
        "runs.test_processes.test_a_rank_that_dies_ends_the_run_with_a_message",
    "torchrun --nnodes 2 --nproc_per_node 1 --node_rank 0 --master_addr 192.168.1.10 "
    f"--master_port 29500 {LAUNCH}":
        "runs.test_machines.test_two_machines_fill_their_caches_write_once_and_stop_together",
    "accelerate launch --multi_gpu --num_machines 2 --num_processes 2 --machine_rank 0 "
    f"--main_process_ip 192.168.1.10 --main_process_port 29500 {LAUNCH}":
        "runs.test_machines.test_two_machines_go_on_and_one_that_is_lost_ends_the_other_with_a_message",
    "python tools/average_lora.py my_lora-000003.safetensors my_lora-000004.safetensors "
    "--output average.safetensors":
        "tools.test_average_lora.test_the_command_writes_the_average",
    "python tools/edit_lora.py my_lora.safetensors --output edited.safetensors --strength blocks.0=0.5 "
    "mlp=0.8 --drop norms --title Lavender":
        "tools.test_edit_lora.test_the_command_writes_the_edited_file",
    "python tools/extract_lora.py original.safetensors tuned.safetensors --output extracted.safetensors "
    "--rank 32":
        "tools.test_extract_lora.test_the_command_writes_the_difference",
    "python tools/remap_lora.py my_lora.safetensors --output remapped.safetensors --blocks 40":
        "tools.test_remap_lora.test_the_command_writes_a_file_for_40_blocks",
    "python tools/convert_lora_format.py my_lokr.safetensors --format universal --rank 32 --drop norms "
    "--output my_lokr_universal.safetensors":
        "tools.test_convert_lora_format.test_the_command_writes_a_file_for_all_programs",
    "python tools/merge_lora.py my_lora.safetensors --base anima_dit.safetensors "
    "--output merged.safetensors":
        "tools.test_merge_lora.test_the_command_merges_into_a_base",
    "python tools/merge_lora.py my_lora.safetensors my_lokr.safetensors --strength 1 0.5 --rank 32 "
    "--output both.safetensors":
        "tools.test_merge_lora.test_the_command_joins_two_files",
    "python tools/resize_lora.py my_lora.safetensors --output smaller.safetensors --rank 8":
        "tools.test_resize_lora.test_the_command_writes_a_smaller_file",
    "python tools/compare_lora.py long.safetensors short.safetensors --base anima-base-v1.0.safetensors "
    "--html compare.html":
        "tools.test_compare_lora.test_the_command_writes_a_page",
    "python tools/check_lora.py my_lora.safetensors --base anima-base-v1.0.safetensors --html my_lora_check.html":
        "tools.test_check_lora.test_the_command_ends_with_the_code_of_the_worst_finding",
    f"python tools/verify_resume.py {PAIR}":
        "tools.test_verify_resume.test_the_command_shows_it_of_runs_that_share_nothing",
}  # fmt: skip
HERE = {  # what is typed behind it, and what it says
    "python tools/doctor.py": (PAIR.split(), "The run would start."),
    "python tools/preview_buckets.py --dataset_config dataset.toml": ((), "preview.png"),
    f"python tools/cache_latents.py {PAIR}": ((), "latents: 0 reused, 12 encoded"),
    f"python tools/cache_text_encoder_outputs.py {PAIR}": ((), "captions: 0 reused"),
    "python tools/convert_anima_root_to_kohya.py --input old.toml": ((), "accelerate launch"),
    "python tools/import_config.py diffusion-pipe.toml": ((), "diffusion-pipe: "),
    'python tools/generate.py --config_file train_args.toml --prompt "1girl, smile"':
        (["--width", "64", "--height", "64", "--steps", "1"], "picture_0001.png"),
}
TENSORBOARD = "tensorboard --logdir output/my_lora/logs"
NOT_RUN = {
    "python tools/quickstart.py": "installs packages from the internet",
    "python tools/run_tests.py": "installs packages from the internet, then runs this",
    "python tools/import_config.py": "test_import_config.py imports a file of each program",
    "python tools/generate.py": "test_generate.py draws smaller ones",
    "python -m mypy": ".ci/run does, once",
    "python -m ruff check": ".ci/run does, once",
    "python tools/measure_code.py": "takes a minute; test_measure_code.py has a small tree",
    "python -m tools.bench.ledger": "test_bench_ledger.py counts less",
    "python -m tools.bench.step": "test_bench_timed.py has small sizes",
    "python -m tools.bench.update": "takes minutes",
    "python -m tools.bench.saving": "takes a minute",
    "python -m tools.bench.cache": "test_bench_timed.py has small sizes",
    "python -m tools.bench.bench_data": "test_bench_data.py has a few pictures",
    "python -m tools.bench.storage": "test_bench_timed.py has small sizes",
    "python -m tools.bench.loop": "test_bench_timed.py has fewer steps",
    "python -m tools.bench.adapters": "test_bench_timed.py has small sizes",
    "python -m tools.bench.workshop": "takes minutes; test_bench_workshop.py has its parts",
    "python -m tools.bench.gpu": "test_bench_gpu.py has tiny sizes on the CPU",
    "python tools/make_demo.py --base drawing": "test_demo_draws.py does",
    "python tools/make_demo.py --learn": "takes many minutes; test_demo_draws.py learns little",
    "python tools/make_flags_doc.py": "writes docs/flags.md, which test_flags.py compares",
    "source .venv/bin/activate": "a shell's own",
    ".venv\\Scripts\\activate": "a shell's own",
    "accelerate launch anima_train.py": "test_whole_model.py starts it as a process",
    "accelerate launch --multi_gpu": "needs two GPUs",
    f"accelerate launch --multi_gpu --num_processes 2 {LAUNCH}": "needs two GPUs",
    "hf download": "needs the internet",
    "hf auth login": "needs an account",
    "modelscope download": "needs the internet",
    "pip install": "changes the environment",
}
OLD_CONFIG = """
[model]
transformer_path = "dit.safetensors"
vae_path = "vae.safetensors"
text_encoder_path = "qwen.safetensors"
t5_tokenizer_dir = "t5"
[dataset]
data_dir = "pictures"
resolution = 128
[training]
max_steps = 2
[lora]
network_type = "lora"
[output]
output_dir = "out"
"""
FOREIGN_CONFIG = ROOT / "tests/tools/import_cases/diffusion_pipe/lokr.toml"
PROGRAMS = "python|accelerate|pip|tensorboard|hf|modelscope|torchrun|source|[.]venv"


def commands(document: Path) -> set[str]:
    """Every command line of a document: of its blocks, and in its text."""
    text = document.read_text(encoding="utf-8")
    lines = [line for block in blocks(document, "") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return {line.strip() for line in lines if re.match(rf"(?:{PROGRAMS})[ \\/]", line.strip())}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_run_by_a_test_or_says_why_not(document):
    """As it stands, or as the beginning of one that is; the tests below run them."""
    run = [*BY_ANOTHER_TEST, *HERE, TENSORBOARD]
    unknown = [
        command
        for command in sorted(commands(document))
        if not any(f"{each} ".startswith(f"{command} ") for each in run)
        and not any(f"{command} ".startswith(f"{each} ") for each in NOT_RUN)
    ]
    assert not unknown


@pytest.mark.parametrize("command", BY_ANOTHER_TEST)
def test_a_command_is_what_the_test_starts_that_is_named_for_it(command):
    module, _, name = BY_ANOTHER_TEST[command].rpartition(".")
    test = getattr(importlib.import_module(f"tests.{module}"), name)
    assert documented.commands_of(test) == [command]


@pytest.mark.all_pictures
@pytest.mark.parametrize("command", HERE)
def test_a_command_as_it_stands_does_its_work(demo, run_folder, command):
    config_files(demo, run_folder, {"max_train_steps": 1, "cache_latents": True})
    (run_folder / "old.toml").write_text(OLD_CONFIG, encoding="utf-8")
    shutil.copy(FOREIGN_CONFIG, run_folder / "diffusion-pipe.toml")
    more, says = HERE[command]
    done = documented.run(command, run_folder, *more)
    assert done.returncode == 0 and says in done.stdout + done.stderr, done.stderr


def test_tensorboard_as_it_stands_serves_the_logs(tmp_path):
    (tmp_path / "output/my_lora/logs").mkdir(parents=True)
    process = documented.start(TENSORBOARD, tmp_path)
    try:
        read_until(process, "TensorBoard ")
    finally:
        process.kill()
        process.wait()
