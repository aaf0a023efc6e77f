"""Files of sentences beside those of tags: which of them a sample is trained with, and what is told."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.captions import CaptionRecipe, process_caption
from library.data.data_types import SampleRequest
from library.data.datasets import TrainDataset
from library.errors import ConfigError, DatasetError
from library.saving.metadata_datasets import describe_datasets, tag_frequency
from library.settings.dataset_keys import CAPTION_FORMS
from tests.helpers.dataset_files import catalogue_from, catalogue_of, draw, folder_of

TAGS, PROSE = "1girl, aoi, smile", "Aoi, a girl, smiles. It rains, and snows."
MIXED = "caption_shares = {tags = 2, sentences = 1, tags_sentences = 1, sentences_tags = 1}"


def only(form):
    return {"caption_shares": tuple(float(each == form) for each in CAPTION_FORMS)}


def made(recipe, tags=TAGS, sentences=PROSE, seed=0):
    return process_caption(tags, CaptionRecipe(**recipe), random.Random(seed), sentences=sentences)


TABLE = [
    # form, other settings, expected
    ("tags", {}, TAGS),
    ("sentences", {}, PROSE),
    ("tags_sentences", {}, f"{TAGS}, {PROSE}"),
    ("sentences_tags", {}, f"{PROSE} {TAGS}"),
    ("tags_sentences", {"caption_separator": ". "}, f"{TAGS}. {PROSE}"),
    ("sentences", {"shuffle_caption": True, "caption_tag_dropout_rate": 1.0}, PROSE),
    ("tags_sentences", {"caption_tag_dropout_rate": 1.0}, PROSE),
    ("sentences_tags", {"caption_tag_dropout_rate": 1.0, "keep_tokens": 2}, f"{PROSE} 1girl, aoi"),
    ("sentences", {"token_warmup_step": 9.0, "token_warmup_min": 0}, PROSE),
    ("sentences", {"caption_prefix": "pre", "caption_suffix": "post"}, f"pre {PROSE} post"),
    ("tags_sentences", {"caption_prefix": "pre,", "caption_suffix": "post"}, f"pre, {TAGS}, {PROSE} post"),
    ("sentences_tags", {"caption_prefix": "pre", "caption_suffix": ", post"}, f"pre {PROSE} {TAGS} , post"),
    ("sentences", {"caption_dropout_rate": 1.0}, ""),
    ("sentences", {"trigger_word": "sks"}, f"sks, {PROSE}"),
    ("sentences", {"trigger_word": "Aoi"}, PROSE),
    ("sentences", {"trigger_word": "rain"}, f"rain, {PROSE}"),
    ("tags_sentences", {"trigger_word": "smile"}, f"{TAGS}, {PROSE}"),
    ("sentences", {"secondary_separator": ". "}, PROSE),
    ("sentences", {"class_tokens": "girl"}, PROSE),
]  # fmt: skip


@pytest.mark.parametrize("form, other, expected", TABLE)
def test_captions_worked_out_by_hand(form, other, expected):
    assert made({**only(form), **other}) == expected


@pytest.mark.parametrize(
    "tags, sentences, expected",
    [
        (None, PROSE, PROSE), ("", PROSE, PROSE), (TAGS, None, TAGS), (TAGS, " \n", TAGS),
        (None, None, "girl"), ("", "", ""),
    ],
)  # fmt: skip
def test_what_a_picture_lacks_is_made_up_for_by_what_it_has(tags, sentences, expected):
    for form in CAPTION_FORMS:
        assert made({**only(form), "class_tokens": "girl"}, tags, sentences) == expected


@pytest.mark.parametrize(
    "lines, others, expected",
    [
        (None, {}, {"A, b. C d."}),
        ("join", {}, {"A, b. C d."}),
        ("first", {}, {"A, b."}),
        ("each", {}, {"A, b.", "C d."}),
        (None, {"enable_wildcard": True}, {"A, b.", "C d."}),
    ],
)
def test_lines_of_sentences_are_one_text_unless_something_else_is_said(lines, others, expected):
    recipe = {**only("sentences"), "caption_lines": lines, **others}
    assert {made(recipe, sentences="A, b.\n\nC d.\n", seed=n) for n in range(9)} == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(1, 1, 1, 1), (0, 3, 1, 0), (0, 0, 0.1, 7)]))
def test_sentences_stay_whole_and_tags_stay_before_or_behind_them(seed, shares):
    recipe = CaptionRecipe(
        caption_shares=shares, shuffle_caption=True, caption_tag_dropout_rate=0.3,
        caption_prefix="pre", caption_separator=",",
    )  # fmt: skip
    text = process_caption(TAGS, recipe, random.Random(seed), sentences=PROSE)
    before, said, behind = text.partition(PROSE)
    tags = {tag.strip() for tag in f"{before},{behind}".split(",") if tag.strip()}
    assert tags <= {"pre", "pre 1girl", "1girl", "aoi", "smile"}
    assert not (before.strip(" ,pre") and behind), "tags are on one side"
    assert said or shares[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_one_form_draws_nothing_so_that_tags_alone_are_as_without_sentences(seed):
    recipe = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.3, "caption_dropout_rate": 0.1}
    plain = made(recipe, sentences=None, seed=seed)
    assert made({**recipe, **only("tags")}, seed=seed) == plain == made(recipe, seed=seed)


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Pictures 0 to 2 with tags; 0 and 1 with sentences."""
    folder = folder_of(tmp_path / "set", [(64, 64)] * 3)
    write(folder, **{"0_nl": "Zero, a picture.", "1_nl": "One, a picture."})
    return folder


def test_each_form_has_its_share_and_depends_on_the_place_in_the_run_alone(folder):
    catalogue = catalogue_of(folder, subset=MIXED)
    dataset = TrainDataset(catalogue, seed=4)
    counts, requests = Counter(), [SampleRequest(0, epoch, 0) for epoch in range(400)]
    for text in map(dataset.caption_of, requests):
        at = text.find("Zero")
        counts[
            "tags" if at < 0 else "behind" if at else "sentences" if "tag0" not in text else "first"
        ] += 1
    expected = {"tags": 160, "sentences": 80, "behind": 80, "first": 80}
    assert {k: pytest.approx(v, abs=30) for k, v in expected.items()} == counts
    again = TrainDataset(catalogue_of(folder, subset=MIXED), seed=4)
    assert again.caption_of(requests[317]) == dataset.caption_of(requests[317])


def test_sentences_are_read_and_told_where_they_are_missing(folder):
    catalogue = catalogue_of(folder, subset=MIXED)
    assert [image.sentences for image in catalogue.images] == [
        "Zero, a picture.",
        "One, a picture.",
        None,
    ]
    (note,) = catalogue.notes
    assert note == "1 picture without sentences, trained with their tags alone: 2.png"
    (folder / "0.txt").unlink()
    notes = catalogue_of(folder, subset=MIXED).notes
    assert "1 picture without tags, trained with their sentences alone: 0.png" in notes
    assert not any("without a caption file" in note for note in notes)


def test_without_shares_nothing_changes_and_one_line_tells_of_the_files(folder):
    catalogue = catalogue_of(folder)
    assert [image.sentences for image in catalogue.images] == [None] * 3
    (note,) = catalogue.notes
    assert "2 files of sentences are not used: 0_nl.txt, 1_nl.txt" in note
    assert not catalogue_of(folder, subset="caption_shares = {tags = 1}").notes
    before = catalogue.fingerprint()
    (folder / "0_nl.txt").unlink()
    assert catalogue_of(folder).fingerprint() == before


def test_changed_sentences_are_another_dataset(folder):
    before = catalogue_of(folder, subset=MIXED).fingerprint()
    write(folder, **{"0_nl": "Zero changed."})
    assert catalogue_of(folder, subset=MIXED).fingerprint() != before


def test_all_that_is_wrong_with_the_files_is_told_at_once(folder):
    draw(folder / "2_nl.png", seed=7)
    write(folder, **{"2_nl": "Whose?", "9_nl": "Of nothing."})
    (folder / "1_nl.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError) as caught:
        catalogue_of(folder, subset=MIXED)
    told = str(caught.value)
    assert len(caught.value.problems) == 3
    assert (
        "9_nl.txt: sentences without a picture" in told
        and "1_nl.txt: the caption is not UTF-8" in told
    )
    assert "2_nl.txt: sentences of 2.png or caption of 2_nl.png?" in told


def test_shares_of_sentences_need_sentences_somewhere(folder):
    for suffix, message in (("", "_said"), ("sentence_suffix = '_other'\n", "_other")):
        subset = suffix or "sentence_suffix = '_said'\n"
        with pytest.raises(
            DatasetError, match=f"no picture has any. Write those of 0.png into 0{message}.txt"
        ):
            catalogue_of(folder, subset=subset + MIXED)
    other = folder_of(folder.parent / "other", [(64, 64)])
    text = f"[general]\nresolution = 64\n{MIXED}\n[[datasets]]\n"
    text += "".join(f"[[datasets.subsets]]\nimage_dir = '{each}'\n" for each in (folder, other))
    (note,) = catalogue_from(folder.parent, text).notes  # one folder has them: the other is told of
    assert note.startswith("2 pictures without sentences") and "0.png" in note


def test_settings_of_tags_are_told_where_sentences_alone_are_trained(folder):
    alone = "caption_shares = {sentences = 1}\nshuffle_caption = true\nkeep_tokens = 1\n"
    (note,) = catalogue_of(folder, subset=alone).notes  # of picture 2 tags are shuffled
    assert "without sentences" in note
    write(folder, **{"2_nl": "Two."})
    (note,) = catalogue_of(folder, subset=alone).notes
    assert (
        "shuffle_caption, keep_tokens change nothing: caption_shares trains sentences alone" in note
    )


def test_a_json_has_sentences_as_captions_and_tags_as_tags(folder):
    entries = folder.parent / "meta.json"
    entries.write_text(json.dumps({"0": {"caption": "A, b.", "tags": "c, d"}, "1": {"tags": "e"}}))
    source = f"metadata_file = '{entries}'\n"
    images = catalogue_of(folder, subset=source + MIXED).images
    assert [(image.caption, image.sentences) for image in images] == [
        ("c, d", "A, b."),
        ("e", None),
    ]
    entries.write_text(json.dumps({"0": {"tags": "c, d"}}))
    with pytest.raises(DatasetError, match='Write them as "caption" of each entry'):
        catalogue_of(folder, subset=source + MIXED)


@pytest.mark.parametrize(
    "line, message",
    [
        ("caption_shares = {tag = 1}", "'tag' is no form of a caption. There are tags, sentences"),
        ("caption_shares = {tags = -1}", "tags = -1 is out of range"),
        ("caption_shares = {tags = nan}", "out of range"),
        ("caption_shares = {tags = '1'}", "expected shares such as"),
        ("caption_shares = {tags = 0}", "every share is 0"),
        ("caption_shares = {}", "expected shares such as"),
        ("caption_shares = [1, 1, 1, 1]", "expected shares such as"),
        ("sentence_suffix = ''", "expected what stands between name and extension"),
        ("sentence_suffix = 'a/b'", "expected what stands between name and extension"),
    ],
)
def test_shares_and_suffixes_that_mean_nothing_are_refused(folder, line, message):
    with pytest.raises(ConfigError, match=message) as caught:
        catalogue_of(folder, subset=line)
    assert "line 10" in str(caught.value)


def test_validation_uses_the_form_that_is_trained_most(folder):
    for shares, expected in (
        ("{sentences = 2, tags = 1}", "Zero, a picture."),
        ("{sentences = 1, tags = 1}", "tag0, a, b, c"),
    ):
        catalogue = catalogue_of(folder, subset=f"caption_shares = {shares}")
        plain = TrainDataset(catalogue.plain(catalogue.images[:1]), seed=0)
        assert {plain.caption_of(SampleRequest(0, n, 0)) for n in range(5)} == {expected}


def test_metadata_has_the_shares_and_counts_no_sentences_as_tags(folder):
    (folder / "1.txt").unlink()
    catalogue = catalogue_of(folder, subset=MIXED + "\nclass_tokens = 'thing'")
    (subset,) = describe_datasets(catalogue)[0]["subsets"]
    assert subset["caption_shares"] == dict(zip(CAPTION_FORMS, (2, 1, 1, 1)))
    assert subset["sentence_suffix"] == "_nl"
    assert set(tag_frequency(catalogue)["set"]) == {"tag0", "tag2", "a", "b", "c"}
