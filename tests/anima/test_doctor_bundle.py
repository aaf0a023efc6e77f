"""The zip for a bug report: what helps is in it, what is private is not."""

import json
import os
import re
import zipfile

import pytest

from library.anima_doctor.bundle import Redaction, check_target, prompts_of
from library.anima_doctor.own_names import own_names
from library.errors import ConfigError, OutputError
from tests.helpers import warm
from tests.helpers.running import config_files
from tools.doctor import without_bundle

SHARES = {"tags": 1, "sentences": 1}
ODD = "solitary_heron"  # a tag that the report finds fault with
SAID = "A quokka, unposed, looks on."
CAPTION, WORDS, PROMPT = "zebra in lilac fog", "uncommon trigger words", "a stilt house at dusk"
LONG = (
    f'{WORDS} and "quoted" ones that go on beyond the sixty letters which the report has room for'
)
PREFIX = 'teal "quoted" prefix'
USER = "quillwort"
PRIVATE = (CAPTION, ODD, "quokka", WORDS, PROMPT, USER, "0123456789abcdef", "s3cret", "my own remark")
PRIVATE += ("Jane Doe", "that go on", "teal", "typed title")
CLASS, RUN, PLACE, TOKEN = "okapi", "gnu_v3", "menagerie", "token-of-the-surroundings"
PRIVATE += (CLASS, RUN, PLACE, TOKEN, "05_city", "03_beach", "ibis")


@pytest.fixture(scope="module")
def bundled(demo, tmp_path_factory):
    """The folder of a run with planted secrets, what the command said, and the files of its zip."""
    folder = tmp_path_factory.mktemp("home") / USER / "run"
    (folder / "out/logs/run_1").mkdir(parents=True)
    pictures = folder / PLACE / f"5_{CLASS}"
    pictures.mkdir(parents=True)
    for source in sorted((demo / "pictures").glob("*.png"))[:4]:
        (pictures / source.name).write_bytes(source.read_bytes())
        (pictures / f"{source.stem}.txt").write_text(CAPTION, encoding="utf-8")
    (pictures / f"{source.stem}.txt").write_text(f"{ODD}, {ODD}", encoding="utf-8")
    (pictures / f"{source.stem}_nl.txt").write_text(f"{SAID}\n", encoding="utf-8")
    (folder / "prompts.txt").write_text(f"{PROMPT} --w 64 --h 64\n", encoding="utf-8")
    (folder / "run.log").write_text(
        "".join(f"line {i}\n" for i in range(300))
        + f"trained with {SAID}\n"
        + f"drew {PROMPT}\nshortened the caption '{CAPTION}' of C:\\Users\\{USER} S\\b.png\n"
        + f"loss of {pictures / source.name}: 2.5; {RUN}-000001.safetensors is written; {TOKEN}\n"
        + f"https://me:s3cret@example.org by {USER}@host\n",
        encoding="utf-8",
    )
    (folder / f"out/{RUN}-000001.safetensors").write_bytes(b"x" * 1234)
    (folder / "out/logs/run_1/loss.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    settings = {
        "wandb_api_key": "0123456789abcdef",
        "sample_prompts": str(folder / "prompts.txt"),
        "console_log_file": str(folder / "run.log"),
        "metadata_author": "Jane Doe",
        "training_comment": LONG,
        "output_name": RUN,
        "wandb_run_name": "ibis at dawn",
    }
    words = {"image_dir": str(pictures), "caption_prefix": PREFIX, "class_tokens": "zq", "caption_shares": SHARES}
    argv = config_files(demo, folder, settings, **words, keep_tokens=1)
    with open(argv[1], "a", encoding="utf-8") as file:
        file.write("# my own remark\n")
    names = {"USER": USER, "LOGNAME": USER, "USERNAME": USER, "MODELSCOPE_API_TOKEN": TOKEN}
    done = warm.run(
        ["-m", "tools.doctor", *argv, "--metadata_title", "typed title", "--bundle", "bug.zip"],
        cwd=folder,
        env={**os.environ, **names},
    )
    assert (folder / "bug.zip").exists(), done.stdout + done.stderr
    with zipfile.ZipFile(folder / "bug.zip") as archive:
        assert archive.testzip() is None
        parts = {name: archive.read(name).decode("utf-8") for name in archive.namelist()}
    return folder, done, parts


def test_nothing_private_is_in_the_zip(bundled):
    _, _, parts = bundled
    found = [(name, word) for name, text in parts.items() for word in PRIVATE if word in text]
    assert not found


def test_what_helps_is_in_the_zip(bundled):
    _, done, parts = bundled
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(parts) == {
        *(
            "contents.txt",
            "report.txt",
            "versions.txt",
            "output_files.txt",
            "log.txt",
            "steps.jsonl",
        ),
        *("settings/config_file.json", "settings/dataset_config.json"),
    }
    assert "The run would start." in parts["report.txt"]
    for finding in ("same tag more than once", "tags with underscores"):
        assert re.search(rf"{finding}[^\n]* \(1\): PICTURE_\d.txt", parts["report.txt"]), finding
    settings = json.loads(parts["settings/config_file.json"])
    assert settings["learning_rate"] == 1e-3 and settings["wandb_api_key"] == "***"
    (subset,) = json.loads(parts["settings/dataset_config.json"])["datasets"][0]["subsets"]
    assert (subset["caption_prefix"], subset["class_tokens"], subset["keep_tokens"]) == ("***", "***", 1)
    assert "caption_prefix = ***\n" in parts["report.txt"] and "class_tokens" not in parts["report.txt"]
    assert "1,234  ***-000001.safetensors" in parts["output_files.txt"]
    log = parts["log.txt"].splitlines()
    assert len(log) == 200 and log[-4] == "drew ***"
    assert log[-5] == "trained with ***"
    assert re.fullmatch(
        r"loss of .*/\*\*\*/5_\*\*\*/PICTURE_\d.png: 2.5; \*\*\*-000001.safetensors is written; \*\*\*", log[-2]
    )
    assert subset["image_dir"].endswith("/run/***/5_***") and settings["output_name"] == "***"
    assert "with sentences: 1" in parts["report.txt"]
    assert "torch==" in parts["versions.txt"] and parts["steps.jsonl"] == '{"step": 1}\n'


def test_the_command_says_where_the_zip_is_and_writes_none_over_another_file(bundled):
    folder, done, _ = bundled
    assert "bug.zip: look through it" in done.stdout
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    with pytest.raises(OutputError, match="is there already"):
        check_target(str(folder / "bug.zip"))
    with pytest.raises(ConfigError, match=r"should end in \.zip"):
        check_target("bug.txt")


@pytest.mark.parametrize("typed", [["--bundle", "a.zip"], ["--bundle=a.zip"]])
def test_the_rest_of_the_command_line_is_the_trainers(typed):
    assert without_bundle(["--seed", "7", *typed, "--vae", "v"]) == (
        ["--seed", "7", "--vae", "v"],
        "a.zip",
    )
    with pytest.raises(ConfigError, match="needs the name"):
        without_bundle(["--bundle", "--seed", "7"])


@pytest.mark.parametrize(
    "path, shown",
    [
        ("/home/anna/a.png", "/home/USER/a.png"),
        ("/Users/anna b/a.png", "/Users/USER/a.png"),
        (r"C:\Users\Anna B\a.png", r"C:\Users\USER\a.png"),
        (r"'C:\\Users\\Anna\\a.png'", r"'C:\\Users\\USER\\a.png'"),
        ("/mnt/c/Users/anna", "/mnt/c/Users/USER"),
        ("D:/data/home/x", "D:/data/home/USER"),
        ("/tmp/quill_wort/wortel", "/tmp/quill_USER/wortel"),
        ("/srv/homes/anna", "/srv/homes/anna"),
    ],
)
def test_names_of_users_in_paths_of_every_system_are_blotted_out(path, shown):
    assert Redaction((), (), ("wort",)).apply(path) == shown


@pytest.mark.parametrize("key", ["caption_prefix", "image_dir", "output_name"])
def test_a_line_that_an_error_quotes_loses_the_words_in_it(key):
    """A file with such a line is not valid TOML: its texts are known from nowhere else."""
    text = f"dataset.toml  is not valid TOML: (at line 4) The line: {key} = 'zebra in\nnext"
    assert Redaction((), (), ()).apply(text).endswith(f"The line: {key} = ***\nnext")


@pytest.fixture
def zoo(tmp_path):
    """A folder of sd-scripts' kind: two classes, of which one is empty, and a picture with its texts."""
    for place in ("train/3_quagga", "train/2_猫", "train/1_images"):
        (tmp_path / place).mkdir(parents=True)
    for name in ("quagga_01.png", "quagga_01.txt", "quagga_01_nl.txt", "12.png"):
        (tmp_path / "train/3_quagga" / name).touch()
    return tmp_path


def test_names_of_classes_pictures_and_files_are_blotted_out_and_words_of_every_run_stay(zoo):
    settings = [("train_data_dir", str(zoo / "train")), ("output_name", "my_lora_v2")]
    settings += [("network_weights", "D:/old loras/Fennec-000004.safetensors"), ("trigger_word", "qg")]
    names = own_names(settings, [], zoo.parts)
    shown = names.blot_out(
        "train/3_Quagga/quagga_01_nl.txt 12.png train/2_猫 train/1_images my_lora_v2.safetensors "
        "C:\\x\\old loras\\fennec.safetensors FENNEC-000004-state qg_qg.toml the old loras trained /3_qua... /fen...  /x..."
    )
    assert shown == (
        "train/3_***/PICTURE_1_nl.txt 12.png train/2_*** train/1_images my_lora_v2.safetensors "
        "C:\\x\\old loras\\***.safetensors ***-000004-state ***_***.toml the old loras trained /3_***... /***...  /x..."
    )


@pytest.mark.parametrize("name, kind", [("p.toml", "toml"), ("p.json", "json"), ("p.txt", "txt")])
def test_prompts_are_known_from_every_kind_of_file(tmp_path, name, kind):
    texts = {
        "toml": '[prompt]\nsampler = "euler"\n[[prompt.subset]]\nprompt = "a tapir"\nnegative_prompt = "a dog"\n',
        "json": '{"prompt": {"sampler": "euler", "subset": [{"prompt": "a tapir", "negative_prompt": "a dog"}]}}',
        "txt": "a tapir --n a dog\n",
    }
    (tmp_path / name).write_text(texts[kind], encoding="utf-8")
    found = prompts_of(str(tmp_path / name))
    assert found == ({texts["txt"]} if kind == "txt" else {"a tapir", "a dog"})
