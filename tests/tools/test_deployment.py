"""The files for other people's machines: the notebook, the container, the workflow."""

import ast
import json
import re

import pytest
import yaml

from anima_train_network import load_run
from tests.helpers.paths import ROOT
from tests.helpers.running import model_paths

NOTEBOOK = ROOT / "notebooks/anima_lora.ipynb"
WORKFLOW = ROOT / ".github/workflows/tests.yml"


def notebook() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells() -> list[str]:
    return ["".join(c["source"]) for c in notebook()["cells"] if c["cell_type"] == "code"]


def test_the_notebook_has_the_shape_of_format_4_and_no_outputs():
    content = notebook()
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 4)
    assert set(content) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    keys = {"cell_type", "metadata", "source"}
    more = {"markdown": set(), "code": {"execution_count", "outputs"}}
    for cell in content["cells"]:
        assert set(cell) == keys | more[cell["cell_type"]]
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        assert not cell.get("outputs") and cell.get("execution_count") is None
    for text in code_cells():
        ast.parse(text)


@pytest.mark.parametrize("capability, precision", [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_the_settings_of_the_notebook_are_sound_and_fit_the_card(
    demo, tmp_path, capability, precision
):
    """The cell that writes them, run; the trainer reads what it wrote."""
    models = model_paths(demo)
    (cell,) = [text for text in code_cells() if "train_args.toml" in text and "write_text" in text]
    names = (
        "anima-base-v1.0.safetensors",
        "qwen_3_06b_base.safetensors",
        "qwen_image_vae.safetensors",
    )
    paths = dict(zip(names, (models["anima_transformer"], models["qwen"], models["vae"])))
    space = {
        "CAPABILITY": capability,
        "BASE": tmp_path,
        "PATHS": paths,
        "PICTURES": demo / "pictures",
    }
    exec(cell, space)  # noqa: S102  the notebook's own words
    tokenizers = [word for name in ("qwen", "t5")
                  for word in (f"--{name}_tokenizer_dir", models[f"{name}_tokenizer_dir"])]  # fmt: skip
    train, datasets, _, notes = load_run([*space["FILES"], *tokenizers])
    assert train.precision.mixed_precision == precision
    assert datasets.datasets[0].subsets and not [note for note in notes if "no effect" in note]


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction of the Dockerfile, lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, rest in lines]


def test_the_container_keeps_the_basic_rules():
    found = instructions()
    words = [word for word, _ in found]
    (base,) = [rest for word, rest in found if word == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), "a base of one release"
    user = words.index("USER")
    assert found[user][1] not in ("root", "0") and "RUN" not in words[user:]
    assert words[-1] == "ENTRYPOINT" and json.loads(found[-1][1])[1] == "anima_train_network.py"
    assert "ADD" not in words and words.count("CMD") == 0
    for word, rest in found:
        if word == "RUN" and "apt-get install" in rest:
            assert "apt-get update &&" in rest and "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        if word in ("ARG", "ENV"):
            assert not re.search("(?i)token|secret|password|_key", rest)
    assert words.index("COPY") < words.index("USER")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "models", "output"} <= set(ignored)


def test_the_workflow_runs_the_suite_on_linux_and_windows():
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    triggers = workflow[True]  # YAML 1.1 reads the key `on` so
    assert set(triggers) == {"push", "pull_request"} and workflow["permissions"] == {
        "contents": "read"
    }
    suite = workflow["jobs"]["suite"]
    systems = {name.partition("-")[0] for name in suite["strategy"]["matrix"]["os"]}
    assert systems == {"ubuntu", "windows"}
    commands = [step["run"] for step in suite["steps"] if "run" in step]
    assert commands == ["python tools/run_tests.py"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and job["steps"][0]["uses"].startswith("actions/checkout@")
