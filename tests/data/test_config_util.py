"""Dataset files: inheritance, strict types, and every problem reported at once with its line."""

import pytest

from library.config_util import load_dataset_config
from library.errors import ConfigError


@pytest.fixture
def pictures(tmp_path):
    """A folder that has a picture, as far as its listing tells."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.PNG").touch()
    return folder


def load(tmp_path, text, **flags):
    path = tmp_path / "dataset.toml"
    path.write_text(text, encoding="utf-8")
    return load_dataset_config(path, flags)


def problems_of(tmp_path, text, **flags):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **flags)
    return caught.value.problems


def minimal(pictures, dataset="", subset=""):
    return (
        f"[[datasets]]\nresolution = 512\n{dataset}\n"
        f"[[datasets.subsets]]\nimage_dir = '{pictures}'\n{subset}\n"
    )


def test_the_lower_level_wins_then_the_flag_then_the_default(tmp_path, pictures):
    group = load(
        tmp_path,
        f"""
        [general]
        keep_tokens = 1
        batch_size = 3
        [[datasets]]
        resolution = 512
        keep_tokens = 2
        [[datasets.subsets]]
        image_dir = '{pictures}'
        [[datasets.subsets]]
        image_dir = '{pictures}'
        keep_tokens = 3
        [[datasets]]
        resolution = [768, 512]
        batch_size = 4
        [[datasets.subsets]]
        image_dir = '{pictures}'
        """,
        keep_tokens=9,
        train_batch_size=9,
        dataset_repeats=5,
        shuffle_caption=True,
        caption_separator=None,
    )
    first, second = group.datasets
    assert [s.keep_tokens for d in group.datasets for s in d.subsets] == [2, 3, 1]
    assert (first.batch_size, second.batch_size) == (3, 4)
    assert (first.resolution, second.resolution) == ((512, 512), (768, 512))
    subset = second.subsets[0]
    assert (subset.num_repeats, subset.shuffle_caption, subset.caption_separator) == (5, True, ",")
    assert (first.enable_bucket, first.max_bucket_reso, subset.caption_extension) == (
        False,
        1024,
        ".txt",
    )


@pytest.mark.parametrize("flag, expected", [("768", (768, 768)), ("768,512", (768, 512))])
def test_resolution_comes_from_the_flag_when_the_file_is_silent(tmp_path, pictures, flag, expected):
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{pictures}'"
    assert load(tmp_path, text, resolution=flag).datasets[0].resolution == expected


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path, pictures):
    path = tmp_path / "bom.toml"
    path.write_text(minimal(pictures), encoding="utf-8-sig")
    assert load_dataset_config(path, {}).datasets[0].resolution == (512, 512)


def test_a_relative_folder_counts_from_the_current_directory(tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path, minimal("pictures")).datasets[0].subsets[0].image_dir == "pictures"


def test_all_problems_come_at_once_with_their_lines(tmp_path, pictures):
    found = problems_of(
        tmp_path,
        f"""[general]
shufle_caption = true
image_dir = 'x'
[[datasets]]
resolution = "512"
batch_size = 0
enable_bucket = 3
keep_tokens = 1.5
[[datasets.subsets]]
image_dir = '{pictures}'
batch_size = 2
caption_dropout_rate = 1.5
color_aug = "true"
caption_extension = "txt"
resize_interpolation = "lancos"
[[datasets.subsets]]
num_repeats = 2
[[datasets.subsets]]
image_dir = '{tmp_path}/picturs'
[[datasets]]
""",
    )
    shown = {p.where.split("  ")[0]: p.message for p in found}
    expected = {
        "line 2": "Did you mean shuffle_caption?",
        "line 3": "image_dir belongs in [[datasets.subsets]], not in [general].",
        "line 5": "expected a whole number or [width, height], got text. Remove the quotes.",
        "line 6": "expected at least 1",
        "line 7": "expected true or false, got a whole number",
        "line 8": "expected a whole number, got a number",
        "line 11": "batch_size belongs in [general] or [[datasets]]",
        "line 12": "expected at most 1",
        "line 13": "expected true or false, got text. Remove the quotes.",
        "line 14": 'Write ".txt"',
        "line 15": "Choose one of lanczos",
        "line 16": "image_dir is missing",
        "line 19": "Did you mean",
    }
    for line, text in expected.items():
        assert text in shown[line], line
    last = [p.message for p in found if p.where.startswith("line 20")]
    assert any("resolution is missing" in text for text in last)
    assert any("no [[datasets.subsets]]" in text for text in last)
    assert len(found) == len(expected) + 2


@pytest.mark.parametrize(
    "lines, message",
    [
        ("resolution = 500", "resolution 500 is not divisible by 16 (the model). Nearest: 496."),
        ("resolution = [512, 500]", "Nearest: [512, 496]"),
        ("resolution = 528\nenable_bucket = true", "not divisible by 64 (bucket_reso_steps)"),
        ("enable_bucket = true\nbucket_reso_steps = 24", "must be a multiple of 16"),
        ("enable_bucket = true\nmin_bucket_reso = 100", "min_bucket_reso 100 is not divisible"),
        ("enable_bucket = true\nmax_bucket_reso = 1000", "max_bucket_reso 1000 is not divisible"),
        ("resolution = 1280\nenable_bucket = true", "Raise max_bucket_reso to 1280"),
        ("resolution = 128\nenable_bucket = true", "Lower min_bucket_reso to 128"),
    ],
)
def test_bucket_sizes_that_cannot_work_are_problems(tmp_path, pictures, lines, message):
    resolution = "" if "resolution =" in lines else "resolution = 512\n"
    text = f"[[datasets]]\n{resolution}{lines}\n[[datasets.subsets]]\nimage_dir = '{pictures}'"
    assert any(message in p.message for p in problems_of(tmp_path, text))


def test_without_effect_nothing_is_demanded_of_bucket_sizes(tmp_path, pictures):
    for lines in ("max_bucket_reso = 300", "enable_bucket = true\nbucket_no_upscale = true"):
        load(tmp_path, minimal(pictures, dataset=f"{lines}\nmin_bucket_reso = 900"))


def test_a_flag_with_a_problem_is_named_as_a_flag(tmp_path, pictures):
    (problem,) = problems_of(tmp_path, minimal(pictures), keep_tokens=-1)
    assert problem.where == "--keep_tokens"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no [[datasets]]"),
        ("[datasets]\nresolution = 512", "Write [[datasets]]"),
        ("[[dataset]]\nresolution = 512", "Did you mean datasets?"),
        ("resolution = 512", "resolution belongs in [general] or [[datasets]], not in the top"),
        ("[general", "is not valid TOML"),
        ('[[datasets]]\nimage_dir = "C:\\pictures"', "'single quotes', or / instead"),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\new"', "read as an escape"),
    ],
)
def test_malformed_files_say_how_to_mend_them(tmp_path, text, message):
    assert any(message in p.message for p in problems_of(tmp_path, text))


def test_folders_that_cannot_be_used_are_problems(tmp_path, pictures):
    (tmp_path / "empty").mkdir()
    (tmp_path / "parent" / "5_cat").mkdir(parents=True)
    for folder, message in [
        (pictures / "a.PNG", "this is a file"),
        (tmp_path / "empty", "no pictures in this folder"),
        (tmp_path / "parent", "or name 5_cat itself"),
        (tmp_path / "nowhere" / "x", f"no such folder. Of this path there is {tmp_path}."),
    ]:
        (problem,) = problems_of(tmp_path, minimal(folder))
        assert message in problem.message


def test_a_file_that_cannot_be_read_is_a_problem_of_its_own(tmp_path):
    (tmp_path / "latin.toml").write_bytes("# café".encode("latin-1"))
    (tmp_path / "broken.json").write_text('{"datasets":\n["C:\\pictures",}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "twice.json").write_text('{"datasets": [], "datasets": []}')
    for name, message in [
        ("none.toml", "no such file"),
        ("latin.toml", "not UTF-8"),
        ("broken.json", r"not valid JSON: .*line 2.*needs / or"),
        ("list.json", "expected an object"),
        ("twice.json", "datasets stands there twice"),
        (".", "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_dataset_config(tmp_path / name, {})
