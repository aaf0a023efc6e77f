"""What the documents say is so: tables, examples, links."""

import re
from pathlib import Path

import pytest

from library.config_util import load_dataset_config
from library.settings.dataset_keys import KEYS
from tests.helpers.dataset_files import draw
from tests.helpers.paths import ROOT

DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
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


LAUNCH = "anima_train_network.py --config_file train_args.toml --dataset_config dataset.toml"
PAIR = "--config_file train_args.toml --dataset_config dataset.toml"
FETCHES = "needs the internet"
INSTALLS = "changes the environment; the requirements themselves are installed by the two commands"
COMMANDS = {
    "python tools/quickstart.py": "tests/tools/test_environment.py",
    "python tools/run_tests.py": "tests/tools/test_environment.py",
    "source .venv/bin/activate": "a shell's own",
    ".venv\\Scripts\\activate": "a shell's own",
    f"accelerate launch {LAUNCH}": "tests/runs/test_smoke.py",
    "accelerate launch anima_train_network.py": "tests/runs/test_smoke.py",
    "accelerate launch": "tests/runs/test_smoke.py",
    "accelerate launch --multi_gpu": "needs two GPUs",
    f"accelerate launch --multi_gpu --num_processes 2 {LAUNCH}": "needs two GPUs",
    f"torchrun --nproc_per_node 2 {LAUNCH}": "tests/runs/test_processes.py",
    "python tools/doctor.py": "tests/anima/test_doctor.py",
    "python tools/preview_buckets.py --dataset_config dataset.toml": "tests/tools/test_preview_buckets.py",
    "python tools/cache_latents.py": "tests/tools/test_cache_tools.py",
    "python tools/cache_text_encoder_outputs.py": "tests/tools/test_cache_tools.py",
    f"python tools/cache_latents.py {PAIR}": "tests/tools/test_cache_tools.py",
    f"python tools/cache_text_encoder_outputs.py {PAIR}": "tests/tools/test_cache_tools.py",
    "python tools/verify_resume.py": "tests/tools/test_verify_resume.py",
    f"python tools/verify_resume.py {PAIR}": "tests/tools/test_verify_resume.py",
    "python tools/convert_anima_root_to_kohya.py --input old.toml":
        "tests/tools/test_convert_anima_root_to_kohya.py",
    "tensorboard --logdir output/my_lora/logs": "tests/watching/test_trackers.py",
}  # fmt: skip
PROGRAMS = "python|accelerate|pip|tensorboard|hf|modelscope|torchrun|source|[.]venv"


def commands(document: Path) -> set[str]:
    """Every command line of a document: of its blocks, and in its text."""
    text = document.read_text(encoding="utf-8")
    lines = [line for block in blocks(document, "") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return {line.strip() for line in lines if re.match(rf"(?:{PROGRAMS})[ \\/]", line.strip())}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_run_by_a_test_or_says_why_not(document):
    unknown = []
    for command in commands(document):
        reason = COMMANDS.get(command)
        if command.startswith(("hf download", "modelscope download")):
            reason = FETCHES
        elif command.startswith("pip install"):
            reason = INSTALLS
        if reason is None:
            unknown.append(command)
        elif reason.startswith("tests/"):
            name = command.split()[1] if command.startswith("python") else command.split()[0]
            used = (ROOT / reason).read_text(encoding="utf-8")
            stem = Path(name).stem.replace("torchrun", "torch.distributed.run")
            assert stem in used, f"{reason} does not run {name}"
    assert not unknown
