"""The pictures of a run: when they are due, their names, which there are, the sheet of all of them."""

from base64 import b64decode
from datetime import datetime
from io import BytesIO

import pytest
from PIL import Image, ImageChops, ImageFont
from PIL.PngImagePlugin import PngInfo

from library.data.data_types import RunPosition
from library.previews.album import MOST_ROWS, Album, DrawnPicture, album_problems
from library.previews.contact_sheet import (
    LETTERS,
    SIDE,
    fitting,
    laid_out,
    tell_of_missing_letters,
    told_apart,
)
from library.previews.schedule import Moment, Schedule
from library.saving.metadata import RunMetadata, thumbnail
from library.settings.flags.metadata import MetadataOptions
from library.settings.flags.preview import PreviewOptions
from library.settings.flags.save import SaveOptions
from library.system.fonts import find_font, wide_font

NOW = datetime(2026, 11, 23, 8, 5, 9)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def due(**options):
    """The steps, and after them the epochs of three steps, at which a run of seven steps draws."""
    schedule = Schedule(PreviewOptions(sample_prompts="p.txt", **options), 7)
    steps = [moment.step for moment in [schedule.at_first(0)] if moment]
    steps += [step for step in range(1, 8) if schedule.at_step(step)]
    return steps, [epoch for epoch in (1, 2, 3) if schedule.after_epoch(epoch, 3 * epoch)]


@pytest.mark.parametrize(
    "options, steps, epochs",
    [
        ({}, [7], []),
        ({"sample_at_first": True}, [0, 7], []),
        ({"sample_every_n_steps": 3}, [3, 6], []),
        ({"sample_every_n_steps": 3, "sample_at_first": True}, [0, 3, 6], []),
        ({"sample_every_n_epochs": 2}, [], [2]),
        ({"sample_every_n_epochs": 1, "sample_every_n_steps": 4}, [4], [1, 2, 3]),
        ({"sample_every_n_steps": 100}, [], []),
    ],
)
def test_pictures_are_due_as_asked_and_else_at_the_end(options, steps, epochs):
    assert due(**options) == (steps, epochs)


def test_nothing_is_due_without_prompts():
    schedule = Schedule(PreviewOptions(sample_every_n_steps=1, sample_at_first=True), 3)
    assert not any(schedule.at_step(step) for step in range(1, 4))
    assert schedule.at_first(0) is None
    assert schedule.after_epoch(1, 3) is None


def test_a_folder_in_which_no_picture_can_be_is_told_at_the_start(tmp_path):
    options = SaveOptions(output_dir=str(tmp_path), output_name="run")
    assert album_problems(options) == [] and not list(tmp_path.iterdir())
    (tmp_path / "sample").touch()
    (problem,) = album_problems(options)
    assert "sample is a file, expected a folder" in problem.message


def test_the_newest_picture_of_the_first_prompt_stands_for_the_run(tmp_path):
    album = Album(tmp_path, "run")
    metadata = RunMetadata({"ss_seed": "1"}, minimal=False)
    metadata.cover = album.cover
    position = RunPosition()
    assert "modelspec.thumbnail" not in metadata.at(position)
    for step, number, color in ((1, 0, RED), (2, 1, BLUE), (2, 0, GREEN), (2, 2, BLUE)):
        path = album.path(Moment(step), number, 42, NOW)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (600, 300), color).save(path)
        album.add(DrawnPicture(step, None, number, "", 42, path), Image.new("RGB", (8, 4)))
    url = metadata.at(position)["modelspec.thumbnail"]
    assert url == thumbnail(url) and url == album.cover()  # a picture that users could have given
    with Image.open(BytesIO(b64decode(url.removeprefix("data:image/jpeg;base64,")))) as picture:
        assert picture.size == (256, 128) and abs(picture.getpixel((9, 9))[1] - 255) < 4
    later = Album(tmp_path, "run")  # of a run that goes on from step 1
    later.take_over(1, 9)
    assert later.newest[1] == album.path(Moment(1), 0, 42, NOW)
    minimal = RunMetadata({"modelspec.title": "t"}, minimal=True)
    minimal.cover = album.cover
    assert minimal.at(position) == {"modelspec.title": "t"}
    path.with_name(album.newest[1].name).unlink()
    assert album.cover() is None and "modelspec.thumbnail" not in metadata.at(position)
    assert MetadataOptions(metadata_thumbnail="none").problems() == [] and thumbnail("none") is None


def test_pictures_are_named_as_sd_scripts_names_them(tmp_path):
    names = [
        Album(tmp_path, name).path(moment, 3, 42, NOW).relative_to(tmp_path).as_posix()
        for name in ("run", None)
        for moment in (Moment(7), Moment(7, 2))
    ]
    assert names == [
        "sample/run_000007_03_20261123080509_42.png",
        "sample/run_e000002_03_20261123080509_42.png",
        "sample/000007_03_20261123080509_42.png",
        "sample/e000002_03_20261123080509_42.png",
    ]


def written(album, moment, number, colour, *, size=(32, 16), second=0):
    path = album.path(moment, number, 5, NOW.replace(second=second))
    path.parent.mkdir(exist_ok=True)
    picture = Image.new("RGB", size, colour)
    picture.save(path)
    return DrawnPicture(moment.step, moment.epoch, number, f"prompt {number}", 5, path), picture


def test_pictures_of_a_run_are_found_again_and_the_newest_of_each_counts(tmp_path):
    album = Album(tmp_path, "run")
    assert album.find() == {}
    for name in ("run", "run_2", None):
        for second in (4, 2):
            written(Album(tmp_path, name), Moment(6), 0, RED, second=second)
        written(Album(tmp_path, name), Moment(6, 2), 11, RED)
    (tmp_path / "sample" / "run_000006_00_now_5.png").touch()
    found = {place: path.name for place, path in album.find().items()}
    assert found == {
        ("000006", 0): "run_000006_00_20261123080504_5.png",
        ("e000002", 11): "run_e000002_11_20261123080500_5.png",
    }


def test_a_run_that_goes_on_has_the_earlier_pictures_in_its_sheet(tmp_path):
    album = Album(tmp_path, "run")
    for moment in (Moment(2), Moment(3, 1), Moment(8), Moment(9, 3)):
        written(album, moment, 0, RED)
    (tmp_path / "sample" / "run_000004_00_20261123080509_5.png").write_bytes(b"no picture")
    album.take_over(6, steps_per_epoch=3)
    assert set(album.rows) == {Moment(2), Moment(3, 1)}
    assert album.drawn == []


def test_the_sheet_has_a_row_for_each_time_and_a_column_for_each_prompt(tmp_path):
    album = Album(tmp_path, "run")
    for place in [(Moment(4), 0, RED), (Moment(4), 1, GREEN), (Moment(6, 1), 1, BLUE)]:
        album.add(*written(album, *place))
    album.write_sheet()
    with Image.open(tmp_path / "sample" / "run_sheet.jpg") as sheet:
        width, height = sheet.size
        found = [
            min((RED, GREEN, BLUE, (228, 228, 228)),
                key=lambda c: sum(abs(a - b) for a, b in zip(c, sheet.getpixel((x, y)))))
            for y in (height - 38, height - 14) for x in (width - 60, width - 22)
        ]  # fmt: skip
    assert found == [RED, GREEN, (228, 228, 228), BLUE]
    assert [each.number for each in album.drawn] == [0, 1, 1]


def test_a_sheet_of_a_long_run_stays_small_and_has_the_first_and_the_newest(tmp_path):
    album = Album(tmp_path, "run")
    picture = Image.new("RGB", (1024, 512))
    for step in range(1000):
        album.keep(Moment(step), 0, picture)
        assert len(album.rows) <= MOST_ROWS
        assert max(moment.step for moment in album.rows) == step
    steps = sorted(moment.step for moment in album.rows)
    assert len(steps) > MOST_ROWS // 2 and steps[0] == 0
    (kept,) = next(iter(album.rows.values())).values()
    assert kept.size == (SIDE, SIDE // 2)


def test_titles_fit_their_columns_whatever_is_in_them():
    sheet = laid_out({"step 1": {0: Image.new("RGB", (20, 20)), 1: Image.new("RGB", (60, 20))}},
                     {0: "a long title", 1: "白い猫\n and\x1b[0m a dog"})  # fmt: skip
    assert sheet.height == 13 + 12 + 26
    font = ImageFont.load_default(13)
    assert fitting("白い猫\n and\x1b a\x00 dog", font, 500) == "and a dog"
    assert fitting("x " * 2_000_000, font, 9000).startswith("x x")  # at once
    assert font.getlength(fitting("x" * 100, font, 60)) <= 60


def test_titles_begin_where_prompts_differ():
    prompts = {0: "masterpiece, 1girl, smile", 2: "masterpiece,1girl, sad, smile", 3: "masterpiece, 1girl, sad"}
    assert told_apart(prompts) == {0: "smile", 2: "sad, smile", 3: "sad"}
    for same in ({0: "a, b", 1: "a, b"}, {0: "a", 1: "a, b"}, {0: "a, b"}, {0: "a", 1: "b, a"}, {}):
        assert told_apart(same) == same  # one would have no tag left, or none is shared
    rows = {"step 1": dict.fromkeys(prompts, Image.new("RGB", (60, 20)))}
    bare = {0: "smile", 2: "sad, smile", 3: "sad"}
    assert laid_out(rows, prompts).tobytes() == laid_out(rows, bare).tobytes()


def test_titles_show_chinese_where_the_system_has_a_font_for_it_else_it_is_told_once(caplog):
    rows = {"step 1": {0: Image.new("RGB", (60, 20))}}
    tell_of_missing_letters.cache_clear()
    with caplog.at_level("INFO"):
        sheets = [laid_out(rows, {0: title}) for title in ("白い猫", "白い猫", "")]
    drawn = ImageChops.difference(sheets[0], sheets[2]).getbbox()
    font = wide_font(LETTERS)
    assert (drawn is not None) is (font is not None)
    assert caplog.text.count("no font with Chinese") == (font is None)
    assert font is None or fitting("白い\x1b猫😀 cat", font, 500) == "白い猫 cat"
    name, own = find_font(LETTERS, ())
    assert name == "" and fitting("白い猫 cat", own, 500) == "cat"


def test_what_an_earlier_session_drew_at_a_step_is_told_with_its_prompt(tmp_path):
    album = Album(tmp_path, "run")
    album.folder.mkdir()
    info = PngInfo()
    info.add_itxt("parameters", "a cat, (red:1.2) <lora:run-step00000008:1>\nNegative prompt: bad\nSteps: 2")
    for name in ("000008_00_20250101000000_7", "e000002_01_20250101000000_9", "000004_00_20250101000000_7"):
        Image.new("RGB", (4, 4)).save(album.folder / f"run_{name}.png", pnginfo=info)
    found = [(each.step, each.epoch, each.number, each.seed, each.prompt) for each in album.drawn_at(8, 4)]
    assert found == [(8, None, 0, 7, "a cat, (red:1.2)"), (8, 2, 1, 9, "a cat, (red:1.2)")]
