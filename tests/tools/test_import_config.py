"""Configurations of other trainers: each becomes two files that start, and every key is told of."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import toml

from library.anima_runtime.command_line import ADAPTERS, MODEL, load_run
from library.errors import ConfigError, UserError
from library.system.text_files import parse_toml
from tests.helpers.paths import ROOT
from tests.helpers.running import make_trainer
from tools import import_config
from tools.importers import recognition
from tools.importers.draft import ADDED, LOST, SECRET, UNKNOWN, Draft
from tools.importers.files import folders_near
from tools.importers.machine import Nearby, convert, leaves, rule_of
from tools.importers.rules import empty

CASES = ROOT / "tests/tools/import_cases"


@dataclass(frozen=True)
class Case:
    """A file of a program, in a folder of import_cases with what it names.

    remarks: words of what the trainer still asks for, all that it may
    lost:    keys without counterpart, beside those of the expected file
    """

    program: str
    folder: str
    file: str
    expected: str = "expected.toml"
    remarks: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


ALL = {
    "diffusion-pipe": Case("diffusion-pipe", "diffusion_pipe", "train.toml"),
    "diffusion-pipe, LoKr": Case(
        "diffusion-pipe", "diffusion_pipe", "lokr.toml", "expected_lokr.toml"
    ),
    "diffusion-pipe, whole": Case(
        "diffusion-pipe", "diffusion_pipe", "whole.toml", "expected_whole.toml"
    ),
    "sd-scripts": Case(
        "sd-scripts", "sd_scripts", "train.toml", "expected_toml.toml", ("came_pytorch",)
    ),
    "sd-scripts, pictures elsewhere": Case(
        "sd-scripts", "sd_scripts", "elsewhere.toml", "expected_elsewhere.toml", ("no such file",)
    ),
    **{
        f"sd-scripts, {suffix}": Case(
            "sd-scripts",
            "sd_scripts",
            f"train.{suffix}",
            "expected_script.toml",
            ("output_dir",),
            lost,
        )
        for suffix, lost in (
            ("sh", ("conditional.EXTRA", "unresolved.words")),
            ("bat", ("conditional.seed",)),
            ("ps1", ("conditional.words",)),
        )
    },
    "sd-scripts, whole": Case("sd-scripts", "sd_scripts", "whole.sh", "expected_whole.toml"),
    "LETS": Case("lets", "lets", "train.toml"),
    "LETS, its fork": Case("lets", "lets", "fork.toml", "expected_fork.toml"),
    "kohya_ss": Case("kohya-gui", "kohya_gui", "train.json"),
    "kohya_ss, constant": Case("kohya-gui", "kohya_gui", "constant.json", "expected_constant.toml"),
    "lora-scripts": Case("lora-scripts", "lora_scripts", "flat.toml", "expected_flat.toml"),
    "lora-scripts, fast": Case(
        "lora-scripts", "lora_scripts", "fast.toml", "expected_fast.toml", ("came_pytorch",)
    ),
    "lora-scripts, T-LoRA": Case(
        "lora-scripts", "lora_scripts", "tlora.toml", "expected_tlora.toml"
    ),
    "lora-scripts, whole": Case(
        "lora-scripts", "lora_scripts", "whole.toml", "expected_whole.toml"
    ),
    "OneTrainer": Case("onetrainer", "onetrainer", "train.json"),
    "OneTrainer, one file": Case("onetrainer", "onetrainer", "inline.json", "expected_inline.toml"),
    "OneTrainer, whole": Case("onetrainer", "onetrainer", "whole.json", "expected_whole.toml"),
    "anima_lora": Case("anima_lora", "anima_lora", "methods/lora.toml"),
    "anima_lora, tags": Case("anima_lora", "anima_lora", "tags.toml", "expected_tags.toml"),
    "AnimaLoraStudio": Case("animalora", "animalora", "train.yaml"),
    "ai-toolkit": Case("ai-toolkit", "ai_toolkit", "train.yaml"),
    "ai-toolkit, DoRA": Case("ai-toolkit", "ai_toolkit", "dora.yaml", "expected_dora.toml"),
    "ai-toolkit, whole": Case("ai-toolkit", "ai_toolkit", "whole.yaml", "expected_whole.toml"),
}


@pytest.fixture(scope="module")
def copies(demo, tmp_path_factory):
    """The folder of a case with real paths in its files: @models, @pictures, @data, and @ for itself."""
    made: dict[str, Path] = {}

    def copy(folder: str) -> Path:
        if folder not in made:
            place = made[folder] = tmp_path_factory.mktemp(folder)
            (place / "data").mkdir()
            (place / "data" / "2_aoi").symlink_to(demo / "pictures")
            for path in (CASES / folder).rglob("*"):
                if path.is_file():
                    target = place / path.relative_to(CASES / folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    text = path.read_text(encoding="utf-8").replace("@models", str(demo / "models"))
                    text = text.replace("@pictures", str(demo / "pictures"))
                    text = text.replace("@data", str(place / "data")).replace("@/", f"{place}/")
                    target.write_text(text, encoding="utf-8")
        return made[folder]

    return copy


def opened(path: Path):
    """The program of a file, its document, and what stands beside it."""
    document = recognition.read_any(path)
    source = recognition.source_of(document, path)
    return source, document, Nearby(list(folders_near(path)), recognition.read_any)


def drafted(path: Path, **options) -> tuple[Draft, list[str]]:
    """The draft, and the keys of the document that was converted."""
    source, document, nearby = opened(path)
    prepared = source.prepare(document, nearby) if source.prepare else document
    keys = [leaf.shown for leaf in leaves(prepared, source.whole)]
    return convert(source, document, nearby, **options), keys


@pytest.mark.parametrize("name", ALL)
def test_a_file_becomes_what_it_means_and_starts(copies, name):
    case = ALL[name]
    folder = copies(case.folder)
    source = folder / case.file
    contents = import_config.run([str(source), "--output_dir", str(folder / name), "--overwrite"])
    text = (folder / case.expected).read_text(encoding="utf-8")
    expected = parse_toml(text.replace("@out", str(folder / name)))
    for kind, file in (("train", "train_args.toml"), ("dataset", "dataset.toml")):
        path = folder / name / file
        assert path.exists() == (path in contents) == (kind in expected)
        if kind in expected:
            text = path.read_text(encoding="utf-8")
            assert parse_toml(text) == toml.loads(text) == expected[kind]
    draft, keys = drafted(source)
    told = [each.key for each in draft.findings if each.status != ADDED]
    assert sorted(told) == sorted(keys), "each key once"
    expected["lost"] += case.lost
    for kind, status in (("lost", LOST), ("unknown", UNKNOWN), ("secret", SECRET)):
        assert sorted(each.key for each in draft.of(status)) == sorted(expected[kind])
    assert "not-a-" not in "".join(contents.values())
    try:
        load_run(import_config.command_words(list(contents)), MODEL if draft.whole else ADAPTERS)
        problems = []
    except ConfigError as error:
        problems = [f"{problem.where} {problem.message}" for problem in error.problems]
    assert len(problems) == len(case.remarks), problems
    assert all(any(word in problem for problem in problems) for word in case.remarks)


READ_AS_THEY_ARE = (
    "sd-scripts",
    "sd-scripts, pictures elsewhere",
    "lora-scripts",
    "lora-scripts, fast",
    "lora-scripts, T-LoRA",
    "lora-scripts, whole",
)


@pytest.mark.parametrize("name", [name for name in ALL if name not in READ_AS_THEY_ARE])
def test_the_trainer_names_the_command_that_imports_a_file(copies, name):
    path = copies(ALL[name].folder) / ALL[name].file
    with pytest.raises(ConfigError) as caught:
        load_run(["--config_file", str(path)])
    first = caught.value.problems[0].message
    program, _, words = first.partition("Import it: python ")[2].rpartition("import_config.py ")
    assert program.endswith("tools/") and words.partition(",")[0] == str(path)


@pytest.fixture(scope="module")
def exercised(copies) -> set[int]:
    """The rules that the cases of all programs use; programs share some."""
    used: set[int] = set()
    for case in ALL.values():
        path = copies(case.folder) / case.file
        source, document, nearby = opened(path)
        prepared = source.prepare(document, nearby) if source.prepare else document
        found = [
            rule_of(source, leaf)
            for leaf in leaves(prepared, source.whole)
            if not empty(leaf.value)
        ]
        used |= {id(rule) for rule in found}
    return used


@pytest.mark.parametrize("program", recognition.PROGRAMS)
def test_every_rule_that_writes_is_in_a_case(exercised, program):
    rules = recognition.PROGRAMS[program].source.rules
    writing = {name for name, rule in rules.items() if rule.target}
    assert sorted(name for name in writing if id(rules[name]) not in exercised) == []


MINIMAL = """
pretrained_model_name_or_path = "dit.safetensors"
network_module = "networks.lora_anima"
learning_rate = 1e-4
output_dir = "out"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def run(path: Path, *words: str) -> dict[Path, str]:
    return import_config.run([str(path), *words])


def test_nothing_is_written_over_or_in_part_or_in_a_dry_run(tmp_path, capsys):
    old = write(tmp_path / "old.toml", MINIMAL + 'dataset_config = "d.toml"\n')
    write(tmp_path / "d.toml", "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n")
    folder = tmp_path / "old_imported"
    run(old, "--dry_run")
    assert "would be written" in capsys.readouterr().out and not folder.exists()
    run(old)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert {path.name for path in before} == {"train_args.toml", "dataset.toml"}
    write(old, MINIMAL.replace("1e-4", "2e-4") + 'dataset_config = "d.toml"\n')
    with pytest.raises(UserError, match="--overwrite"):
        run(old)
    (folder / "dataset.toml").unlink()
    (folder / "dataset.toml").mkdir()  # nothing can be written there
    with pytest.raises(UserError):
        run(old, "--overwrite")
    assert (folder / "train_args.toml").read_bytes() == before[folder / "train_args.toml"]
    (folder / "dataset.toml").rmdir()
    run(old, "--overwrite")
    assert "learning_rate = 0.0002" in (folder / "train_args.toml").read_text(encoding="utf-8")


def test_the_input_is_never_written_over(tmp_path):
    old = write(tmp_path / "train_args.toml", MINIMAL)
    with pytest.raises(UserError, match="would be replaced itself"):
        run(old, "--output_dir", str(tmp_path), "--overwrite")
    assert old.read_text(encoding="utf-8") == MINIMAL


@pytest.mark.parametrize("kept", [False, True])
def test_secrets_are_written_on_request_alone_and_never_shown(tmp_path, capsys, kept):
    old = write(tmp_path / "old.toml", MINIMAL + 'wandb_api_key = "k-1"\ncivitai_token = "k-2"\n')
    contents = run(old, *(["--keep_secrets"] if kept else []))
    (text,) = contents.values()
    assert ('wandb_api_key = "k-1"' in text) is kept
    assert "k-2" not in text and "k-2" not in capsys.readouterr().out


def test_what_was_lost_stands_in_the_file_as_a_comment(tmp_path):
    old = write(tmp_path / "old.toml", MINIMAL + "noise_offset = 0.1\nzebra = 1\n")
    (text,) = run(old, "--dry_run").values()
    assert "#   noise_offset = 0.1: official sd-scripts takes it" in text
    assert "#   zebra = 1\n" in text


DOUBLING = "A=xxxxxxxxxxxxxxxx\n" + 'A="$A$A"\n' * 40
COMMAND = "accelerate launch anima_train_network.py --seed 1\n"
REFUSED = {
    "alias.yaml": ("a: &a [1]\nb: *a\n", "alias"),
    "object.yaml": ("job: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "deep.yaml": ("a: " + "[" * 5000, "YAML"),
    "job.yaml": ("job: x\nconfig:\n  process: []\n", "no config.process"),
    "deep.json": ('{"a":' * 40 + "1" + "}" * 40, "not known"),
    "deep.toml": (MINIMAL + "[a" + ".b" * 20 + "]\nc = 1\n", "nested deeper"),
    "large.toml": ("#" * (2**20 + 1), "MiB"),
    "doubling.sh": (DOUBLING + COMMAND + "$A\n", "characters"),
    "two.sh": (COMMAND * 2, "2 commands"),
    "none.bat": ("echo anima_train_network.py\n", "no command"),
    "other.toml": ("a = 1\nb = 2\n", "not known"),
    "flux.toml": ("[model]\ntype = 'flux'\n[dataset]\nresolutions = [512]\n", "trains flux"),
    "pictures.toml": ("resolutions = [512]\n[[directory]]\npath = 'x'\n", "--dataset_file"),
    "kind.toml": (MINIMAL.replace("lora_anima", "nonesuch"), "nonesuch does not exist here"),
    "words.toml": (MINIMAL + "network_dim = 'x'\nseed = 'y'\n", "expected a whole number"),
    "missing.toml": (None, "no such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_imported_says_why_and_leaves_nothing(tmp_path, name):
    text, message = REFUSED[name]
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(UserError, match=message):
        run(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} <= {name}


def test_all_values_that_cannot_be_read_come_at_once(tmp_path):
    old = write(tmp_path / "old.toml", MINIMAL + "network_dim = 'x'\nseed = 'y'\nresolution = []\n")
    with pytest.raises(UserError) as caught:
        run(old)
    assert {problem.where for problem in caught.value.problems} == {"network_dim", "seed"}


WRONG = ["x", "", 1.5, -1, 10**30, True, [], [1], ["a", 2], [{"a": 1}], {"a": 1}, None]


def filled(names: Iterable[str], value: object) -> dict:
    """A document in which each of these keys has that value."""
    document: dict = {}
    for name in names:
        place, (*tables, key) = document, name.split(".")
        for table in tables:
            inner = place.setdefault(table.removesuffix("[]"), [{}] if table.endswith("[]") else {})
            place = inner[0] if isinstance(inner, list) else inner
        place[key] = value
    return document


@pytest.mark.parametrize("program", recognition.PROGRAMS)
def test_no_value_of_any_key_is_more_than_a_problem(tmp_path, program):
    source = recognition.PROGRAMS[program].source
    names = [name for name in source.rules if not name.startswith("dataset_config")]
    names += ["network_args", "optimizer_args", "betas", "resolution"] if source.flat else []
    nearby = Nearby([tmp_path], recognition.read_any)
    for value in WRONG:
        document = filled(names, value)
        document |= {"config": {"process": [dict(document)]}} if program == "ai-toolkit" else {}
        with contextlib.suppress(ConfigError):
            draft = convert(source, document, nearby)
            draft.problems.clear()
            for path, text in import_config.contents_of(draft, Path("old"), tmp_path).items():
                if path.suffix == ".toml":
                    parse_toml(text)


def test_what_stands_before_a_command_and_what_is_given_twice(tmp_path):
    words = "--seed 1 --network_args a=1 --seed 2 --network_args rank_dropout=0.1"
    script = f"CUDA_VISIBLE_DEVICES=0 python x/anima_train_network.py {words} && echo done\n"
    (text,) = run(write(tmp_path / "train.sh", script), "--dry_run").values()
    found = parse_toml(text)
    assert found["seed"] == 2 and "rank_dropout=0.1" in found["network_args"]
    assert "repeated.seed" in text and "network_args.a = " in text


def test_a_file_is_read_and_never_run(tmp_path):
    script = (
        "touch ran\n" + COMMAND.strip() + " --output_dir $(touch ran) --output_name `touch ran`\n"
    )
    (text,) = run(write(tmp_path / "train.sh", script), "--dry_run").values()
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()
    assert "unresolved.output_dir" in text and "unresolved.output_name" in text


def test_pictures_that_are_named_by_hand(tmp_path):
    main = "[model]\ntype = 'anima'\n[adapter]\ntype = 'lora'\n[optimizer]\ntype = 'adamw'\nlr = 1e-4\n"
    write(tmp_path / "train.toml", "dataset = 'gone.toml'\n" + main)
    (tmp_path / "elsewhere").mkdir()
    pictures = write(tmp_path / "elsewhere" / "p.toml", "[[directory]]\npath = 'x'\n")
    with pytest.raises(UserError, match="gone.toml.*--dataset_file"):
        run(tmp_path / "train.toml")
    contents = run(tmp_path / "train.toml", "--dry_run", "--dataset_file", str(pictures))
    assert 'image_dir = "x"' in contents[tmp_path / "train_imported" / "dataset.toml"]


def test_an_imported_configuration_trains_what_it_asks_for(copies):
    """The adaLN Linears by their pattern, at their own rank, beside those of the default."""
    folder = copies("anima_lora")
    contents = run(folder / "methods" / "lora.toml", "--output_dir", str(folder / "started"))
    trainer = make_trainer(
        [*import_config.command_words(list(contents)), "--mixed_precision", "no"]
    )
    trainer.prepare_process()
    trainer.check()
    placements = trainer.outline.placements
    modulation = {p.path: p.adapter for p in placements if "adaln_modulation" in p.path}
    kinds = {path.split(".")[-2] for path in modulation}
    assert kinds == {f"adaln_modulation_{part}" for part in ("self_attn", "cross_attn", "mlp")}
    assert {adapter.rank for adapter in modulation.values()} == {4}
    assert not any(p.is_norm or p.path.startswith("llm_adapter") for p in placements)
    assert len(placements) > len(modulation)
