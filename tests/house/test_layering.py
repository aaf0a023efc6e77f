"""The floors of the house as data, and every import of the product checked against them.

This is the one test that reads source text: who imports whom is a property of the text.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT, TESTS
from tests.helpers.processes import python
from tools._imports import Import, Product, circles

# From the ground up. A file may import those of its own floor and of every floor below, for types too;
# no import leads back to where it started. A new file has a place when it lies in a room.
FLOORS = [
    ("library/memory/kept library/memory/layout library/memory/circumstances library/memory/gradient_sums library/memory/trials", "how tensors wait, how kernels are tried"),
    ("library/memory/lanes library/memory/recomputation", "and come back"),
    ("library/memory/offloading library/memory/swapping library/memory/visits library/memory/replay", "from where they are, again and again"),
    ("library/memory/quantised library/memory/rotation library/memory/operators library/memory/side_by_side library/memory/activation", "weights of 8 bits, kernels of our own, products of several, and what ends one"),
    ("library/anima_backend/modelling/*", "the networks"),
    ("library/errors", "what the user can put right"),
    ("library/system/*", "files, locks, signals, console"),
    ("library/utils library/device_utils", "small helpers under sd-scripts' names"),
    ("library/settings/* library/settings/flags/*", "what the user may write"),
    ("library/data/*", "from folders to batches"),
    ("library/config_util library/strategy_base", "dataset.toml read; what encodes"),
    ("library/caching/*", "encoder outputs kept"),
    ("networks/kinds/*", "one file a kind of adapter"),
    ("networks/[!_]*", "sd-scripts' contract for --network_module"),
    ("networks/workshop/*", "adapter files as things"),
    ("library/training/* library/train_util", "what makes an update"),
    ("library/memory/*", "where weights and activations are"),
    ("library/watching/*", "what a run says while it runs"),
    ("library/saving/*", "what a run leaves and goes on from"),
    ("library/previews/* library/reporting/*", "pictures and pages of a run"),
    ("library/linting/*", "what is worth mending in pictures and captions"),
    ("library/trainer_hooks library/trainer_checks library/trainer_inputs library/trainer_stages", "what a family fills in; up to the first step"),
    ("train_network", "the stages and the loop, for any family"),
    ("library/anima_runtime/*", "loading Anima's files"),
    ("library/strategy_anima library/anima_models", "the family under sd-scripts' names"),
    ("networks/_anima_* networks/lora_anima networks/lokr_anima networks/loha_anima networks/oft_anima", "its entry modules"),
    ("library/anima_doctor/*", "the report on a run that is not started"),
    ("library/anima_workshop/*", "adapter files checked, compared and made anew"),
    ("anima_train_network", "the family's trainer"),
    ("anima_train", "the same of the model itself"),
    ("tools/_*", "what tools share"),
    ("tools/importers/*", "other trainers' configurations as tables"),
    ("tools/[!_]* tools/bench/*", "command-line tools"),
]
PLACES_KEPT: set[str] = set()  # of rooms that are planned: files are not there yet
FAMILY = ("library/anima_backend/*", "library/anima_runtime/*", "library/anima_doctor/*", "library/anima_workshop/*")
DECLARATIONS = ("library/settings/*", "library/data/dataset_*", "library/config_util")

# Imported where they are used, so that --help and configuration errors do not wait for them.
HEAVY_OR_OPTIONAL = (
    "accelerate transformers diffusers tensorboard torch.utils.tensorboard modelscope_hub "
    "huggingface_hub bitsandbytes xformers flash_attn flash_attn_interface wandb schedulefree prodigyopt "
    "pillow_heif pillow_jxl peft lycoris"
)
NEVER_AT_TOP = set(HEAVY_OR_OPTIONAL.split())
IN_FUNCTIONS = NEVER_AT_TOP | {
    "tomlkit",  # only --output_config needs it
    "tokenizers",  # make_demo: training the demo's tokenizers
    "sentencepiece",  # make_demo, as well
    "tqdm",  # make_demo: runs up to here without the requirements
    "torch._dynamo.backends.common", "torch._functorch.aot_autograd", "torch._functorch.partitioners",
    "torch._inductor.decomposition",  # the compiler takes as long to import as torch
}  # fmt: skip
MECHANISMS = [  # of memory: what stands below the networks imports torch and itself
    f"{name}.py" for names, _ in FLOORS[:4] for name in names.split()
]
BACKEND_IMPORTS = {
    "vae.py": {"diffusers"},
    "attention.py": {"xformers", "flash_attn", "flash_attn_interface"},  # the optional backends it chooses
    "triton_kernels.py": {"triton"},  # imported by one_kernel.py alone, where it is there
}
DYNAMIC_IMPORTS = {
    "networks/loading.py",  # --network_module
    "library/settings/user_classes.py",  # --optimizer_type, --lr_scheduler_type: a class by its dotted name
}
STANDARD_LIBRARY_ONLY = {  # what runs before anything is installed
    *(f"tools/{name}.py" for name in ["__init__", "quickstart", "run_tests", "_launch"]),
    *(f"tools/{name}.py" for name in ["_environment", "_torch_choice", "_quickstart", "_run_tests"]),
    *("library/__init__.py", "library/system/__init__.py", "library/system/console.py"),
}
MAX_LINES, MAX_FUNCTION_LINES = 400, 60


PRODUCT = Product(ROOT)
FILES = [path for path in PRODUCT.files if not path.endswith("__init__.py")]
PATTERNS = [
    (pattern, number) for number, (names, _) in enumerate(FLOORS) for pattern in names.split()
]


def places_of(path: str) -> list[tuple[str, int]]:
    """The patterns for a file with their floors: its own name alone, where the table has it."""
    name = path.removesuffix(".py")
    exact = [(pattern, number) for pattern, number in PATTERNS if pattern == name]
    return exact or [
        (pattern, number)
        for pattern, number in PATTERNS
        if name.count("/") == pattern.count("/") and fnmatch(name, pattern)
    ]


def floor_of(path: str) -> int:
    return places_of(path)[0][1]


def wrong_import(path: str, found: Import) -> str | None:
    """What is wrong with one import between project files, or None."""
    if not found.is_project or found.module.endswith("__init__.py"):
        return None
    if floor_of(found.module) <= floor_of(path):
        return None
    return f"{path}:{found.line} imports {found.module}: upward"


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name in the code with its line: bound, read, imported; not the text of strings."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "asname", "arg", "module", "names"):
            value = getattr(node, field, None)
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str):
                    yield name, getattr(node, "lineno", 0)


def is_of(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, f"{pattern}.py") for pattern in patterns)


def is_agnostic(path: str) -> bool:
    return floor_of(path) <= floor_of("train_network.py") and not is_of(path, FAMILY)


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_every_file_has_one_place():
    report([f"{path}: {places_of(path)}" for path in FILES if len(places_of(path)) != 1])


def test_every_place_has_files_or_waits_for_them():
    used = {pattern for path in FILES for pattern, _ in places_of(path)}
    assert {pattern for pattern, _ in PATTERNS} - used == PLACES_KEPT


def test_imports_point_down():
    problems = [wrong_import(path, found) for path, found in PRODUCT.all_imports]
    report([problem for problem in problems if problem])


def test_no_import_leads_back_for_types_neither():
    report([" - ".join(circle) for circle in circles(PRODUCT.arrows())])


def test_a_circle_is_seen():
    arrows = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"e"}}
    assert circles(arrows) == [["a", "b", "c"], ["e"]]


def test_each_folder_says_what_lives_there():
    """Its __init__.py holds a docstring and nothing else: nothing is re-exported."""
    wrong = []
    for path in PRODUCT.files:
        if path.endswith("__init__.py"):
            tree = PRODUCT.tree(path)
            if len(tree.body) != 1 or not ast.get_docstring(tree):
                wrong.append(path)
    report(wrong)


@pytest.mark.parametrize(
    "path, text, is_wrong",
    [
        ("library/caching/text_cache.py", "from library.strategy_anima import X", True),
        ("library/caching/text_cache.py", "def f():\n    import library.saving.metadata", True),
        ("library/data/scan.py", "from library.caching import text_cache", True),
        ("library/data/scan.py", "from ..caching import text_cache", True),
        ("library/data/scan.py", "if TYPE_CHECKING:\n    import library.train_util", True),
        ("library/caching/text_cache.py", "from library.data import datasets", False),
        ("library/caching/text_cache.py", "from . import latents_cache", False),
        ("networks/network.py", "from networks.lora_anima import X", True),
        ("networks/lora_anima.py", "from networks.network import AdapterNetwork", False),
        ("train_network.py", "import library.anima_models", True),
        ("train_network.py", "import anima_train_network", True),
        ("anima_train_network.py", "import train_network, library.anima_models", False),
        ("anima_train_network.py", "from tools import make_demo", True),
        ("tools/make_demo.py", "import _launch", False),
        ("tools/_launch.py", "import quickstart", True),
    ],
)
def test_the_check_sees_wrong_imports(path, text, is_wrong):
    problems = [wrong_import(path, found) for found in PRODUCT.imports_of(path, text)]
    assert problems
    assert any(problems) is is_wrong


DECLARING = [path for path in FILES if is_of(path, DECLARATIONS)]


@pytest.mark.parametrize("path", DECLARING)
def test_declarations_import_only_the_standard_library(path):
    third_party = [
        f"{path}:{found.line} imports {found.module}"
        for found in PRODUCT.imports_in(path, PRODUCT.tree(path))
        if not (found.in_function or found.typing_only or found.is_project)
        and not found.is_of(sys.stdlib_module_names | {"tomli", "tomllib"})
    ]
    report(third_party)


def test_declarations_load_without_torch():
    modules = [path.removesuffix(".py").replace("/", ".") for path in DECLARING]
    heavy = {"torch", "accelerate", "transformers", "diffusers"}
    code = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        f"    assert not {heavy} & set(sys.modules), name"
    )
    ran = python("-c", code)
    assert ran.returncode == 0, ran.stderr


def test_heavy_and_optional_packages_are_not_imported_at_the_top():
    report(
        [
            f"{path}:{found.line} imports {found.module} at the top"
            for path, found in PRODUCT.all_imports
            if not (found.in_function or found.typing_only) and found.is_of(NEVER_AT_TOP)
        ]
    )


def test_functions_import_only_heavy_and_optional_packages():
    report(
        [
            f"{path}:{found.line} imports {found.module} inside a function"
            for path, found in PRODUCT.all_imports
            if found.in_function and not found.is_of(IN_FUNCTIONS)
        ]
    )


def test_agnostic_code_never_names_the_family():
    report(
        [
            f"{path}:{line} {name}"
            for path in filter(is_agnostic, FILES)
            for name, line in identifiers(PRODUCT.tree(path))
            if "anima" in name.lower()
        ]
    )


def lines_naming_the_family(text: str) -> list[int]:
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if re.search("anima(?!t)", line, re.IGNORECASE)  # pictures may be animated
    ]


def test_agnostic_texts_never_name_the_family():
    """Neither strings, docstrings nor comments: what users read of a family comes from its tables."""
    report(
        [
            f"{path}:{line}"
            for path in filter(is_agnostic, FILES)
            for line in lines_naming_the_family(PRODUCT.source(path))
        ]
    )


@pytest.mark.parametrize(
    "text, found",
    [
        ('"""Told by Anima\'s table."""', [1]),
        ("x = 1\nf(f'--anima_{x}')", [2]),
        ("x = 1  # as anima_train_network.py has it", [1]),
        ("picture.is_animated  # an animation", []),
    ],
)
def test_the_check_sees_the_family_in_texts(text, found):
    assert lines_naming_the_family(text) == found


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


def test_the_backend_imports_torch_itself_and_mechanisms_that_do_the_same():
    backend = [path for path in FILES if path.startswith("library/anima_backend/")]
    wrong = []
    for path in [*backend, *MECHANISMS]:
        allowed = sys.stdlib_module_names | {"torch"} | BACKEND_IMPORTS.get(Path(path).name, set())
        rooms = [*MECHANISMS, *(backend if path in backend else [])]
        for found in PRODUCT.imports_in(path, PRODUCT.tree(path)):
            if not (found.module in rooms or found.is_of(allowed)):
                wrong.append(f"{path}:{found.line} imports {found.module}")
    report(wrong)


def test_the_first_tools_need_nothing_installed():
    report(
        [
            f"{path}:{found.line} imports {found.module}"
            for path, found in PRODUCT.all_imports
            if path in STANDARD_LIBRARY_ONLY
            and found.module not in STANDARD_LIBRARY_ONLY
            and not found.is_of(sys.stdlib_module_names)
        ]
    )


def test_modules_are_imported_by_name_only_where_the_user_names_them():
    wrong = []
    for path in FILES:
        for name, line in identifiers(PRODUCT.tree(path)):
            if name in ("import_module", "__import__") and path not in DYNAMIC_IMPORTS:
                wrong.append(f"{path}:{line} {name}")
    report(wrong)


def test_importing_calls_nothing_for_its_effect():
    wrong = []
    for path in (
        path for path in FILES if not path.startswith("tools/")
    ):  # tools restart themselves
        for node in PRODUCT.tree(path).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                wrong.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    report(wrong)


def test_files_of_tests_are_short_too():
    lengths = {file: len(file.read_bytes().splitlines()) for file in TESTS.rglob("*.py")}
    report([f"{file}: {lines} lines" for file, lines in lengths.items() if lines > MAX_LINES])


def test_files_and_functions_are_short():
    wrong = []
    for path in FILES:
        text = PRODUCT.source(path)
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            wrong.append(f"{path}: {lines} lines")
        for node in ast.walk(PRODUCT.tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    report(wrong)
