"""The layers as data, and every import of the product checked against them.

This is the one test that reads source text: who imports whom is a property of the text.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Files are named one by one where a new one needs a decision; folders of one layer by a pattern.
LAYERS = {
    0: "library/console library/file_names library/foreign_names library/paths "
    "library/errors library/files library/system_errors library/utils library/device_utils "
    "library/user_classes library/text_files library/effects library/stop_signals library/__init__ "
    "library/run_lock library/leftovers library/launcher_report "
    "library/anima_backend/__init__ library/anima_backend/modelling/__init__ "
    "library/anima_runtime/__init__ networks/__init__ tools/__init__ tools/bench/__init__",
    1: "library/flow_matching library/losses library/buckets library/captions library/images "
    "library/dataset_keys library/dataset_file library/picture_folders library/caption_json library/augment "
    "library/foreign_files "
    "library/tensor_files library/anima_backend/modelling/* networks/factors",
    2: "library/data_types library/options library/run_config library/run_config_* "
    "library/flag_table library/legacy_flags library/config_file library/config_util "
    "library/config_text library/moved_keys library/unknown_keys "
    "library/dataset_effects library/dataset_config",
    3: "library/picture_files library/picture_sizes library/masks library/catalogue "
    "library/validation_split library/dataset_scan library/datasets library/bucket_sampler "
    "library/batch_loader library/contents library/latents_files library/latents_encoder "
    "library/caches library/cache_files library/text_caches library/text_windows "
    "library/strategy_base networks/adapters networks/adapted networks/targets networks/codec "
    "networks/network networks/arguments networks/placements networks/loading "
    "networks/file_factors networks/merging "
    "networks/norm_limit networks/precision",
    4: "library/optimizers library/schedulers library/checkpoints library/metadata "
    "library/trackers library/step_logs library/monitor library/prompts library/sampling "
    "library/validation library/trainer_hooks library/adapter_files library/train_util "
    "library/optimizer_trial library/learning_rates library/optimization library/metadata_table "
    "library/metadata_datasets "
    "library/run_report library/states library/state_manifest library/resuming library/resumable library/run_files "
    "library/resume_snapshot library/stopping library/output_checks "
    "library/tensorboard_server",
    5: "library/anima_runtime/* library/anima_models library/strategy_anima "
    "networks/_anima_adapter_common networks/lora_anima networks/lokr_anima",
    6: "train_network anima_train_network",
    7: "tools/* tools/bench/*",
}
HIGHEST_IMPORT = {"train_network.py": 4}  # the trainer is an entry, but knows no family

# Imports inside one layer: (folder, chain, why). A name may import every name further right.
SIDEWAYS = [
    ("library", "datasets, strategy_base -> caches", "who fills and who reads the caches"),
    ("library", "batch_loader -> datasets, cache_files", "samples to batches, ahead of their use"),
    (
        "library",
        "dataset_scan -> masks, validation_split, picture_sizes -> picture_files",
        "one scan, by parts",
    ),
    ("library", "dataset_scan -> catalogue", "what a scan makes"),
    ("library", "dataset_keys -> captions", "what may be made of lines"),
    ("library", "dataset_file -> picture_folders", "which files are pictures"),
    ("library", "augment -> buckets", "a crop is planned anew"),
    (
        "library",
        "text_windows -> text_caches -> caches -> latents_encoder -> latents_files -> contents",
        "what is stored",
    ),
    (
        "library",
        "text_caches, caches, latents_encoder, latents_files, contents -> cache_files",
        "the files",
    ),
    ("library", "strategy_anima -> anima_runtime/sd_scripts_caches", "files of another trainer"),
    ("library", "sampling -> prompts", "a preview is drawn from a prompt"),
    ("library", "anima_models -> anima_runtime/model_loading -> anima_runtime/key_mapping", ""),
    ("library/anima_runtime", "model_loading, tokenizer_assets -> model_settings", "json files"),
    ("library", "anima_models -> anima_runtime/tokenizer_assets", "public loaders, restated"),
    ("library", "anima_runtime/flow_training -> strategy_anima", "what a conditioning is"),
    ("library", "run_report -> optimizers", "what the optimizer keeps"),
    (
        "library",
        "resumable -> run_files, resuming -> states -> state_manifest, metadata, optimizers, checkpoints, schedulers",
        "what a run writes, when it is due, and goes on from",
    ),
    ("library", "resumable -> resume_snapshot -> optimizers", "what has to agree"),
    (
        "library",
        "optimization -> optimizer_trial, learning_rates, monitor -> optimizers, schedulers, resuming",
        "what an update is made with, tried beforehand",
    ),
    ("library", "metadata -> metadata_table -> metadata_datasets", "what is written, entry by entry"),
    ("library", "step_logs -> learning_rates", "which rate a progress bar shows"),
    (
        "library",
        "resumable -> output_checks -> states, checkpoints, trackers, metadata",
        "what each of them would write",
    ),
    ("library", "trackers -> tensorboard_server", "who shows what is logged"),
    ("library", "resumable -> stopping -> monitor", "how a run ends"),
    (
        "library/anima_runtime",
        "doctor -> estimates, config_adapter -> tokenizer_fetch -> tokenizer_assets",
        "a report asks all the parts",
    ),
    ("library/anima_runtime", "start_notes -> config_adapter", "what the user asked for"),
    (
        "library/anima_runtime",
        "doctor, estimates -> model_loading -> key_mapping",
        "files' headers",
    ),
    ("library", "anima_runtime/estimates -> strategy_anima", "how captions become tokens"),
    ("library", "user_classes -> foreign_names", "which package a class is in"),
    ("library", "user_classes -> utils -> files, errors", "helpers that report to the user"),
    ("library", "system_errors, text_files -> errors", "letters that no file can hold; causes"),
    ("library", "errors -> console, launcher_report", "where errors are told"),
    ("library", "stop_signals -> errors", "how a stop is told"),
    ("library", "images -> picture_folders", "which plugins are there"),
    ("library", "leftovers -> run_lock -> stop_signals, files, errors", "whose files they are"),
    ("library", "images -> buckets", "CropPlan and Size: a picture is cropped as planned"),
    ("library", "run_config, config_file -> legacy_flags -> options", "the flag tables use flag()"),
    ("library", "config_file -> run_config", "which flags a file may set"),
    ("library", "config_util -> dataset_config -> dataset_effects", "what becomes of each key"),
    ("library", "config_file -> moved_keys, unknown_keys -> config_text", "what stands where"),
    ("library", "dataset_file -> foreign_files", "whose file it is"),
    ("library", "config_util -> run_config, options", "which keys are flags"),
    ("library", "config_util -> unknown_keys", "what to say of the others"),
    ("networks", "network -> targets, codec, adapted -> adapters", "the contract over its parts"),
    ("networks", "network -> norm_limit -> adapters", "a limit on what was trained"),
    ("networks", "network -> precision", "what a file's precision can hold"),
    ("networks", "network -> placements -> targets, codec, adapters", "adapters put in place"),
    ("networks", "network, merging -> file_factors -> codec", "what a file's factors mean"),
    ("networks", "placements -> file_factors", "adapters with a file's sizes"),
    ("networks", "merging -> adapted", "which modules are norms"),
    ("networks", "loading -> network, merging", "the network and the base the trainer asked for"),
    ("networks", "lora_anima, lokr_anima -> _anima_adapter_common", "the family's targets"),
    (
        "library/anima_backend/modelling",
        "dit -> layers, llm_adapter -> rope, attention, params",
        "the network, from page to parts",
    ),
    (".", "anima_train_network -> train_network", "the hooks and the loop"),
]

# Imported where they are used, so that --help and configuration errors do not wait for them.
HEAVY_OR_OPTIONAL = (
    "accelerate transformers diffusers tensorboard torch.utils.tensorboard modelscope "
    "huggingface_hub bitsandbytes xformers flash_attn wandb schedulefree prodigyopt "
    "pillow_heif pillow_jxl"
)
NEVER_AT_TOP = set(HEAVY_OR_OPTIONAL.split())
IN_FUNCTIONS = NEVER_AT_TOP | {
    "tomlkit",  # only --output_config needs it
    "tokenizers",  # make_demo: training the demo's tokenizers
    "sentencepiece",  # make_demo, as well
    "tqdm",  # make_demo: runs up to here without the requirements
}
BACKEND_IMPORTS = {
    "vae.py": {"diffusers"},
    "attention.py": {"xformers", "flash_attn"},  # the optional backends it chooses
}
DYNAMIC_IMPORTS = {
    "networks/loading.py",  # --network_module
    "library/user_classes.py",  # --optimizer_type, --lr_scheduler_type: a class by its dotted name
}
STANDARD_LIBRARY_ONLY = {  # what runs before anything is installed
    *(f"tools/{name}.py" for name in ["__init__", "quickstart", "run_tests", "_launch"]),
    *(f"tools/{name}.py" for name in ["_environment", "_quickstart", "_run_tests"]),
    *("library/__init__.py", "library/console.py"),
}
FLAG_TABLES = ("library/run_config.py", "library/run_config_*.py", "library/legacy_flags.py")
MAX_LINES, MAX_FUNCTION_LINES = 400, 60


@dataclass(frozen=True)
class Import:
    """One imported module: `module` is a project file ("library/utils.py") or a dotted name."""

    module: str
    line: int
    in_function: bool
    typing_only: bool

    @property
    def is_project(self) -> bool:
        return self.module.endswith(".py")

    def is_of(self, packages) -> bool:
        return any(f"{self.module}.".startswith(f"{package}.") for package in packages)


def product_files() -> list[str]:
    found = list(ROOT.glob("*.py"))
    for folder in ("library", "networks", "tools"):
        found += (ROOT / folder).rglob("*.py")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


FILES = product_files()


def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def layer_of(path: str) -> int | None:
    """The layer of a file, by the first pattern that matches its whole path; None: not placed."""
    for layer, patterns in LAYERS.items():
        for pattern in patterns.split():
            if path.count("/") == pattern.count("/") and fnmatch(path, f"{pattern}.py"):
                return layer
    return None


def sideways_pairs() -> set[tuple[str, str]]:
    pairs = set()
    for folder, chain, _ in SIDEWAYS:
        links = [
            [(Path(folder) / f"{name}.py").as_posix() for name in link.split(", ")]
            for link in chain.split(" -> ")
        ]
        for position, link in enumerate(links):
            later = [name for names in links[position + 1 :] for name in names]
            pairs |= {(left, right) for left in link for right in later}
    return pairs


SIDEWAYS_PAIRS = sideways_pairs()


def project_file(dotted: str, importer: str) -> str | None:
    """The product's file a dotted name stands for; a tool's bare name is one beside it."""
    for folder in (Path(), Path(importer).parent):
        path = folder / dotted.replace(".", "/")
        for candidate in (f"{path.as_posix()}.py", f"{path.as_posix()}/__init__.py"):
            if candidate in FILES:
                return candidate
    return None


def imported_names(node: ast.AST, importer: str) -> list[str]:
    """The modules a statement imports: of `from a import b`, a.b when that is a project file."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = ".".join(Path(importer).parts[: -node.level]) if node.level else ""
    base = ".".join(part for part in (package, node.module) if part)
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if project_file(name, importer) else base for name in names]


def imports_of(path: str, text: str) -> list[Import]:
    found = []

    def visit(node: ast.AST, in_function: bool, typing_only: bool) -> None:
        for name in dict.fromkeys(imported_names(node, path)):
            module = project_file(name, path) or name
            found.append(Import(module, node.lineno, in_function, typing_only))
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = node.body if isinstance(node, ast.If) and is_type_checking(node.test) else []
        for child in ast.iter_child_nodes(node):
            visit(child, in_function, typing_only or child in guarded)

    visit(ast.parse(text), False, False)
    return found


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@cache
def runtime_imports() -> list[tuple[str, Import]]:
    return [
        (path, found)
        for path in FILES
        for found in imports_of(path, source(path))
        if not found.typing_only
    ]


def layer_problem(path: str, found: Import) -> str | None:
    """What is wrong with one import between project files, or None."""
    if not found.is_project or found.typing_only:
        return None
    layer, other = layer_of(path), layer_of(found.module)
    if layer is None or other is None:
        return None  # the test of the table names it
    place = f"{path}:{found.line} (layer {layer}) imports {found.module} (layer {other})"
    if other > HIGHEST_IMPORT.get(path, layer):
        return f"{place}: upward"
    helper = layer == 7 and Path(found.module).name.startswith("_")
    if other == layer and not helper and (path, found.module) not in SIDEWAYS_PAIRS:
        return f"{place}: sideways, not in a chain"
    return None


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name in the code with its line: bound, read, imported; not the text of strings."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "asname", "arg", "module", "names"):
            value = getattr(node, field, None)
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str):
                    yield name, getattr(node, "lineno", 0)


def is_agnostic(path: str) -> bool:
    layer = layer_of(path)
    family = path.startswith("library/anima_backend/")
    return path == "train_network.py" or (layer is not None and layer <= 4 and not family)


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_every_file_has_a_layer():
    report([f"{path}: not in the table of layers" for path in FILES if layer_of(path) is None])


def test_imports_point_down_or_along_a_chain():
    problems = [layer_problem(path, found) for path, found in runtime_imports()]
    report([problem for problem in problems if problem])


@pytest.mark.parametrize(
    "path, text, wrong",
    [
        ("library/caches.py", "from library.strategy_anima import X", "upward"),
        ("library/caches.py", "def f():\n    import library.optimizers", "upward"),
        ("library/caches.py", "from library import datasets", "sideways"),
        ("library/caches.py", "from . import datasets", "sideways"),
        ("library/datasets.py", "from library import caches", None),
        ("networks/network.py", "from networks.adapters import LoRA", None),
        ("networks/adapters.py", "from networks.network import AdapterNetwork", "sideways"),
        ("train_network.py", "import library.anima_models", "upward"),
        ("train_network.py", "import anima_train_network", "upward"),
        ("anima_train_network.py", "import train_network, library.anima_models", None),
        ("anima_train_network.py", "from tools import make_demo", "upward"),
        ("tools/make_demo.py", "import _launch", None),
        ("tools/make_demo.py", "import quickstart", "sideways"),
        ("library/caches.py", "if TYPE_CHECKING:\n    import library.optimizers", None),
        (
            "library/caches.py",
            "if TYPE_CHECKING:\n    0\nelse:\n    import train_network",
            "upward",
        ),
    ],
)
def test_the_check_sees_wrong_imports(path, text, wrong):
    problems = [layer_problem(path, found) for found in imports_of(path, text)]
    assert problems
    assert any(wrong in (problem or "") for problem in problems) if wrong else not any(problems)


DECLARATIONS = [path for path in FILES if layer_of(path) == 2]


@pytest.mark.parametrize("path", DECLARATIONS)
def test_declarations_import_only_the_standard_library(path):
    third_party = [
        f"{path}:{found.line} imports {found.module}"
        for found in imports_of(path, source(path))
        if not (found.in_function or found.typing_only or found.is_project)
        and not found.is_of(sys.stdlib_module_names | {"tomli", "tomllib"})
    ]
    report(third_party)


@pytest.mark.parametrize("path", DECLARATIONS)
def test_declarations_load_without_torch(path):
    module = path.removesuffix(".py").replace("/", ".")
    heavy = ("torch", "accelerate", "transformers", "diffusers")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def test_heavy_and_optional_packages_are_not_imported_at_the_top():
    report(
        [
            f"{path}:{found.line} imports {found.module} at the top"
            for path, found in runtime_imports()
            if not found.in_function and found.is_of(NEVER_AT_TOP)
        ]
    )


def test_functions_import_only_heavy_and_optional_packages():
    report(
        [
            f"{path}:{found.line} imports {found.module} inside a function"
            for path, found in runtime_imports()
            if found.in_function and not found.is_of(IN_FUNCTIONS)
        ]
    )


def test_agnostic_code_never_names_the_family():
    report(
        [
            f"{path}:{line} {name}"
            for path in filter(is_agnostic, FILES)
            for name, line in identifiers(ast.parse(source(path)))
            if "anima" in name.lower()
        ]
    )


@pytest.mark.parametrize(
    "text, found",
    [
        ("import library.anima_models", True),
        ("from library.anima_models import load", True),
        ("from library import strategy_anima as s", True),
        ("def f(anima): ...", True),
        ("class AnimaThing: ...", True),
        ("x.anima_flag", True),
        ("f(anima=1)", True),
        ("def f():\n    global ANIMA", True),
        ("'anima'", False),
    ],
)
def test_the_check_sees_the_familys_name(text, found):
    assert any("anima" in name.lower() for name, _ in identifiers(ast.parse(text))) is found


def test_the_backend_imports_torch_and_itself():
    folder = "library/anima_backend/"
    wrong = []
    for path in (path for path in FILES if path.startswith(folder)):
        allowed = sys.stdlib_module_names | {"torch"} | BACKEND_IMPORTS.get(Path(path).name, set())
        for found in imports_of(path, source(path)):
            if not (found.module.startswith(folder) or found.is_of(allowed)):
                wrong.append(f"{path}:{found.line} imports {found.module}")
    report(wrong)


def test_the_first_tools_need_nothing_installed():
    report(
        [
            f"{path}:{found.line} imports {found.module}"
            for path, found in runtime_imports()
            if path in STANDARD_LIBRARY_ONLY
            and found.module not in STANDARD_LIBRARY_ONLY
            and not found.is_of(sys.stdlib_module_names)
        ]
    )


def test_modules_are_imported_by_name_only_where_the_user_names_them():
    wrong = []
    for path in FILES:
        for name, line in identifiers(ast.parse(source(path))):
            if name in ("import_module", "__import__") and path not in DYNAMIC_IMPORTS:
                wrong.append(f"{path}:{line} {name}")
    report(wrong)


def test_importing_calls_nothing_for_its_effect():
    wrong = []
    for path in (path for path in FILES if layer_of(path) != 7):  # tools restart themselves
        for node in ast.parse(source(path)).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                wrong.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    report(wrong)


def test_files_and_functions_are_short():
    wrong = []
    for path in FILES:
        text = source(path)
        lines = len(text.splitlines())
        if lines > MAX_LINES and not any(fnmatch(path, table) for table in FLAG_TABLES):
            wrong.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    report(wrong)
