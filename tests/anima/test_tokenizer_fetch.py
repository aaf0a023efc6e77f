"""Tokenizers that arrive by themselves, from real servers on loopback that play both hubs."""

import json
import threading

import pytest

from library.anima_runtime import model_loading, tokenizer_assets, tokenizer_fetch
from library.anima_runtime.tokenizer_fetch import (
    Repository,
    can_be_fetched,
    fetch,
    parse_repository,
    sources_of,
)
from library.errors import ModelFileError
from tests.helpers.hubs import Hub, serve
from tests.helpers.running import config_files, make_trainer

HF_REPO, MS_REPO = "google/t5-v1_1-base", "nv/cosmos"
HF = Repository("huggingface", HF_REPO, None, ("tokenizer", ""))
MS = Repository("modelscope", MS_REPO, "master", ("tokenizer", ""))
TRIO = ("spiece.model", "tokenizer.json", "config.json")


@pytest.fixture(scope="module")
def t5(demo):
    """The demo's T5 tokenizer: its files, and the rows of the table that reads it."""
    folder = demo / "models" / "t5_tokenizer"
    params, _ = model_loading.inspect_transformer(demo / "models" / "anima_dit.safetensors", None)
    return {f.name: f.read_bytes() for f in folder.iterdir()}, params.llm_adapter.vocab


def files_at(repo, files, folder=""):
    return {f"{repo}/{folder}{name}": content for name, content in files.items()}


@pytest.fixture
def hubs(monkeypatch, t5):
    """Both hubs with the demo's tokenizer, and the environment that points to them; no pauses."""
    files, _ = t5
    monkeypatch.setattr(tokenizer_fetch, "DOWNLOAD", "tests.helpers.hurried_download")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with (
        serve(Hub(files_at(HF_REPO, files))) as first,
        serve(Hub(files_at(MS_REPO, files, "tokenizer/"))) as second,
    ):
        monkeypatch.setenv("HF_ENDPOINT", first.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", second.url)
        yield first, second


def bring(folder, t5, sources=(HF, MS), seconds=600.0, kind="t5"):
    fetch(kind, folder, sources, table_rows=t5[1], seconds=seconds)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_hugging_face_is_asked_first_and_is_enough(hubs, t5, tmp_path):
    first, second = hubs
    found = bring(tmp_path / "t5_tokenizer", t5)
    assert {name: found[name] for name in t5[0] if name in found} == {
        name: content for name, content in t5[0].items() if name in found
    }
    assert set(TRIO) & set(t5[0]) <= set(found)
    assert not second.requests and "/resolve/main/" in first.requested()[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "t5_tokenizer"]  # nothing temporary is left


def test_the_subfolder_is_tried_before_the_root(hubs, t5, tmp_path):
    first, _ = hubs
    first.files = files_at(HF_REPO, t5[0], "tokenizer/") | {f"{HF_REPO}/spiece.model": b"wrong"}
    bring(tmp_path / "t5", t5, [HF])
    assert first.requested()[0].endswith("/tokenizer/spiece.model")


def test_what_the_repository_lacks_of_the_three_is_made(hubs, t5, tmp_path):
    first, _ = hubs
    only = {name: t5[0][name] for name in ("spiece.model", "config.json")}
    first.files = files_at(HF_REPO, only)
    found = bring(tmp_path / "t5", t5, [HF])
    assert set(found) == set(TRIO)
    made = tmp_path / "made"
    made.mkdir()
    (made / "tokenizer.json").write_bytes(found["tokenizer.json"])
    text = "1girl, solo, smile"
    load = tokenizer_assets.load_t5_tokenizer
    assert load(made)(text).input_ids == load(tmp_path / "t5")(text).input_ids
    first.files = files_at(HF_REPO, {"spiece.model": only["spiece.model"]})
    assert json.loads(bring(tmp_path / "other", t5, [HF])["config.json"])["vocab_size"] == t5[1]


@pytest.mark.parametrize(
    "trouble, cause",
    [
        ("gated", "GatedRepo"),
        ("broken", "500"),
        ("cut", ""),
        ("page", "a web page came instead of"),
    ],
)
def test_trouble_at_hugging_face_falls_back_to_modelscope(
    hubs, t5, tmp_path, caplog, trouble, cause
):
    first, second = hubs
    first.trouble = trouble
    found = bring(tmp_path / "t5", t5)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("Hugging Face google/t5-v1_1-base: ") and cause in warning
    assert second.requested() and set(found) >= {"spiece.model"}


@pytest.mark.parametrize("trouble", ["gated", "broken", "cut", "page"])
def test_trouble_at_modelscope_is_never_taken_for_a_file(hubs, t5, tmp_path, trouble):
    hubs[1].trouble = trouble
    with pytest.raises(ModelFileError, match="could not be fetched"):
        bring(tmp_path / "t5", t5, [MS])
    assert not list(tmp_path.iterdir())


def test_a_missing_repository_and_a_missing_file_are_causes(hubs, t5, tmp_path):
    first, second = hubs
    first.files = files_at("other/repo", t5[0])
    second.files = files_at(MS_REPO, {"readme.md": b"x"})
    with pytest.raises(ModelFileError) as caught:
        bring(tmp_path / "t5", t5)
    told = str(caught.value)
    assert "Hugging Face google/t5-v1_1-base: RepositoryNotFoundError" in told
    assert "ModelScope nv/cosmos: there is no such repository, or it has no spiece.model" in told
    for command in ("hf download google/t5-v1_1-base", "modelscope download --model"):
        assert command in told
    assert not list(tmp_path.iterdir())


def test_what_passes_is_tried_again(hubs, t5, tmp_path):
    hubs[0].trouble = "flaky"
    bring(tmp_path / "t5", t5, [HF])
    hubs[1].trouble = "flaky"
    bring(tmp_path / "other", t5, [MS])


def test_a_time_limit_holds_for_all_sources_together(hubs, t5, tmp_path):
    for hub in hubs:
        hub.trouble = "slow"
    with pytest.raises(ModelFileError, match="not done within") as caught:
        bring(tmp_path / "t5", t5, seconds=2)
    assert str(caught.value).count("not done within") == 2


def test_an_offline_machine_is_answered_at_once(t5, tmp_path, monkeypatch):
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(ModelFileError) as caught:
        bring(tmp_path / "t5", t5)
    assert str(caught.value).count("127.0.0.1 cannot be reached") == 2


def test_tokens_are_sent_to_the_hub_and_shown_to_nobody(hubs, t5, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    hubs[0].trouble = "gated"
    with pytest.raises(ModelFileError) as caught:
        bring(tmp_path / "t5", t5, [HF])
    assert "Bearer hf_verysecret" in hubs[0].tokens
    assert "verysecret" not in str(caught.value) + caplog.text


def test_a_tokenizer_of_another_size_is_refused(hubs, t5, tmp_path):
    with pytest.raises(ModelFileError, match="outside the table"):
        fetch("t5", tmp_path / "t5", [HF], table_rows=40, seconds=600)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused(hubs, t5, tmp_path):
    hubs[0].files[f"{HF_REPO}/spiece.model"] = t5[0]["spiece.model"][:3000]
    hubs[0].files.pop(f"{HF_REPO}/tokenizer.json", None)
    with pytest.raises(ModelFileError, match="could not be fetched"):
        bring(tmp_path / "t5", t5, [HF])
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_stay_and_those_missing_come(hubs, t5, tmp_path):
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert can_be_fetched("t5", folder)
    assert bring(folder, t5, [HF])["notes.txt"] == b"mine"
    assert not can_be_fetched("t5", folder)
    assert not can_be_fetched("t5", tmp_path / "spiece.model")
    assert not can_be_fetched("qwen", folder)  # the two were swapped: told, not mixed


def test_two_at_once_do_not_disturb_each_other(hubs, t5, tmp_path):
    folder, errors = tmp_path / "t5", []

    def one():
        try:
            bring(folder, t5, [HF])
        except Exception as error:  # noqa: BLE001  told in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not can_be_fetched("t5", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["t5"]


def test_a_run_fetches_what_it_lacks_and_nothing_the_second_time(demo, run_folder, hubs, tmp_path):
    first, _ = hubs
    models = demo / "models"
    qwen = {f.name: f.read_bytes() for f in (models / "qwen_tokenizer").iterdir()}
    first.files |= files_at("Qwen/Qwen3-0.6B-Base", qwen)
    settings = {"max_train_steps": 1, "download_timeout": 600.0}
    for name in ("anima_transformer", "qwen"):
        file = {"anima_transformer": "anima_dit", "qwen": "qwen_3_06b"}[name] + ".safetensors"
        (tmp_path / file).symlink_to(models / file)
        settings[name] = str(tmp_path / file)
    settings |= {"qwen_tokenizer_dir": None, "t5_tokenizer_dir": None}
    argv = config_files(demo, run_folder, settings)
    make_trainer(argv).train()
    made = {path.name for path in tmp_path.iterdir() if path.name.endswith("_tokenizer")}
    assert made == {"qwen_tokenizer", "t5_tokenizer"} and first.requested()
    first.requests.clear()
    make_trainer(argv).train()
    assert not first.requests


def test_fetching_can_be_switched_off(demo, run_folder, hubs, tmp_path):
    settings = {"t5_tokenizer_dir": str(tmp_path / "none"), "auto_download_t5_tokenizer": False}
    with pytest.raises(ModelFileError, match="tokenizer is missing") as caught:
        make_trainer(config_files(demo, run_folder, settings)).train()
    assert "hf download" in str(caught.value) and not hubs[0].requests


ADDRESSES = [
    ("a/b", Repository("huggingface", "a/b", None, ("sub", ""))),
    ("https://huggingface.co/a/b", Repository("huggingface", "a/b", None, ("sub", ""))),
    ("https://huggingface.co/a/b/tree/v1", Repository("huggingface", "a/b", "v1", ("sub", ""))),
    ("https://hf-mirror.com/a/b/tree/v1/x/y", Repository("huggingface", "a/b", "v1", ("x/y", ""))),
    ("https://huggingface.co/a/b/blob/main/x/spiece.model",
     Repository("huggingface", "a/b", "main", ("x", ""))),
    ("https://huggingface.co/a/b/resolve/main/spiece.model?download=true",
     Repository("huggingface", "a/b", "main", ("sub", ""))),
    ("https://modelscope.cn/models/a/b", Repository("modelscope", "a/b", None, ("sub", ""))),
    ("https://www.modelscope.cn/models/a/b/files", Repository("modelscope", "a/b", None, ("sub", ""))),
    ("https://www.modelscope.cn/models/a/b/tree/master/x",
     Repository("modelscope", "a/b", "master", ("x", ""))),
    ("https://modelscope.cn/models/a/b/resolve/v2/x/spiece.model",
     Repository("modelscope", "a/b", "v2", ("x", ""))),
    ("https://modelscope.cn/models/a/b/file/view/master/x%2Fspiece.model?status=2",
     Repository("modelscope", "a/b", "master", ("x", ""))),
    ("https://modelscope.cn/api/v1/models/a/b/repo?Revision=v3&FilePath=x/y/spiece.model",
     Repository("modelscope", "a/b", "v3", ("x/y", ""))),
    ("https://www.modelscope.ai/models/a/b",
     Repository("modelscope", "a/b", None, ("sub", ""), "https://www.modelscope.ai")),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", ADDRESSES)
def test_every_kind_of_address_is_read(text, expected):
    assert parse_repository(text, "--t5_tokenizer_repo_id", subfolder="sub") == expected


@pytest.mark.parametrize(
    "text",
    ["a", "a/b/c", "https://github.com/a/b", "ftp://huggingface.co/a/b", "https://huggingface.co/a",
     "https://huggingface.co/a/b/issues/3", "https://modelscope.cn/studios/a/b", "../x", ""],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ModelFileError, match="is no address of a repository"):
        parse_repository(text, "--t5_tokenizer_repo_id")


def test_the_sources_follow_the_flags(demo, run_folder):
    def sources(kind, **settings):
        anima = make_trainer(config_files(demo, run_folder, settings)).anima
        return sources_of(kind, anima)

    t5 = [
        Repository("huggingface", "google/t5-v1_1-base", None, ("tokenizer", "")),
        Repository("modelscope", "nv-community/Cosmos-Predict2-2B-Text2Image", "master",
               ("tokenizer", "")),
    ]  # fmt: skip
    assert sources("t5") == t5
    assert sources("t5", t5_tokenizer_modelscope_fallback=False) == t5[:1]
    assert sources("t5", t5_tokenizer_repo_id="https://modelscope.cn/models/a/b") == [
        Repository("modelscope", "a/b", None, ("tokenizer", ""))
    ]
    assert [str(source) for source in sources("qwen")] == [
        "Hugging Face Qwen/Qwen3-0.6B-Base",
        "ModelScope Qwen/Qwen3-0.6B-Base",
    ]
