"""What is found in pictures and captions, where, and that nothing is found where nothing is wrong."""

import shutil

import pytest

from library.anima_doctor.looking_over import MOST_PICTURES, look_over, overview
from library.anima_doctor.tag_habits import (
    has_odd_parentheses,
    has_underscores,
    has_weights,
    is_weighed_by_chance,
    is_wrong_artist,
    misplaced,
)
from library.linting import duplicates
from library.settings.flags.data import DataOptions
from library.settings.flags.metadata import MetadataOptions
from tests.helpers.dataset_files import catalogue_from, catalogue_of, draw


class Options:
    """The groups of options that are asked."""

    def __init__(self, phrase=None, weighs=False):
        self.metadata = MetadataOptions(metadata_trigger_phrase=phrase)
        self.data = DataOptions(weighted_captions=weighs)


def catalogue_with(folder, captions, subset=""):
    """Pictures a, b, ... of noise with these captions; None: no file."""
    for number, (letter, caption) in enumerate(zip("abcdefgh", captions)):
        draw(folder / f"{letter}.png", seed=number)
        if caption is not None:
            (folder / f"{letter}.txt").write_text(caption, encoding="utf-8")
    return catalogue_of(folder, subset=subset)


def told(catalogue, **options):
    """Kind -> its places as (files, words)."""
    found = look_over(catalogue, Options(**options))
    assert len({finding.kind.name for finding in found}) == len(found)
    return {f.kind.name: [(place.files, place.words) for place in f.places] for f in found}


GOOD = ["aoi, 1girl, smile, rain", "aoi, 1girl, rain, hat", "aoi, 1girl, hat, smile"]


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    catalogue = catalogue_with(tmp_path / "set", GOOD)
    assert told(catalogue) == {}
    assert list(overview(catalogue, Options())) == ["nothing to mend was found"]


@pytest.mark.parametrize(
    "captions, subset, options, expected",
    [
        ([*GOOD, None, " "], "", {}, {"empty": [(("d.txt",), ""), (("e.txt",), "")]}),
        ([*GOOD, None], "trigger_word = 'aoi'", {}, {}),
        (["my_oc, 1girl, blue_hair"] * 3, "", {}, {"underscores": [((f"{each}.txt",), "blue_hair") for each in "abc"]}),
        ([*GOOD, None], "class_tokens = 'aoi, 1girl'", {}, {}),
        ([*GOOD, "aoi, Rain, rain, hat"], "", {}, {"repeated_tag": [(("d.txt",), "rain")], "tag_of_one_picture": [(("d.txt",), "Rain")]}),
        ([*GOOD, "aoi, smiel, hat, {red|blue}"], "", {}, {"tag_of_one_picture": [(("d.txt",), "smiel")]}),
        ([*GOOD, "1girl, rain, hat"], "", {}, {"trigger_not_named": [(("d.txt",), "aoi")]}),
        ([*GOOD, "1girl, rain, hat"], "trigger_word = 'sks'", {}, {}),
        ([*GOOD, "Here aoi stands in the pouring rain, and it is cold."], "", {}, {}),
        ([*GOOD, "A girl stands in the pouring rain, and it is cold."], "", {}, {"trigger_not_named": [(("d.txt",), "aoi")]}),
        (GOOD, "", {"phrase": "aoi, rain"}, {"trigger_not_named": [(("c.txt",), "aoi, rain")]}),
        (GOOD, "", {"phrase": "aoi, 1girl"}, {}),
        (["smile, rain", "rain, hat", "hat, smile"], "", {}, {"no_trigger": [((), "")]}),
        (["smile, rain", "rain, hat", "hat, smile"], "caption_prefix = 'by me,'", {}, {}),
        ([*GOOD, "aoi|||rain|||hat"], "keep_tokens_separator = '|||'", {}, {}),
        ([*GOOD, "aoi, 1girl, @nobody, best quality"], "", {}, {"tag_of_one_picture": [(("d.txt",), "@nobody")], "tag_order": [(("d.txt",), "best quality after @nobody")]}),
        ([*GOOD, "aoi, rain, best quality, 1girl"], "shuffle_caption = true", {}, {}),
        (["aoi_v1, hat, rain_cloud", "aoi_v1, hat, rain_cloud", "aoi_v1, hat"], "", {}, {"underscores": [(("a.txt",), "rain_cloud"), (("b.txt",), "rain_cloud")]}),
        ([f"{each}, saber (fate)" for each in GOOD], "", {}, {}),
        ([f"{each}, saber (fate)" for each in GOOD[:1]], "", {"weighs": True}, {"weighed_parentheses": [(("a.txt",), "saber (fate)")]}),
        (["aoi, (hat:1.2)"], "", {}, {"weights": [(("a.txt",), "(hat:1.2)")]}),
        (["aoi, (hat:1.2)"], "", {"weighs": True}, {}),
    ],
)  # fmt: skip
def test_what_is_found_and_where(tmp_path, captions, subset, options, expected):
    assert told(catalogue_with(tmp_path / "set", captions, subset), **options) == expected


def test_regularisation_teaches_no_trigger(tmp_path):
    folders = tmp_path / "set", tmp_path / "reg"
    for folder, captions in zip(folders, (GOOD, ["cat", "dog, dog", "cow"])):
        catalogue_with(folder, captions)
    text = "[[datasets]]\nresolution = 64\n"
    for folder in folders:
        text += f"[[datasets.subsets]]\nimage_dir = '{folder}'\n"
    catalogue = catalogue_from(tmp_path, f"{text}is_reg = true\n")
    same = [((f"set/{letter}.png", f"reg/{letter}.png"), "") for letter in "abc"]
    repeated = [(("reg/b.txt",), "dog")]
    assert told(catalogue) == {"same_picture": same, "repeated_tag": repeated}


def test_sentences_name_the_trigger_too(tmp_path):
    folder = tmp_path / "set"
    catalogue = catalogue_with(folder, ["aoi, rain", "aoi, rain", "aoi, rain"])
    (folder / "d_nl.txt").write_text("In the rain aoi waits.", encoding="utf-8")
    draw(folder / "d.png", seed=9)
    shares = "caption_shares = {sentences = 1}"
    assert told(catalogue_of(folder, subset=shares)) == {}
    draw(folder / "e.png", seed=10)
    (folder / "e_nl.txt").write_text("Nobody is here.", encoding="utf-8")
    assert told(catalogue_of(folder, subset=shares)) == {"trigger_not_named": [(("e_nl.txt",), "aoi")]}
    assert "empty" in told(catalogue_of(folder)), "without shares the sentences are not read"
    assert len(catalogue.images) == 3


def test_copies_are_found_by_their_bytes_and_by_their_looks(demo, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for path in sorted((demo / "pictures").glob("0[1-3]*")):
        shutil.copy(path, folder)
    first = next(folder.glob("01*.png"))
    shutil.copy(first, folder / "x.png")
    from PIL import Image

    with Image.open(first) as image:
        image.convert("RGB").save(folder / "y.jpg", quality=60)
    catalogue = catalogue_of(folder, subset="trigger_word = 'aoi'\nclass_tokens = 'aoi'")
    found = {f.kind.name: f for f in look_over(catalogue, Options())}
    assert [place.files for place in found["same_picture"].places] == [(first.name, "x.png")]
    assert [place.files for place in found["alike"].places] == [(first.name, "y.jpg")]
    assert found["alike"].places[0].pictures == (first, folder / "y.jpg")
    images = {image.path: image.path.name for image in catalogue.images}
    (_, split) = duplicates.find_duplicates(images, {folder / "y.jpg"})
    assert split.kind.name == "alike_held_out"
    assert [f.kind.name for f in duplicates.find_duplicates(images, (), most=3)] == ["same_picture"]
    monkeypatch.setattr("library.anima_doctor.looking_over.MOST_PICTURES", 3)
    lines = list(overview(catalogue, Options()))
    assert any("more than 3 pictures" in line for line in lines) and MOST_PICTURES == 1000


@pytest.mark.parametrize(
    "tag, is_wrong",
    [
        ("@nnn yryr", False), ("@_@", False), ("artist:nnn", True), ("Artist: nnn", True), ("@ nnn", True),
        ("@", True), ("hat @nnn", True), ("wlop", True), ("hat", False), ("a@b", False),
    ],
)  # fmt: skip
def test_artists_have_an_at_before_their_name(tag, is_wrong):
    assert is_wrong_artist(tag, {"wlop"}) is is_wrong


@pytest.mark.parametrize(
    "tag, odd, weighs, chance",
    [
        ("saber (fate)", False, False, True), (r"saber \(fate\)", False, False, False),
        (r"saber \\(fate\\)", True, False, False), ("saber (fate", True, False, True),
        ("saber（fate）", True, False, False), ("(smile)", False, True, False),
        ("((smile))", False, True, False), ("a (smile:1.2) b", False, True, False),
        (r"\(smile:1.2\)", False, False, False), (":)", False, False, False), ("(o)_(o)", False, False, False),
    ],
)  # fmt: skip
def test_parentheses_as_prompts_read_them(tag, odd, weighs, chance):
    found = has_odd_parentheses(tag), has_weights(tag), is_weighed_by_chance(tag)
    assert found == (odd, weighs, chance)


@pytest.mark.parametrize(
    "tag, expected",
    [
        ("blue_hair", True), ("score_7", False), ("^_^", False), ("@_@", False), ("o_o", False),
        ("saber_(fate)", True), (r"saber_\(fate\)", True), ("year 2024", False), (">_<", False), ("目_目", False),
    ],
)  # fmt: skip
def test_underscores_belong_to_scores_and_faces(tag, expected):
    assert has_underscores(tag) is expected


@pytest.mark.parametrize(
    "line, expected",
    [
        (
            "masterpiece, best quality, year 2024, score_7, safe, 1girl, saber, fate, @nnn, smile",
            [],
        ),
        ("saber, 1girl, @nnn, smile", []),
        ("1girl, saber, masterpiece", ["masterpiece after 1girl"]),
        ("@nnn, 2girls, highres", ["2girls after @nnn", "highres after @nnn"]),
        ("smile, masterpiece, no humans, newest", ["newest after no humans"]),
    ],
)
def test_the_order_is_that_of_the_models_card(line, expected):
    assert list(misplaced(line.split(", "))) == expected
