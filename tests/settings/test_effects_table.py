"""Every option of the tables, one by one: that it acts, and that it does nothing where the table says so."""

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from library.anima_runtime.command_line import GROUPS, load_run
from library.anima_runtime.config_adapter import AnimaConfig, adapt, run_notes
from library.anima_runtime.shared_groups import SHARED_GROUPS
from library.config_util import read_datasets
from library.errors import UserError
from library.settings.config_file import Parser, read_config
from library.settings.dataset_keys import KEYS
from library.settings.options import all_flags
from library.settings.run_config import TrainConfig
from tests.helpers import effects_of_keys, effects_table, observed
from tests.helpers.dataset_files import draw, folder_of
from tests.helpers.effects_cases import Case
from tests.helpers.paths import TESTS
from tests.helpers.running import toml_value

FLAGS = all_flags(GROUPS)
TWINS = {name if key.flag == "=" else key.flag: name for name, key in KEYS.items() if key.flag}
EFFECTIVE = [f.dest for f in FLAGS.values() if not (f.ignored or f.refused or f.dest in TWINS)]
NEEDED = ["--anima_transformer", "d", "--vae", "v", "--qwen", "q", "--output_dir", "out"]



def words(settings: dict[str, Any]) -> list[str]:
    """Settings as a command line."""
    found = []
    for dest, value in settings.items():
        name = FLAGS[dest].names[0]
        if isinstance(value, bool):
            found.append(name if value else f"--no-{name[2:]}")
        else:
            found += [name, *map(str, value if isinstance(value, list) else [value])]
    return found


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """The configuration of one plain folder, by its validation_split."""
    folder = tmp_path_factory.mktemp("plain")
    pictures = folder_of(folder / "pictures", [(64, 64)])
    file = folder / "dataset.toml"
    file.write_text(
        f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{pictures}'"
    )
    return cache(lambda split: read_datasets(str(file), {"validation_split": split}))


def read(group, settings: dict[str, Any]):
    """The options that settings come to, and what is told of them and of a run of six batches."""
    argv = [*NEEDED, "--dataset_config", "dataset.toml", *words(settings)]
    loaded = read_config(Parser(), argv, GROUPS)
    groups = {name: loaded.groups[each] for name, each in SHARED_GROUPS.items()}
    train = TrainConfig(**groups, explicit=loaded.explicit)
    train, anima, problems = adapt(train, loaded.groups[AnimaConfig], loaded.explicit)
    assert not loaded.problems and not problems
    datasets = group(train.validation.validation_split)
    plan = observed.length(train, anima)
    options = train.situation(anima, datasets.datasets, plan)
    return train, anima, run_notes(train, anima, loaded.explicit, datasets, plan), options


def observe(by: str, group, settings: dict[str, Any]) -> Any:
    train, anima, *_ = read(group, settings)
    return observed.OBSERVERS[by](train, anima)


def cases(table: dict[str, Case], *, observed_only: bool = False) -> list[Any]:
    """(name, case, settings) of everything that leaves an option without effect."""
    return [
        pytest.param(name, case, settings, id=f"{name}-{number}")
        for name, case in table.items()
        for number, settings in enumerate(case.idle)
        if case.by or not observed_only
    ]


def seen(table: dict[str, Case]) -> list[Any]:
    return [pytest.param(name, case, id=name) for name, case in table.items() if case.by]


@pytest.mark.parametrize(
    "table, options",
    [
        (effects_table.FLAGS, EFFECTIVE),
        (effects_of_keys.KEYS, [name for name, key in KEYS.items() if not key.ignored]),
    ],
    ids=["flags", "keys"],
)
def test_every_option_has_been_considered(table, options):
    missing = sorted(set(options) - set(table))
    assert not missing, (
        f"{missing}: beside which other options does it do nothing? Declare that with `idle` where the "
        "option is declared, and add a line to effects_table.py or effects_of_keys.py in tests/helpers/ that shows both."
    )
    assert not set(table) - set(options), "no such option, or one without effect"


@pytest.mark.parametrize("name", sorted({
    case.shown for table in (effects_table.FLAGS, effects_of_keys.KEYS) for case in table.values()
    if case.shown
}))  # fmt: skip
def test_the_tests_that_the_table_names_exist(name):
    module, _, function = name.partition(".")
    (file,) = TESTS.rglob(f"{module}.py")
    found = importlib.import_module(f"tests.{file.parent.name}.{module}")
    assert callable(getattr(found, function))


def test_every_option_is_shown_to_act():
    for table in (effects_table.FLAGS, effects_of_keys.KEYS):
        assert not [name for name, case in table.items() if bool(case.by) == bool(case.shown)]


@pytest.mark.parametrize("name, case", seen(effects_table.FLAGS))
def test_a_flag_makes_a_difference(group, name, case):
    with_it = {**case.beside, name: case.value}
    notes = read(group, with_it)[2]
    assert not [note for note in notes if note.startswith(f"{FLAGS[name].names[0]} ")]
    assert observe(case.by, group, with_it) != observe(case.by, group, case.beside)


@pytest.mark.parametrize("name, case, settings", cases(effects_table.FLAGS))
def test_a_flag_without_effect_is_told(group, name, case, settings):
    (note,) = [
        note
        for note in read(group, {**settings, name: case.value})[2]
        if note.startswith(f"{FLAGS[name].names[0]} has no effect: ")
    ]
    assert note.endswith(".") and "{" not in note


@pytest.mark.parametrize("name, case, settings", cases(effects_table.FLAGS, observed_only=True))
def test_a_flag_that_is_told_to_have_no_effect_makes_no_difference(group, name, case, settings):
    with_it = observe(case.by, group, {**settings, name: case.value})
    assert with_it == observe(case.by, group, settings)


@pytest.mark.parametrize("name", [name for name in EFFECTIVE if FLAGS[name].idle])
def test_every_declared_reason_is_met_by_a_case(group, name):
    case = effects_table.FLAGS[name]
    met = set()
    for settings in case.idle:
        *_, options = read(group, {**settings, name: case.value})
        met.add(next(each.reason for each in FLAGS[name].idle if each.when(options)))
    assert met == {each.reason for each in FLAGS[name].idle}


# The keys of the dataset file.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures and captions on which every key can act."""
    root = tmp_path_factory.mktemp("keys")
    pictures, masks = root / "pictures", root / "masks"
    captions = ["a, b, c, d;;;e ||| f, g ||| z\nsecond {u|v}; line", "k, l; m, n, o, p", "", None]
    sizes = {"wide": (120, 48), "tall": (50, 80), "face_30_30_20_20": (160, 160), "small": (44, 44)}
    for number, (name, size) in enumerate(sizes.items()):
        picture = draw(pictures / f"{name}.png", size, seed=number)
        draw(masks / f"{name}.png", size, seed=9 + number)
        if captions[number] is not None:
            picture.with_suffix(".txt").write_text(captions[number], encoding="utf-8")
            picture.with_suffix(".other").write_text(f"other {number}", encoding="utf-8")
        for suffix in ("_nl", "_said"):
            picture.with_name(f"{name}{suffix}.txt").write_text(f"A {suffix}, B.", encoding="utf-8")
    see_through(pictures / "wide.png")
    draw(pictures / "inner" / "deep.png", (64, 64), seed=20)
    entries = {name: {"caption": f"said of {name}"} for name in sizes}
    (pictures / "all.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


def see_through(path: Path) -> None:
    """Make the left half of a picture transparent."""
    from PIL import Image

    with Image.open(path) as image:
        opaque = image.convert("RGBA")
    alpha = Image.new("L", opaque.size, 255)
    alpha.paste(0, (0, 0, opaque.size[0] // 2, opaque.size[1]))
    opaque.putalpha(alpha)
    opaque.save(path)


def write_keys(folder: Path, keys: dict[str, Any]) -> list[str]:
    """The command line of a run on a dataset file with these keys, each as far inside as it may be."""
    text = {"d": "", "s": ""}
    for name, value in {"resolution": 64, "batch_size": 2, **keys}.items():
        if isinstance(value, str):
            places = {"{folder}": folder / "pictures", "{masks}": folder / "masks"}
            for mark, place in places.items():
                value = value.replace(mark, place.as_posix())
        level = "s" if "s" in KEYS[name].levels else "d"
        text[level] += f"{name} = {toml_value(value)}\n"
    image_dir = f"image_dir = '{(folder / 'pictures').as_posix()}'\n"
    file = folder / "dataset.toml"
    file.write_text(
        f"[[datasets]]\n{text['d']}[[datasets.subsets]]\n{image_dir}{text['s']}", encoding="utf-8"
    )
    return [*NEEDED, "--dataset_config", str(file)]


def keys_read(folder: Path, keys: dict[str, Any], *more: str) -> tuple[Any, list[str]]:
    train, datasets, _, notes = load_run([*write_keys(folder, keys), *more])
    return observed.pictures(train, datasets), notes


@pytest.fixture(scope="module")
def pictures_of(folder):
    """What is trained on with some keys; each asked for once."""
    known: dict[str, Any] = {}

    def read(keys: dict[str, Any]) -> tuple[Any, list[str]]:
        text = json.dumps(keys, sort_keys=True)
        if text not in known:
            known[text] = keys_read(folder, keys)
        return known[text]

    return read


@pytest.mark.parametrize("name, case", seen(effects_of_keys.KEYS))
def test_a_key_makes_a_difference(pictures_of, name, case):
    with_it, notes = pictures_of({**case.beside, name: case.value})
    assert not [note for note in notes if f": {name} has no effect: " in note]
    assert with_it != pictures_of(case.beside)[0]


@pytest.mark.parametrize("name, case, keys", cases(effects_of_keys.KEYS))
def test_a_key_without_effect_is_told_and_makes_no_difference(pictures_of, name, case, keys):
    with_it, notes = pictures_of({**keys, name: case.value})
    (note,) = [note for note in notes if f": {name} has no effect: " in note]
    assert ", line " in note
    assert with_it == pictures_of(keys)[0]


def test_a_mask_of_a_flag_loses_to_the_subsets_own(folder):
    masked = {"mask_path": "{masks}"}
    for flags in (["--alpha_mask"],
                  ["--conditioning_data_dir", str(folder / "masks"), "--masked_loss"]):  # fmt: skip
        found, notes = keys_read(folder, masked, *flags)
        assert f"{flags[0]} has no effect: another mask of the subset is used." in notes
        assert found == keys_read(folder, masked)[0]


TEXTS = ("", "x", "0", "-1", "1,2", "nan", "1e400", "1,2,3", "a\x00b", "\udcff")


@pytest.mark.parametrize("name", TWINS)
def test_any_text_for_a_flag_of_the_dataset_is_taken_or_refused(folder, name):
    """Through the whole check, the scan of the pictures included."""
    argv = write_keys(folder, {})
    flag = FLAGS[name]
    for text in TEXTS:
        given = [f"{flag.names[0]}={text}"] if flag.is_switch else [flag.names[0], text]
        try:
            _, datasets, _, _ = load_run([*argv, *given])
            observed.scan(datasets)
        except UserError as error:
            assert all(problem.message for problem in error.problems)


@pytest.mark.parametrize("name, key", TWINS.items())
def test_a_flag_of_the_dataset_gives_what_the_key_gives(folder, name, key):
    case = effects_of_keys.KEYS[key]
    if not case.by:
        return
    value, beside = case.value, {k: v for k, v in case.beside.items() if k != key}
    words_of_it = words({name: ",".join(map(str, value)) if isinstance(value, list) else value})
    by_flag, notes = keys_read(folder, beside, *words_of_it)
    told = [note for note in notes if note.startswith(f"{FLAGS[name].names[0]} ")]
    if key in ("resolution", "batch_size"):
        assert told  # the file has its own
    else:
        assert not told
        assert by_flag == keys_read(folder, {**beside, key: value})[0]


@pytest.mark.parametrize("name, choice", [
    pytest.param(flag.dest, choice, id=f"{flag.dest}-{choice}")
    for flag in FLAGS.values() if flag.dest in EFFECTIVE for choice in flag.choices or ()
])  # fmt: skip
def test_every_choice_that_the_document_offers_is_taken(group, name, choice):
    read(group, {name: choice})
