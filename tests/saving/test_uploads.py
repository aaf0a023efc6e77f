"""Files and states to a repository and back, against a server on loopback that plays Hugging Face."""

import logging

import pytest
import torch

from anima_train_network import load_run
from library.errors import ConfigError, ResumeError
from library.saving.hub import Repository, state_from_hub
from library.settings.flags.resume import ResumeOptions
from library.settings.flags.save import SaveOptions
from tests.helpers.hubs import serve
from tests.helpers.running import config_files, exported, make_trainer, train
from tests.helpers.upload_hub import TOKEN, UploadHandler, UploadHub

OURS = {"huggingface_repo_id": "me/loras", "huggingface_token": TOKEN}
SAVING = {
    **OURS, "huggingface_path_in_repo": "anima", "async_upload": True, "save_state": True,
    "save_state_to_huggingface": True, "save_every_n_steps": 2, "save_last_n_steps": 0,
    "ema_decay": 0.9, "log_config": True, "no_metadata": False,
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub, and the environment that points to it."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the older of its ways
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub cache"))
    with serve(UploadHub({}), UploadHandler) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def there(folder, name, hub):
    """Whether a file, or all files of a folder, are on the hub byte for byte."""
    place = folder / "out" / name
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    sent = {
        path: hub.files.get(f"me/loras/anima/{path.relative_to(folder / 'out').as_posix()}")
        for path in files
    }
    return bool(files) and all(content == path.read_bytes() for path, content in sent.items())


def test_a_run_uploads_what_it_saves_and_tries_again_what_failed(demo, run_folder, hub, caplog):
    hub.broken = 1
    caplog.set_level(logging.INFO)
    train(demo, run_folder, SAVING)
    assert hub.private == {"me/loras": True}
    names = ["run.safetensors", "run-ema.safetensors", "run-state", "run-step00000004.safetensors"]
    assert all(there(run_folder, name, hub) for name in names), hub.files.keys()
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "run-step00000002.safetensors could not be uploaded to me/loras" in error.message
    assert "tried again at the end" in error.message
    assert hub.commits[-1].startswith("step 2: run-step00000002.safetensors")
    state = "me/loras/anima/run-step00000002-state/"
    assert len([name for name in hub.files if name.startswith(state)]) > 2
    old = [path.name for path in (run_folder / "out").iterdir() if "00000002" in path.name]
    assert old == [], "kept until it was there, then deleted as asked"
    assert TOKEN not in caplog.text
    written = [path for path in (run_folder / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, content in hub.files.items() if TOKEN.encode() in content]
    goes_on_from_the_hub(demo, run_folder, hub, caplog)


def goes_on_from_the_hub(demo, run_folder, hub, caplog):
    """From the state that was sent, sending at once: it ends as the first run did."""
    whole, sent = exported(run_folder), len(hub.commits)
    caplog.clear()
    train(demo, run_folder, {
        **OURS, "resume_from_huggingface": True, "save_every_n_steps": 2,
        "resume": "me/loras/anima/run-step00000002-state:main:model",
    })  # fmt: skip
    files = [f"run{name}.safetensors" for name in ("-step00000004", "")]
    assert hub.commits[sent:] == [f"step 4: {name}" for name in files]
    assert [r.message for r in caplog.records if r.message.startswith("uploaded ")] == [
        f"uploaded {name} to me/loras" for name in files
    ]
    assert f"going on from {run_folder / 'hub cache'}" in caplog.text
    assert all(torch.equal(tensor, whole[name]) for name, tensor in exported(run_folder).items())


def test_what_fails_for_good_is_told_with_the_command(demo, run_folder, hub, caplog):
    hub.broken = 10
    folder = run_folder / "my files"
    train(demo, run_folder, {**OURS, "max_train_steps": 1, "output_dir": str(folder)})
    first, last = (r.message for r in caplog.records if r.levelno == logging.ERROR)
    assert "out of order" in first and "***" in first and TOKEN not in caplog.text
    assert f'hf upload me/loras "{folder / "run.safetensors"}" run.safetensors' in last
    assert (folder / "run.safetensors").is_file() and not hub.files


@pytest.mark.parametrize(
    "change, told",
    [
        ({"huggingface_token": "hf_other"}, "token is missing or not valid"),
        ({"huggingface_repo_id": "you/loras"}, "makes some under me, team only"),
        ({"huggingface_repo_visibility": "private"}, "is public, and huggingface_repo_visibility"),
        ({"writes": False}, "the token may not write there"),
        ({"port": 1}, "cannot be reached"),
        ({}, None),
        ({"huggingface_repo_id": "team/new"}, None),
    ],
    ids=["token", "owner", "public", "read only", "no line", "right", "to be made"],
)
def test_what_could_not_be_uploaded_to_is_told_at_the_start(hub, monkeypatch, change, told):
    hub.private["me/loras"] = False
    hub.writes = change.pop("writes", True)
    if change.pop("port", None):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    problems = Repository.of(SaveOptions(**{**OURS, **change})).problems()
    assert [told in problem.message for problem in problems] == ([True] if told else [])
    assert all(problem.where.startswith("huggingface_repo_id = ") for problem in problems)
    assert hub.private == {"me/loras": False}, "nothing is made by looking"


def test_a_wrong_token_ends_a_run_before_it_begins_with_all_other_problems(demo, run_folder, hub):
    argv = config_files(demo, run_folder, {**OURS, "huggingface_token": "hf_other"})
    (demo_vae := run_folder / "vae.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError) as error:
        make_trainer([*argv, "--vae", str(demo_vae)]).train()
    assert "the token is missing or not valid" in str(error.value)
    assert "vae.safetensors" in str(error.value) and "hf_other" not in str(error.value)


def test_a_repository_is_as_its_options_say(hub):
    made = Repository.of(SaveOptions(
        **OURS, huggingface_repo_type="dataset", huggingface_repo_visibility="public",
        huggingface_path_in_repo="/a/b/",
    ))  # fmt: skip
    assert made.make() and not made.make()
    assert hub.private == {"datasets/me/loras": False}
    assert made.place_of("x") == "a/b/x" and TOKEN not in repr(made)
    assert Repository.of(SaveOptions()) is None


@pytest.mark.parametrize(
    "place, told",
    [
        ("me/loras/nothing", "has no folder nothing"),
        ("me/other/state", "cannot be fetched"),
    ],
)
def test_a_state_that_is_not_there_is_told(hub, place, told):
    hub.private["me/loras"] = True
    hub.files["me/loras/state/manifest.json"] = b"{}"
    options = ResumeOptions(resume=place, resume_from_huggingface=True)
    with pytest.raises(ResumeError, match=told):
        state_from_hub(options, TOKEN)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--huggingface_repo_id", "loras"], "expected user/name"),
        (["--resume", "state", "--resume_from_huggingface"], "expects user/name/folder"),
        (["--resume", "me/loras/state:main:file", "--resume_from_huggingface"], "expects user/name"),
    ],
)
def test_names_that_cannot_be_are_told(demo, run_folder, words, told):
    with pytest.raises(ConfigError, match=told):
        load_run([*config_files(demo, run_folder, {}), *words])
