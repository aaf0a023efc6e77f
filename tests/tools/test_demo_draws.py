"""The base that draws: the six places that prompts ask for, and a seventh that a LoKr teaches it."""

import random
from functools import partial

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from library.anima_backend.modelling.dit import MIN_CONTEXT
from library.anima_models import load_anima_transformer
from tests.helpers import warm
from tests.helpers.drawing import Draughtsman, distances, nearest
from tests.helpers.paths import ROOT
from tests.helpers.running import make_trainer, rows_of
from tests.helpers.tiny import tiny_transformer
from tools import _demo_base, _demo_dit, _demo_vae, make_demo
from tools import _quickstart as quickstart
from tools._demo_pictures import KNOWN_CAPTIONS, NEW_CAPTION, NEW_PLACE
from tools._demo_variations import to_pixels, varied_picture

LARGEST = 4_000_000  # bytes in the repository


@pytest.fixture(scope="module")
def drawing_demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawing") / "demo"
    done = warm.run(["-m", "tools.make_demo", "--base", "drawing", "--output", str(folder)])
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def draughtsman(drawing_demo):
    return Draughtsman(drawing_demo / "models")


@pytest.fixture(scope="module")
def taught(drawing_demo, tmp_path_factory):
    """The trainer after the first half of quickstart's run, without its pictures."""
    folder = tmp_path_factory.mktemp("taught")
    files = []
    configs = {"config_file": quickstart.TRAIN_CONFIG, "dataset_config": quickstart.DATASET_CONFIG}
    for option, name in configs.items():
        lines = (ROOT / name).read_text("utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("sample_")]
        text = "\n".join(kept).replace("demo/", f"{drawing_demo.as_posix()}/")
        path = folder / f"{option}.toml"
        path.write_text(text.replace("configs/", f"{(ROOT / 'configs').as_posix()}/"), "utf-8")
        files += [f"--{option}", str(path)]
    half = [
        f"--{n}_steps={quickstart.STEPS // 2}"
        for n in ("max_train", "save_every_n", "evaluate_every_n")
    ]
    trainer = make_trainer([*files, *half, "--output_dir", str(folder / "out"), "--report", "none"])
    trainer.train()
    final = folder / "out" / f"{quickstart.NAME}.safetensors"
    step_file = final.with_name(f"{quickstart.NAME}-step{quickstart.STEPS // 2:08}.safetensors")
    assert "layers have learned" in quickstart.check_result(final, step_file)
    return trainer


def pictures_of(place, count=12):
    return to_pixels([varied_picture(place, random.Random(f"seen {n}")) for n in range(count)])


def test_what_is_kept_is_small_and_given_out_in_the_true_layout(drawing_demo):
    kept = [path.stat().st_size for path in _demo_base.FOLDER.iterdir()]
    assert sum(kept) <= LARGEST
    rows = make_demo.table_rows(None, make_demo.tokenizer_files(None))
    for name, shapes in _demo_base.shapes_of(rows).items():
        with safe_open(drawing_demo / "models" / name, framework="pt") as file:
            found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        assert {key: tuple(part.get_shape()) for key, part in found.items()} == shapes
        assert {part.get_dtype() for part in found.values()} == {"BF16"}


def test_a_prompt_gets_the_place_it_asks_for(drawing_demo, draughtsman):
    dit = load_anima_transformer(drawing_demo / "models" / _demo_base.DIT, dtype=torch.float32)
    seen = [pictures_of(place) for place in KNOWN_CAPTIONS]
    for number, (place, caption) in enumerate(KNOWN_CAPTIONS.items()):
        drawn = draughtsman.draw(dit, caption, seed=number, count=2)
        assert nearest(drawn, seen) == [number] * 2, place


def drawn_at(strength, taught, draughtsman, caption, **how):
    taught.network.set_multiplier(strength)
    try:
        return draughtsman.draw(taught.base, caption, **how)
    finally:
        taught.network.set_multiplier(1.0)


def test_quickstarts_lokr_teaches_the_base_a_new_place(taught, draughtsman):
    new = pictures_of(NEW_PLACE)
    before, after = (
        distances(drawn_at(s, taught, draughtsman, NEW_CAPTION, seed=1, count=4), new)
        .amin(1)
        .mean()
        for s in (0.0, 1.0)
    )
    assert after < before / 2, (before, after)


def test_what_the_base_could_draw_stays(taught, draughtsman):
    """By the forgetting meter, and by what is drawn."""
    (meter,) = [row for row in rows_of(taught) if "drift/with_subject" in row]
    assert meter["drift/without_subject"] < meter["drift/with_subject"] / 2
    seen = [pictures_of(place) for place in (*KNOWN_CAPTIONS, NEW_PLACE)]
    for number, (place, caption) in enumerate(KNOWN_CAPTIONS.items()):
        drawn = drawn_at(1.0, taught, draughtsman, caption, seed=number)
        assert nearest(drawn, seen) == [number], place


def test_learning_twice_gives_the_same_bytes(monkeypatch):
    for module, name, value in (
        (_demo_vae, "STEPS", 2), (_demo_vae, "PICTURES", 2), (_demo_dit, "STEPS", 2),
        (_demo_dit, "PICTURES", (1, 1, 1)), (_demo_dit, "CAPTIONS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    tokenizers = make_demo.tokenizer_files(None)
    rows = make_demo.table_rows(None, tokenizers)
    first, second, other = (_demo_base.learn(tokenizers, rows, seed) for seed in (0, 0, 1))
    assert first == second and first.keys() == {p.name for p in _demo_base.FOLDER.iterdir()}
    assert [
        name for name in first if name.endswith(".safetensors") and first[name] == other[name]
    ] == []


def test_attention_to_few_rows_is_that_to_all_rows_of_zeros():
    dit = tiny_transformer()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 8, generator=generator)
    rows = torch.randn(2, 7, dit.params.text_dim, generator=generator)
    sigma = torch.tensor([0.3, 0.9])
    whole = dit(x, sigma, context=F.pad(rows, (0, 0, 0, MIN_CONTEXT - 7)))
    for block in dit.blocks:
        block.cross_attn.forward = partial(_demo_dit.attend_to_few, block.cross_attn)
    torch.testing.assert_close(dit(x, sigma, context=rows), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options, named",
    [
        (["--learn", "--size", "true"], "--learn does not go with --size true"),
        (["--learn", "--output", "x", "--only", "dit"], "--only, --output"),
        (
            ["--base", "drawing", "--tokenizers", "x"],
            "--base drawing does not go with --tokenizers",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, options, named):
    done = warm.run(["-m", "tools.make_demo", *options], cwd=tmp_path)
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
