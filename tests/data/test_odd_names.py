"""Names that are not UTF-8, as a zip from Chinese or Japanese Windows leaves them on Linux."""

import json
import logging
import sys

import pytest
from PIL import Image

from library.anima_runtime.command_line import GROUPS, setup_parser
from library.anima_runtime.model_tensors import load_floats
from library.anima_runtime.tokenizer_assets import load_t5_tokenizer
from library.caching.latents_files import short_name
from library.data.images import PictureHeader, load_image
from library.data.picture_folders import KINDS
from library.data.picture_sizes import read_headers
from library.errors import ConfigError, DatasetError, ModelFileError, as_utf8, visible
from library.saving.snapshot import content_hash
from library.settings.config_file import read_config
from library.settings.written_config import write_config
from library.system.text_files import json_text, parse_json
from library.utils import VisibleFormatter, position_seed
from tests.helpers.dataset_files import catalogue_of, draw, folder_of
from tests.helpers.running import config_files, make_trainer
from tools.doctor import report
from tools.preview_buckets import preview

GIRL, PHOTO = (text.encode("gbk").decode("utf-8", "surrogateescape") for text in ("少女", "照片"))
SHOWN_GIRL, SHOWN_PHOTO = r"\xc9\xd9Ů", r"\xd5\xd5Ƭ"  # some pairs of bytes are letters
needs_bytes = pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="file names are Unicode here"
)
MODES = {
    "in memory": {},
    "on disk": {"cache_latents_to_disk": True, "cache_text_encoder_outputs_to_disk": True},
    "uncached": {"cache_latents": False, "cache_text_encoder_outputs": False},
}


def test_what_is_not_utf_8_is_shown_escaped():
    assert visible(f"{GIRL}.png") == f"{SHOWN_GIRL}.png"
    assert as_utf8(f"a\n{PHOTO}女") == f"a\n{SHOWN_PHOTO}女"
    assert as_utf8("\ud800") == r"\ud800"
    record = logging.LogRecord("", logging.INFO, "", 0, "%s\n\x1b[2J", (GIRL,), None)
    assert VisibleFormatter("%(message)s").format(record) == f"{SHOWN_GIRL}\n\\x1b[2J"


def test_seeds_tell_such_names_apart_and_stay_for_all_others():
    assert position_seed(7, 0, "0.0/女孩.png", 3) == 6229301020164087121
    assert position_seed(7, 0, f"0.0/{GIRL}.png") != position_seed(7, 0, f"0.0/{PHOTO}.png")


def test_json_in_utf_8_gives_such_names_back():
    value = {f"女{GIRL}": ["\ud800", "孩"]}
    text = json_text(value).encode().decode()
    assert "女" in text and parse_json(text) == value


@needs_bytes
def test_sizes_are_remembered_and_cache_files_are_named(tmp_path):
    picture = draw(tmp_path / f"{GIRL}.png", (48, 32))
    (tmp_path / "_cache").mkdir()
    for _ in range(2):
        assert read_headers([picture], {tmp_path}) == ({picture: PictureHeader((48, 32))}, [])
    assert short_name(picture) == f"{GIRL}.png"
    assert len(short_name(tmp_path / (60 * GIRL))) < 100  # 240 bytes: too long with an ending


@needs_bytes
def test_a_folder_of_another_encoding_names_no_class(tmp_path):
    folder = folder_of(tmp_path / GIRL, [(64, 64)], captions=False)
    with pytest.raises(DatasetError, match=r"class_tokens = \\xc9\\xd9.*rename the folder"):
        catalogue_of_json(tmp_path, folder)
    (folder / "0.txt").write_text("a")
    assert [image.caption for image in catalogue_of_json(tmp_path, folder).images] == ["a"]


def catalogue_of_json(root, folder):
    from library.config_util import load_dataset_config
    from library.data.scan import scan

    path = root / "dataset.json"
    subset = {"image_dir": str(folder), "class_tokens": folder.name}
    path.write_text(json.dumps({"datasets": [{"resolution": 64, "subsets": [subset]}]}))
    return scan(load_dataset_config(path, {}))


def test_half_a_character_in_a_caption_file_is_told(tmp_path):
    folder = folder_of(tmp_path / "set", [(64, 64)], captions=False)
    entries = tmp_path / "meta.json"
    entries.write_text(r'{"0.png": {"caption": "a \ud83d"}}')
    with pytest.raises(DatasetError, match="caption holds half a character"):
        catalogue_of(folder, subset=f"metadata_file = '{entries}'")


@pytest.fixture
def odd_folder(demo, tmp_path):
    """Two of the demo's pictures under names in GBK, in a folder in GBK."""
    inner = tmp_path / GIRL / f"3_{PHOTO}"
    inner.mkdir(parents=True)
    for name in ("01_meadow", "02_night"):
        for ending in (".png", ".txt"):
            (inner / f"{PHOTO}{name}{ending}").write_bytes(
                (demo / "pictures" / f"{name}{ending}").read_bytes()
            )
    return tmp_path


@needs_bytes
@pytest.mark.parametrize("mode", MODES)
def test_such_folders_train_go_on_and_are_reported(demo, odd_folder, mode, capsys):
    settings = {"max_train_steps": 1, "resolution": "128", "cache_info": True, "log_config": True}
    argv = config_files(demo, odd_folder, settings | MODES[mode])[:2]
    out = odd_folder / GIRL / "out"
    argv += ["--train_data_dir", str(odd_folder / GIRL), "--output_dir", str(out)]
    make_trainer([*argv, "--save_state"]).train()
    resumed = [*argv, "--max_train_steps", "2", "--resume", str(out / "run-state")]
    trainer = make_trainer(resumed)
    trainer.train()
    assert (trainer.state.step, trainer.catalogue.num_samples) == (2, 6)
    metadata = metadata_of(out / "run.safetensors")
    for name in ("ss_dataset_dirs", "ss_tag_frequency"):
        assert list(json.loads(metadata[name])) == [f"3_{SHOWN_PHOTO}"]
    if mode == "in memory":
        text, code = report(resumed)
        assert (code, f"3_{SHOWN_PHOTO}" in text, text.encode() != b"") == (0, True, True)
        preview([*argv, "--output", str(odd_folder / f"{GIRL}.png"), "--max_samples", "2"])
        assert f"{SHOWN_GIRL}.png" in capsys.readouterr().out


def metadata_of(path):
    """Read by hand: the library opens no path that is not UTF-8."""
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]


@needs_bytes
def test_a_configuration_file_is_not_written_with_names_it_cannot_hold(tmp_path):
    target = tmp_path / "new.toml"
    argv = ["--output_config", "--config_file", str(target), "--output_dir", str(tmp_path / GIRL)]
    with pytest.raises(ConfigError, match="not UTF-8, which TOML cannot"):
        write_config(read_config(setup_parser(), argv, GROUPS))
    assert not list(tmp_path.iterdir())


@needs_bytes
def test_a_folder_is_hashed_whatever_its_files_are_called(tmp_path):
    for name in (GIRL, PHOTO):
        (tmp_path / name).write_text("x")
    assert len(content_hash(tmp_path)) == 64


@needs_bytes
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_kind_are_read_by_such_names(tmp_path, kind):
    Image.init()
    plain = tmp_path / f"a{kind}"
    Image.new("RGB", (64, 48), "red").save(plain, Image.EXTENSION.get(kind, "PPM"))
    assert load_image(plain.rename(tmp_path / f"{GIRL}{kind}")).size == (64, 48)


@needs_bytes
def test_models_are_read_from_such_folders_and_tokenizers_say_why_not(demo, tmp_path):
    folder = tmp_path / GIRL
    folder.symlink_to(demo / "models")
    for disable_mmap in (False, True):
        assert load_floats(folder / "qwen_3_06b.safetensors", disable_mmap)
    with pytest.raises(ModelFileError, match="start inside it and give a relative path"):
        load_t5_tokenizer(folder / "t5_tokenizer")
