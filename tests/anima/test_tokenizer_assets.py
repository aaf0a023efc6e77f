"""Tokenizers: the real ones give the known ids, and nothing else passes for them."""

import json
import shutil
from pathlib import Path

import pytest

from library.anima_runtime.tokenizer_assets import (
    QWEN,
    T5,
    check_tokenizer,
    find_qwen_tokenizer_dir,
    find_t5_tokenizer_dir,
    load_qwen_tokenizer,
    load_t5_tokenizer,
)
from library.errors import ModelFileError
from tests.helpers.paths import SHARED
from tests.helpers.real_tokenizers import needs_real
from tests.helpers.tiny import golden

ROUTES = {
    "qwen folder": (QWEN, "qwen3", ("vocab.json", "merges.txt", "tokenizer_config.json")),
    "qwen without its config": (QWEN, "qwen3", ("vocab.json", "merges.txt")),
    "t5 folder": (T5, "t5", ("config.json", "spiece.model", "tokenizer.json")),
    "t5 spiece.model": (T5, "t5", ("spiece.model",)),
    "t5 tokenizer.json": (T5, "t5", ("tokenizer.json",)),
}
LOADERS = {"Qwen": load_qwen_tokenizer, "T5": load_t5_tokenizer}


def copy_files(source: Path, names, folder: Path) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(source / name, folder)
    return folder


@needs_real
@pytest.mark.parametrize("route", ROUTES)
def test_every_set_of_files_gives_the_known_ids(route, tmp_path):
    kind, name, files = ROUTES[route]
    folder = copy_files(SHARED / "tokenizers" / name, files, tmp_path / "copy")
    tokenizer = LOADERS[kind.name](folder)
    check_tokenizer(kind.name.lower(), tokenizer, kind.real_rows)
    cases = json.loads(golden("tokenizer_cases.json").read_text("utf-8"))["cases"]
    for case in cases:
        expected = case[f"{kind.name.lower()}_ids"]
        if case["text"] or kind is T5:  # Qwen's empty prompt is the strategy's matter
            assert tokenizer(case["text"]).input_ids == expected, case["text"]


@needs_real
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_a_single_file_is_enough(name):
    check_tokenizer("t5", load_t5_tokenizer(SHARED / "tokenizers" / "t5" / name), T5.real_rows)


@needs_real
def test_special_tokens_spelled_in_a_caption_become_special_ids(tmp_path):
    files = copy_files(SHARED / "tokenizers/qwen3", ("vocab.json", "merges.txt"), tmp_path / "q")
    assert load_qwen_tokenizer(files)("a <|im_start|></think>").input_ids == [
        64,
        220,
        151644,
        151668,
    ]
    t5 = load_t5_tokenizer(SHARED / "tokenizers" / "t5")
    assert t5("</s><extra_id_0>").input_ids == [1, 32099, 1]


@needs_real
def test_settings_in_the_files_that_would_change_ids_have_no_effect(tmp_path):
    source = SHARED / "tokenizers" / "t5"
    files = copy_files(source, ("tokenizer.json",), tmp_path / "t5")
    content = json.loads((files / "tokenizer.json").read_text("utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (files / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    config = {"tokenizer_class": "T5Tokenizer", "split_special_tokens": True, "model_max_length": 4}
    (files / "tokenizer_config.json").write_text(json.dumps(config))
    text = "1girl, <extra_id_0> solo, smile"
    assert load_t5_tokenizer(files)(text).input_ids == load_t5_tokenizer(source)(text).input_ids


@needs_real
def test_no_length_is_cut_and_none_is_warned_of(caplog):
    tokenizer = load_t5_tokenizer(SHARED / "tokenizers" / "t5")
    assert len(tokenizer("a " * 3000).input_ids) > 3000
    assert not caplog.records


@needs_real
def test_the_tokenizer_of_the_other_model_is_refused():
    with pytest.raises(ModelFileError, match="does not work"):
        load_qwen_tokenizer(SHARED / "tokenizers" / "t5")
    with pytest.raises(ModelFileError, match=r"vocab.json|spiece.model"):
        load_t5_tokenizer(SHARED / "tokenizers" / "qwen3")


def test_demo_tokenizers_fit_their_own_tables_only(demo):
    qwen = load_qwen_tokenizer(demo / "models" / "qwen_tokenizer")
    t5 = load_t5_tokenizer(demo / "models" / "t5_tokenizer")
    check_tokenizer("qwen", qwen, 512)
    check_tokenizer("t5", t5, 384)
    with pytest.raises(ModelFileError, match=r"tokens, expected 151669.*'1girl' becomes"):
        check_tokenizer("qwen", qwen, QWEN.real_rows)
    with pytest.raises(ModelFileError, match="tokens, expected 32100"):
        check_tokenizer("t5", t5, T5.real_rows)
    with pytest.raises(ModelFileError, match="outside the table"):
        check_tokenizer("t5", t5, len(t5) - 1)


def test_an_added_token_beyond_the_table_is_found(demo):
    tokenizer = load_t5_tokenizer(demo / "models" / "t5_tokenizer")
    check_tokenizer("t5", tokenizer, len(tokenizer))
    rows = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ModelFileError, match=r"1 of its ids .*<new>"):
        check_tokenizer("t5", tokenizer, rows)


@pytest.mark.parametrize(
    "load, flag", [(load_t5_tokenizer, "--t5"), (load_qwen_tokenizer, "--qwen")]
)
def test_an_empty_folder_is_an_error_that_says_how_to_get_the_files(load, flag, tmp_path):
    with pytest.raises(ModelFileError) as caught:
        load(tmp_path)
    for part in (str(tmp_path), f"{flag}_tokenizer_dir", "hf download", "modelscope download"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>\n<html></html>", b"", b'{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_an_error(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    for load in (load_t5_tokenizer, load_qwen_tokenizer):
        for path in (tmp_path, tmp_path / "tokenizer.json"):
            with pytest.raises(ModelFileError, match="tokenizer"):
                load(path)


def test_a_truncated_spiece_model_is_an_error(demo, tmp_path):
    whole = (demo / "models" / "t5_tokenizer" / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError):
        load_t5_tokenizer(tmp_path)


def test_folders_not_given_are_looked_for_beside_the_models(tmp_path):
    assert find_t5_tokenizer_dir(None, "m/dit.safetensors") == Path("m/t5_tokenizer")
    assert find_t5_tokenizer_dir("given", "m/dit.safetensors") == Path("given")
    assert find_qwen_tokenizer_dir(None, "m/qwen.safetensors") == Path("m/qwen_tokenizer")
    assert find_qwen_tokenizer_dir(None, tmp_path) == tmp_path
    assert find_qwen_tokenizer_dir("given", tmp_path) == Path("given")
