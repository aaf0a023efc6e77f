"""Every key of the dataset file by its table; folders without a file; JSON; conflicts."""

import json
from dataclasses import fields

import pytest

from library.config_util import load_dataset_config, load_folders_config
from library.data.dataset_config import DatasetConfig, SubsetConfig
from library.errors import ConfigError
from library.settings.dataset_keys import KEYS, LEVELS
from tests.helpers.dataset_files import draw, folder_of

WRONG = {
    "bool": 3,
    "int": 1.5,
    "counts": 1.5,
    "float": "0.5",
    "text": 7,
    "path": 7,
    "size": "512",
    "sizes": 512,
    "range": [1.0],
    "shares": 0.5,
    "table": "a",
}
FITTING = {
    "bool": True,
    "int": 64,
    "counts": 64,
    "float": 0.5,
    "text": "|",
    "path": "|",
    "size": 128,
    "sizes": [64, 128],
    "range": [1.0, 2.0],
    "shares": {"tags": 1, "sentences": 0.5},
    "table": {"a": 1},
}
SPECIAL = {
    "resize_interpolation": "area", "caption_lines": "join", "caption_extension": ".cap",
    "dataset_class": "builtins.list",  # nothing is asked of it here
}  # fmt: skip
FOLDERS = ("image_dir", "mask_path", "conditioning_data_dir")


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "pictures", [(64, 64)])


def load(tmp_path, document, **flags):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load_dataset_config(path, flags)


def problems_of(tmp_path, document, **flags):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, document, **flags)
    return caught.value.problems


def document_with(folder, level, **values):
    """A complete file with these keys at one level: general, datasets or subsets."""
    subset = {"image_dir": str(folder)}
    dataset = {"subsets": [subset]}
    general = {"resolution": 64, "min_bucket_reso": 16, "bucket_reso_steps": 16}
    {"general": general, "datasets": dataset, "subsets": subset}[level].update(values)
    return {"general": general, "datasets": [dataset]}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_key_has_its_levels_and_its_type(tmp_path, folder, name, level):
    (tmp_path / "meta.json").write_text('{"0": {"caption": "a"}}')
    fitting = SPECIAL.get(name, FITTING[KEYS[name].kind])
    fitting = str(folder) if name in FOLDERS else fitting
    fitting = str(tmp_path / "meta.json") if name == "metadata_file" else fitting
    if level[0] not in KEYS[name].levels:
        (problem,) = problems_of(tmp_path, document_with(folder, level, **{name: fitting}))
        assert f"{name} belongs in" in problem.message
        return
    wrong = problems_of(tmp_path, document_with(folder, level, **{name: WRONG[KEYS[name].kind]}))
    assert any("expected" in each.message and name in each.where for each in wrong)
    document = document_with(folder, level, **{name: fitting})
    if name == "is_reg":  # not the only subset
        document["datasets"][0]["subsets"].append({"image_dir": str(folder)})
    if name == "resolutions" and level == "general":
        del document["general"]["resolution"]
    if name == "dataset_class":  # in place of a folder
        del document["datasets"][0]["subsets"][0]["image_dir"]
    group = load(tmp_path, document, masked_loss=True)
    holder = group.datasets[0] if name in DatasetConfig.__dataclass_fields__ else None
    holder = group.datasets[0].subsets[0] if name in SubsetConfig.__dataclass_fields__ else holder
    if holder is None:
        assert name == "resolutions"
    elif name == "custom_attributes":
        assert json.loads(holder.custom_attributes) == fitting
    else:
        value = getattr(holder, name)
        pair = (fitting, fitting) if KEYS[name].kind == "size" else fitting
        pair = (1.0, 0.5, 0.0, 0.0) if KEYS[name].kind == "shares" else pair
        assert value == (tuple(pair) if isinstance(pair, (list, tuple)) else pair)


@pytest.mark.parametrize("name", [name for name in KEYS if name != "resolution"])
def test_the_table_and_the_configurations_have_the_same_defaults(name):
    known = {f.name: f.default for cls in (DatasetConfig, SubsetConfig) for f in fields(cls)}
    if name in known:
        assert known[name] == KEYS[name].default


def test_json_and_toml_say_the_same(tmp_path, folder):
    toml = tmp_path / "dataset.toml"
    toml.write_text(
        f"[general]\nshuffle_caption = true\n[[datasets]]\nresolution = [64, 128]\n"
        f"enable_bucket = true\nbucket_reso_steps = 64\nmin_bucket_reso = 64\n"
        f"[[datasets.subsets]]\nimage_dir = '{folder}'\nkeep_tokens = 2\n"
    )
    dataset = {"resolution": [64, 128], "enable_bucket": True, "bucket_reso_steps": 64}
    subset = {"image_dir": str(folder), "keep_tokens": 2}
    document = {"general": {"shuffle_caption": True}}
    document["datasets"] = [{**dataset, "min_bucket_reso": 64, "subsets": [subset]}]
    assert load(tmp_path, document).datasets == load_dataset_config(toml, {}).datasets


CONFLICTS = [
    ({"color_aug": True}, {"cache_latents": True}, "encodes them once"),
    ({"random_crop": True}, {"cache_latents_to_disk": True}, "--cache_latents_to_disk"),
    ({"face_crop_aug_range": [1, 2]}, {"cache_latents": True}, "face_crop_aug_range changes"),
    ({"min_ar": 2.0, "max_ar": 0.5}, {}, "min_ar is above max_ar"),
    ({"is_reg": True}, {}, "nothing to train"),
    ({"metadata_file": "nowhere.json"}, {}, "no such file"),
    ({"mask_path": "/nowhere/masks"}, {}, "no such folder"),
    ({"mask_path": "{folder}", "alpha_mask": True}, {}, "a picture has one mask"),
    ({"face_crop_aug_range": [2, 1]}, {}, "0 < min <= max"),
    ({"validation_split": 0.1}, {}, "belongs in"),
]


@pytest.mark.parametrize("values, flags, message", CONFLICTS)
def test_what_contradicts_itself_is_told(tmp_path, folder, values, flags, message):
    values = {k: str(folder) if v == "{folder}" else v for k, v in values.items()}
    (problem,) = problems_of(tmp_path, document_with(folder, "subsets", **values), **flags)
    assert message in problem.message


def test_augmentation_from_a_flag_is_in_conflict_too(tmp_path, folder):
    document = document_with(folder, "subsets")
    (problem,) = problems_of(tmp_path, document, random_crop=True, cache_latents=True)
    assert problem.where == "--random_crop"
    load(tmp_path, document, random_crop=True, cache_latents=False)


def test_one_list_of_resolutions_makes_a_dataset_of_each(tmp_path, folder):
    sizes = [64, [128, 64], 64]
    document = document_with(folder, "datasets", resolutions=sizes)
    group = load(tmp_path, document)
    assert [d.resolution for d in group.datasets] == [(64, 64), (128, 64)]  # none twice
    assert {d.family for d in group.datasets} == {0}
    document["datasets"][0]["resolution"] = 64
    (problem,) = problems_of(tmp_path, document)
    assert "resolution and resolutions are both set" in problem.message
    flagged = load(tmp_path, document_with(folder, "datasets", resolutions=[128]), resolution="64")
    assert [d.resolution for d in flagged.datasets] == [(128, 128)]


def test_each_of_the_resolutions_has_to_fit(tmp_path, folder):
    document = document_with(folder, "datasets", resolutions=[64, 100, 4096], enable_bucket=True)
    found = "".join(problem.message for problem in problems_of(tmp_path, document))
    assert "100 is not divisible" in found and "above max_bucket_reso" in found


def test_masks_need_the_flag_only_when_sd_scripts_asks_for_it(tmp_path, folder):
    conditioned = document_with(folder, "subsets", conditioning_data_dir=str(folder))
    group = load(tmp_path, conditioned)
    assert not group.datasets[0].subsets[0].is_masked
    assert load(tmp_path, conditioned, masked_loss=True).datasets[0].subsets[0].is_masked
    masked = document_with(folder, "subsets", mask_path=str(folder))
    assert load(tmp_path, masked, alpha_mask=True).datasets[0].subsets[0].alpha_mask is False


def test_a_trigger_word_reaches_no_regularisation_pictures(tmp_path, folder):
    document = document_with(folder, "general", trigger_word="sks")
    document["datasets"][0]["subsets"].append({"image_dir": str(folder), "is_reg": True})
    own = {"image_dir": str(folder), "is_reg": True, "trigger_word": "cat"}
    document["datasets"][0]["subsets"].append(own)
    subsets = load(tmp_path, document).datasets[0].subsets
    assert [subset.trigger_word for subset in subsets] == ["sks", "", "cat"]


def test_folders_named_by_flags_become_subsets(tmp_path):
    for name in ("3_a_cat", "1_dog", "notes", "x_cow"):
        draw(tmp_path / "train" / name / "0.png")
    draw(tmp_path / "reg" / "2_animal" / "0.png")
    flags = {"train_data_dir": str(tmp_path / "train"), "reg_data_dir": str(tmp_path / "reg")}
    group = load_folders_config({**flags, "resolution": "64", "shuffle_caption": True})
    (dataset,) = group.datasets
    found = [(s.num_repeats, s.class_tokens, s.is_reg) for s in dataset.subsets]
    assert found == [(1, "dog", False), (3, "a_cat", False), (2, "animal", True)]
    assert all(subset.shuffle_caption for subset in dataset.subsets)
    assert sum("does not start with repeats_" in note for note in group.notes) == 2


def test_a_json_named_by_a_flag_has_its_pictures_in_train_data_dir(tmp_path, folder):
    path = tmp_path / "meta.json"
    path.write_text("{}")
    flags = {"in_json": str(path), "train_data_dir": str(folder), "resolution": "64"}
    (subset,) = load_folders_config({**flags, "dataset_repeats": 4}).datasets[0].subsets
    assert (subset.metadata_file, subset.image_dir) == (str(path), str(folder))
    assert subset.num_repeats == 4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "no such folder"),
        (lambda root: (root / "train").mkdir(), "no folder called <repeats>_<class>"),
        (lambda root: draw(root / "train" / "a.png"), "move the pictures there"),
        (lambda root: (root / "train" / "2_cat").mkdir(parents=True), "no pictures in this folder"),
    ],
)
def test_folders_named_by_flags_that_cannot_be_used(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_folders_config({"train_data_dir": str(tmp_path / "train"), "resolution": "64"})
    assert "--train_data_dir" in caught.value.problems[0].where


def test_no_resolution_is_a_problem_of_the_command_line(tmp_path):
    draw(tmp_path / "train" / "2_cat" / "0.png")
    with pytest.raises(ConfigError, match="resolution is missing"):
        load_folders_config({"train_data_dir": str(tmp_path / "train")})
