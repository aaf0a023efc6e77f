"""Configuration and dataset files of any content: they are read, or refused in words, in short time."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.anima_runtime.command_line import GROUPS, load_run, setup_parser
from library.config_util import load_dataset_config
from library.errors import ConfigError, UserError
from library.settings.config_file import read_config
from library.settings.dataset_keys import KEYS
from library.settings.options import all_flags
from tests.helpers.hostile_files import examples
from tests.helpers.running import BASE, toml_value

FLAGS = sorted(name.removeprefix("--") for f in all_flags(GROUPS).values() for name in f.names)
ODD_TEXTS = st.sampled_from(
    ["", " ", "true", "1e-4", "none", "a" * 300, "a/b", "..", "/", "\\", "C:\\a", "a\0b", "\x1b[2J",
     "\u202e", "中文", "=", "key=value", "[1, 2]", "10%", "512,512", "512,", "nan", "1" * 5000, "((", "{a|b}"]
) | st.text(max_size=8)  # fmt: skip
ODD_NUMBERS = st.sampled_from(
    ["0", "1", "-1", "0.5", "1e400", "-inf", "nan", "inf", "9" * 20, "9" * 400, "1_000", "0x10",
     "0x" + "f" * 4000, "0x" + "f" * 4000, "1e-400", "2024-01-01", "12:00:00", "true", "false"]
)  # fmt: skip


def quoted(text):
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


scalars = ODD_NUMBERS | ODD_TEXTS.map(quoted)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"{k} = {v}" for k, v in items.items()) + "}"
        )
    ),
    max_leaves=4,
)
SCRAPS = st.sampled_from(
    ["[", "]", "[[", "]]", "=", '"', "'", '"""', "\n", "#", "a", "a.b", "1", "\\", "\0", "\r",
     "[training]\n", "[model]\n", "[[datasets]]\n", "[[datasets.subsets]]\n", "[general]\n",
     "resolution = 64\n", "learning_rate = ", "{", "}", ",", "\ufeff", "\u2028", "\x85"]
)  # fmt: skip
NESTED = ["a = " + "[" * 5000, "a = " + "[" * 90_000 + "]" * 90_000, "a = " + "{a=" * 3000,
          ".".join("a" * 3000) + " = 1", "[" + ".".join("a" * 3000) + "]\nb = 1",
          "a = " + "9" * 5000, "a = 1979-13-99", 'a = "\\ud800"', "[a]\n" * 2000,
          'a = """\n' + "[" + " " * 3000 + "\n" + '"""',
          "".join(f"unknown_{n} = 1\n" for n in range(30_000)),
          "x" * 200_000 + " = 1", "\n".join('learning_rate = "' for _ in range(3000))]  # fmt: skip
texts = st.one_of(
    st.lists(SCRAPS | st.text(max_size=4), max_size=12).map("".join),
    st.sampled_from(NESTED),
)


def tables(names, sections):
    """The text of tables with some of these keys in each."""
    pair = st.tuples(st.sampled_from(names), values).map(lambda p: f"{p[0]} = {p[1]}")
    table = st.tuples(st.sampled_from(sections), st.lists(pair, max_size=5))
    lines = st.lists(table.map(lambda t: "\n".join([t[0], *dict.fromkeys(t[1])])), max_size=4)
    return lines.map("\n".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"")
    return folder


def write(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def refused_or_read(read, limit=10.0):
    """Run it; anything but a result or a UserError is a failure, and so is computing for long."""
    begin = time.process_time()
    try:
        result = read()
    except UserError as error:
        assert str(error)
        result = None
    assert time.process_time() - begin < limit
    return result


PARSER = setup_parser()


def read_training(path, *more):
    loaded = read_config(PARSER, ["--config_file", str(path), *more], GROUPS)
    loaded.require()
    return loaded


@examples(100)
@given(texts)
def test_a_training_file_of_any_text_is_read_or_refused(folder, text):
    path = write(folder / "train.toml", text)
    refused_or_read(lambda: read_training(path))


@examples(120)
@given(tables(FLAGS, ["", "[a]", "[[a]]", "[training]", "[network_args]", "[learning_rate]"]))
def test_training_options_of_any_value_are_read_or_refused(folder, text):
    path = write(folder / "train.toml", text)
    refused_or_read(lambda: read_training(path))


@examples(80)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), values), max_size=3))
def test_a_whole_run_is_understood_or_refused(folder, pairs):
    lines = {name: f"{name} = {toml_value(value)}" for name, value in BASE.items()}
    lines["output_dir"] = f"output_dir = {toml_value(str(folder / 'out'))}"
    lines |= {name: f"{name} = {value}" for name, value in pairs}
    path = write(folder / "train.toml", "\n".join(lines.values()))
    dataset = write(folder / "dataset.toml", SOUND_DATASET.format(folder=folder))
    argv = ["--config_file", str(path), "--dataset_config", str(dataset)]
    refused_or_read(lambda: load_run(argv))


SOUND_DATASET = """[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/pictures"
"""


@examples(150)
@given(st.lists(st.sampled_from([f"--{name}" for name in FLAGS] + ["--", "-", "---", "x", "-1"])
                | st.tuples(st.sampled_from(FLAGS), ODD_TEXTS).map(lambda p: f"--{p[0]}={p[1]}")
                | ODD_TEXTS, max_size=6))  # fmt: skip
def test_a_command_line_of_any_words_is_read_or_refused(argv):
    argv = [word for word in argv if word not in ("-h", "--help")]
    refused_or_read(lambda: read_config(PARSER, argv, GROUPS).require())


@examples(150)
@given(texts)
def test_a_dataset_file_of_any_text_is_read_or_refused(folder, text):
    path = write(folder / "dataset.toml", text)
    refused_or_read(lambda: load_dataset_config(path, {}))


@examples(200)
@given(tables(sorted(KEYS), ["", "[general]", "[datasets]", "[[datasets]]", "[[datasets.subsets]]",
                             "[[datasets]]\nresolution = 64", "[[datasets.subsets]]"]))  # fmt: skip
def test_dataset_keys_of_any_value_are_read_or_refused(folder, text):
    path = write(folder / "dataset.toml", text)
    refused_or_read(lambda: load_dataset_config(path, {}))


@examples(200)
@given(st.lists(st.tuples(st.sampled_from(sorted(KEYS)), values, st.integers(0, 2)), max_size=3))
def test_one_odd_value_in_a_sound_dataset_file_is_read_or_refused(folder, odd):
    parts = [["[general]"], ["[[datasets]]"], ["[[datasets.subsets]]"]]
    sound = {("resolution", 1): "64", ("image_dir", 2): toml_value(str(folder / "pictures"))}
    sound |= {(name, level): value for name, value, level in odd}
    for (name, level), value in sound.items():
        parts[level].append(f"{name} = {value}")
    path = write(folder / "dataset.toml", "\n".join(line for part in parts for line in part))
    refused_or_read(lambda: load_dataset_config(path, {}))


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.kind != "table"])
def test_a_number_of_thousands_of_digits_is_refused_everywhere(folder, name):
    huge = "0x" + "f" * 4000
    for value in (huge, f"-{10**400}", f"[{huge}, {huge}]"):
        text = f"[[datasets]]\nresolution = 64\n[general]\n{name} = {value}\n"
        with pytest.raises(ConfigError, match="expected|belongs in"):
            load_dataset_config(write(folder / "huge.toml", text), {})


@pytest.mark.parametrize("number", range(len(NESTED)))
@pytest.mark.parametrize("read", [read_training, lambda path: load_dataset_config(path, {})])
def test_texts_made_to_exhaust_a_reader_are_refused_in_short_time(folder, number, read):
    path = write(folder / "bad.toml", NESTED[number])
    begin = time.process_time()
    with pytest.raises(ConfigError):
        read(path)
        raise ConfigError("understood, which is right too")
    assert time.process_time() - begin < 10
