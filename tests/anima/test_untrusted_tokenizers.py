"""Tokenizer folders from strangers: what their files name lies in the folder, or is not read."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.anima_runtime.tokenizer_assets import load_qwen_tokenizer, load_t5_tokenizer
from library.errors import ModelFileError, UserError
from tests.helpers.hostile_files import ODD_VALUES, examples

LOAD = {"qwen": load_qwen_tokenizer, "t5": load_t5_tokenizer}


@pytest.fixture(scope="module")
def places(demo, tmp_path_factory):
    """A copy of the demo's tokenizers, and beside each one the same with a token more."""
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in LOAD:
        shutil.copytree(demo / "models" / f"{kind}_tokenizer", root / kind)
    outside = root / "outside"
    shutil.copytree(root / "qwen", outside)
    vocab = json.loads((outside / "vocab.json").read_text(encoding="utf-8"))
    (outside / "vocab.json").write_text(json.dumps({**vocab, "followed": len(vocab)}))
    plain = load_qwen_tokenizer(outside)
    plain.backend_tokenizer.save(str(outside / "tokenizer.1.0.json"))
    assert "followed" in plain.get_vocab()
    return root


def with_settings(folder, settings):
    """The tokenizer folder with these settings beside its own."""
    file = folder / "tokenizer_config.json"
    own = folder / "own.json"
    if not own.exists():
        own.write_text(file.read_text(encoding="utf-8") if file.exists() else "{}")
    file.write_text(json.dumps({**json.loads(own.read_text()), **settings}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_file": "{outside}/vocab.json"},
        {"vocab_file": "../outside/vocab.json", "merges_file": "../outside/merges.txt"},
        {"tokenizer_file": "{outside}/tokenizer.1.0.json"},
        {"vocab": "{outside}/vocab.json", "merges": "{outside}/merges.txt"},
        {"fast_tokenizer_files": ["../outside/tokenizer.1.0.json"]},
        {"fast_tokenizer_files": ["{outside}/tokenizer.1.0.json"]},
        {"fast_tokenizer_files": "{outside}/tokenizer.1.0.json"},
        {"special_tokens_map_file": "{outside}/vocab.json"},
        {"gguf_file": "{outside}/vocab.json"},
        {"name_or_path": "{outside}", "_name_or_path": "{outside}"},
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"},
    ],
)
def test_no_path_in_a_tokenizers_settings_leads_out_of_its_folder(places, settings):
    text = json.dumps(settings).replace("{outside}", (places / "outside").as_posix())
    folder = with_settings(places / "qwen", json.loads(text))
    try:
        assert "followed" not in load_qwen_tokenizer(folder).get_vocab()
    except ModelFileError as error:
        assert str(folder) in str(error)


NAMES = ["vocab", "merges", "vocab_file", "pad_token", "unk_token", "added_tokens_decoder",
         "extra_special_tokens", "additional_special_tokens", "chat_template", "model_max_length",
         "init_inputs", "fast_tokenizer_files", "backend", "extra_ids", "split_special_tokens",
         "clean_up_tokenization_spaces", "padding_side", "sp_model_kwargs"]  # fmt: skip


@examples(60)
@given(
    st.sampled_from(sorted(LOAD)),
    st.dictionaries(st.sampled_from(NAMES), ODD_VALUES.filter(lambda v: v != 1e400), max_size=2),
)
def test_a_tokenizers_settings_are_used_or_refused_in_words(places, kind, settings):
    try:
        LOAD[kind](with_settings(places / kind, settings))
    except UserError:
        pass


@examples(40)
@given(st.sampled_from(["tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.json"]),
       st.sampled_from([b"[" * 10**5, b"{}", b"[]", b"\xff\xfe", b"null", b'{"a": -1}', b"1" * 5000])
       | st.binary(max_size=30))  # fmt: skip
def test_tokenizer_files_of_any_content_are_read_or_refused_in_words(
    places, tmp_path_factory, name, content
):
    folder = tmp_path_factory.mktemp("spoiled") / "qwen"
    shutil.copytree(places / "outside", folder)
    (folder / name).write_bytes(content)
    try:
        load_qwen_tokenizer(folder)
    except UserError:
        pass


@pytest.mark.parametrize("kind", LOAD)
@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/dev/null", "/dev/null/x", ""])
def test_a_tokenizer_path_that_cannot_be_is_told(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="tokenizer"):
        LOAD[kind](name)
