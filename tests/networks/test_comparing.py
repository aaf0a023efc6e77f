"""Adapter files compared: figures of files whose deltas are known, and identities."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.anima_workshop.base import open_base
from library.anima_workshop.layout import open_anima_adapter
from networks.workshop.comparing import compare
from networks.workshop.deltas import Kronecker, LowRank
from tests.helpers.tiny import golden
from tests.helpers.written_adapters import LINEARS, write_lokr, write_lora

BASE = golden("anima_tiny_dit.safetensors")


@pytest.fixture(scope="module")
def weights():
    return {key.removeprefix("net."): tensor for key, tensor in load_file(BASE).items()}


@pytest.fixture
def compared(tmp_path):
    """Compare files of these tensors."""

    def run(*files, base=None):
        opened = []
        for number, tensors in enumerate(files):
            path = tmp_path / f"{number}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
            opened.append(open_anima_adapter(path))
        return compare(opened, base)

    return run


def dense_vector(written):
    return torch.cat([change.flatten() for change in written.expected.values()])


def test_figures_are_those_of_the_dense_deltas(weights, compared):
    written = [
        write_lora(weights, alpha=2.0),
        write_lokr(weights, "kohya", alpha=1.0, factored=("lokr_w2",)),
        write_lokr(weights, "peft", groups=2),
    ]
    found = compared(*(each.tensors for each in written))
    vectors = [dense_vector(each) for each in written]
    total = found.total()
    assert not found.left_out and len(found.modules) == len(LINEARS)
    for i, one in enumerate(vectors):
        assert total.norm(i) == pytest.approx(float(one.norm()), rel=1e-5)
        for j, other in enumerate(vectors):
            cosine = float(one @ other / one.norm() / other.norm())
            assert total.cosine(i, j) == pytest.approx(cosine, abs=1e-6)
            assert total.distance(i, j) == pytest.approx(
                float((one - other).norm() / other.norm()), rel=1e-5, abs=1e-6
            )
            nearest = float(one @ other / (one @ one))
            assert total.nearest_strength(i, j) == pytest.approx(nearest, rel=1e-5, abs=1e-6)


def test_one_delta_in_every_spelling_is_one_delta(weights, compared):
    """Comfy, kohya and PEFT, alpha folded in, doubled, and as its dense difference."""
    torch.manual_seed(5)
    plain = write_lora(weights, alpha=2.0)
    spelled = {}
    for key, tensor in plain.tensors.items():
        path, _, factor = key.removeprefix("diffusion_model.").partition(".lora_")
        if factor:
            name = "lora_A" if factor.startswith("down") else "lora_B"
            folded = 2 / 3 * tensor if name == "lora_B" else tensor
            spelled[f"base_model.model.{path}.{name}.weight"] = folded
    kohya = {
        f"lora_unet_{name.replace('.', '_')}.{rest}": tensor
        for name, rest, tensor in (
            (path, key.removeprefix(f"diffusion_model.{path}."), plain.tensors[key])
            for path in LINEARS for key in plain.tensors if f".{path}." in key
        )
    }  # fmt: skip
    twice = {key: 2 * t if key.endswith("alpha") else t for key, t in plain.tensors.items()}
    dense = {
        f"diffusion_model.{name.removesuffix('.weight')}.diff": change.float()
        for name, change in plain.expected.items()
    }
    total = compared(plain.tensors, plain.tensors, spelled, kohya, twice, dense).total()
    for j, strength in enumerate((1, 1, 1, 1, 0.5, 1)):
        assert total.cosine(0, j) == pytest.approx(1, abs=1e-6)
        assert total.ratio(0, j) == pytest.approx(strength, rel=1e-6)
        assert total.nearest_strength(j, to=0) == pytest.approx(strength, rel=1e-6)
        assert total.distance(j, to=0) == pytest.approx(1 / strength - 1, abs=1e-6)


def test_scale_and_rank_are_told_apart_from_the_factors(weights, compared):
    lora, lokr = write_lora(weights, alpha=6.0), write_lokr(weights, alpha=7.0)
    low = write_lokr(weights, alpha=1.5, factored=("lokr_w1", "lokr_w2"))
    found = compared(lora.tensors, lokr.tensors, low.tensors)
    traits = found.modules[0].traits
    assert [(t.kind, t.rank, t.alpha, t.scale) for t in traits] == [
        ("LoRA", 3, 6.0, 2.0),
        ("LoKr", None, 7.0, 1.0),
        ("LoKr", 3, 1.5, 0.5),
    ]
    assert traits[0].dtypes == {"F32"}
    for i, scale in enumerate((2.0, 1.0, 0.5)):
        assert found.unscaled(i) == pytest.approx(found.total().norm(i) / scale)


def test_what_only_one_file_has_counts_whole(weights, compared):
    one, other = write_lora(weights), write_lora(weights)
    missing = LINEARS[0]
    kept = {key: tensor for key, tensor in other.tensors.items() if f".{missing}." not in key}
    found = compared(one.tensors, kept)
    figures = next(each for each in found.modules if each.path == missing)
    assert figures.traits[1] is None
    assert figures.products.norm(1) == 0 and figures.products.cosine(0, 1) is None
    assert figures.products.distance(1, to=0) == 1
    rest = found.total([each for each in found.modules if each.path != missing])
    squares = figures.products.inner(0, 0) + rest.inner(0, 0)
    assert found.total().norm(0) == pytest.approx(math.sqrt(squares))
    assert found.total().norm(1) == pytest.approx(rest.norm(1))


def test_what_cannot_be_measured_is_left_out_with_the_reason(weights, compared):
    path, broken, foreign = LINEARS
    dora = write_lora(weights).tensors
    out = len(weights[f"{path}.weight"])
    dora[f"diffusion_model.{path}.dora_scale"] = torch.ones(out, 1)
    nan = write_lora(weights).tensors
    nan[f"diffusion_model.{broken}.lora_up.weight"][0, 0] = torch.nan
    nan[f"diffusion_model.{foreign}.lora_up.weight"] = torch.ones(5, 3)
    alone, based = (compared(dora, nan, base=base) for base in (None, open_base(BASE).of_module))
    assert not alone.modules
    assert alone.left_out.keys() == set(LINEARS)
    assert "base model" in alone.left_out[path][0] and "NaN" in alone.left_out[broken][1]
    assert "shape" in alone.left_out[foreign][1] and alone.base_norm() is None
    assert based.left_out.keys() == {broken, foreign}
    (figures,) = based.modules
    assert figures.traits[0].kind == "LoRA with DoRA"
    assert based.base_norm() == pytest.approx(float(weights[f"{path}.weight"].norm()))


def test_a_base_that_is_broken_is_no_measure(weights, compared):
    lora = write_lora(weights).tensors

    def base(path):
        return {"weight": weights[f"{path}.weight"] * (torch.nan if path == LINEARS[0] else 1)}

    found = compared(lora, lora, base=base)
    assert set(found.left_out) == {LINEARS[0]} and "NaN" in found.left_out[LINEARS[0]][1]
    norms = [float(weights[f"{path}.weight"].norm()) for path in LINEARS[1:]]
    assert found.base_norm() == pytest.approx(math.hypot(*norms))


def test_factored_deltas_are_never_built(weights, compared, monkeypatch):
    def refuse(_):
        raise AssertionError("a dense matrix was built")

    files = write_lora(weights), write_lokr(weights, groups=2), write_lokr(weights, groups=4)
    for kind in (Kronecker, LowRank):
        monkeypatch.setattr(kind, "dense", refuse)
    assert len(compared(*(each.tensors for each in files)).modules) == len(LINEARS)
