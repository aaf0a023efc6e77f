"""Against the lycoris-lora package: LoKr's factorization and shapes, deltas of the same factors, scales."""

import itertools

import pytest
import torch
from torch import nn

from networks.kinds.lokr import LoKr, factorize, lokr_shape
from networks.kinds.lora import LoRA
from networks.kinds.stored import training_alpha

REASON = "lycoris-lora is a test dependency: pip install -r tests/requirements.txt"
lokr_module = pytest.importorskip("lycoris.modules.lokr", reason=REASON)
factorization = lokr_module.factorization


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 7, 8, 16, 100])
def test_factorization_is_that_of_lycoris(factor):
    dimensions = [*range(1, 130), 250, 256, 360, 768, 1024, 2048, 3072, 4096, 6144, 8192, 10007]
    for dimension in dimensions:
        assert factorize(dimension, factor) == factorization(dimension, factor), dimension


FORMS = {
    "full": {"rank": 4, "full_matrix": True},
    "low rank": {"rank": 2},
    "decompose both": {"rank": 2, "decompose_both": True},
    "decompose both, rank over w1's": {"rank": 4, "decompose_both": True},
    "sentinel": {"rank": 100_000, "full_matrix": True},
    "rank over w2's": {"rank": 64},
}
LAYERS = [(48, 32), (32, 48), (36, 25)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("out_features", "in_features"), LAYERS)
@pytest.mark.parametrize("factor", [8, -1, 1])
@pytest.mark.parametrize("alpha", [0, 1, 2, 100_000])
def test_delta_equals_that_of_lycoris_for_the_same_factors(
    form, out_features, in_features, factor, alpha
):
    options = dict(FORMS[form])
    rank = options.pop("rank")
    theirs = lokr_module.LokrModule(
        "x",
        nn.Linear(in_features, out_features, bias=False),
        1.0,
        rank,
        alpha,
        factor=factor,
        **options,
    )
    shape = lokr_shape((out_features, in_features), rank, factor, **options)
    mine = LoKr(shape, training_alpha(alpha, rank))
    factors = {name: p for name, p in theirs.named_parameters() if name.startswith("lokr_")}
    assert {n: tuple(p.shape) for n, p in factors.items()} == shape.factors()
    with torch.no_grad():
        for name, factor_ in factors.items():
            factor_.copy_(torch.randn_like(factor_))
            mine.factors()[name].copy_(factor_)
    torch.testing.assert_close(mine.delta(), theirs.get_weight(None), rtol=1e-6, atol=1e-6)


# Every (out, in) that is adapted by default at true size: DiT, then LLM adapter.
TRUE_LAYERS = [
    (2048, 2048), (2048, 1024), (8192, 2048), (2048, 8192),
    (1024, 1024), (4096, 1024), (1024, 4096),
]  # fmt: skip


@pytest.mark.parametrize(("out_features", "in_features"), TRUE_LAYERS)
def test_shapes_are_those_of_lycoris_for_every_layer_of_the_true_model(out_features, in_features):
    for factor, rank, both in itertools.product([8, -1, 4, 1], [4, 16, 128, 512], [False, True]):
        with torch.device("meta"):
            theirs = lokr_module.LokrModule(
                "x", nn.Linear(in_features, out_features, bias=False), 1.0, rank, 1.0,
                factor=factor, decompose_both=both,
            )  # fmt: skip
        expected = {
            n: tuple(p.shape) for n, p in theirs.named_parameters() if n.startswith("lokr_")
        }
        mine = lokr_shape((out_features, in_features), rank, factor, decompose_both=both)
        assert mine.factors() == expected


@pytest.mark.parametrize("name", ["locon.LoConModule", "lokr.LokrModule"])
def test_rslora_scales_and_writes_alpha_as_lycoris_does(name):
    """But for LoKr's full matrices: LyCORIS trains them at a scale that ComfyUI does not apply."""
    file, _, cls = name.partition(".")
    theirs = getattr(pytest.importorskip(f"lycoris.modules.{file}", reason=REASON), cls)(
        "x", nn.Linear(32, 48, bias=False), 1.0, 3, 2.0, rs_lora=True
    )
    alpha = training_alpha(2.0, 3, rank_stabilized=True)
    is_lokr = file == "lokr"
    mine = LoKr(lokr_shape((48, 32), 3, -1), alpha) if is_lokr else LoRA(32, 48, 3, alpha)
    assert mine.scale == pytest.approx(theirs.scale, rel=1e-6)
    assert mine.alpha == pytest.approx(theirs.alpha.item(), rel=1e-6)
