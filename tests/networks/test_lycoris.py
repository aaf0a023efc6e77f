"""Against the lycoris-lora package: LoKr's factorization and shapes, deltas of the same factors, scales."""

import itertools

import pytest
import torch
from torch import nn

from networks.kinds.adapter import NO_DROPOUT
from networks.kinds.decomposed import Decomposed, DecomposedInputs
from networks.kinds.dora import as_dora_scale
from networks.kinds.loha import LoHa
from networks.kinds.lokr import LoKr, factorize, lokr_shape
from networks.kinds.lora import LoRA
from networks.kinds.noise_ranks import NoiseRanks
from networks.kinds.oft import OFTArguments
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


def test_a_magnitude_of_lycoris_becomes_one_that_trains_to_the_same_weight():
    """LyCORIS brings the rows of the sum to its magnitude, ours (and ComfyUI's) relates it to the base."""
    base, alpha = nn.Linear(32, 48, bias=False), 2.0
    locon = pytest.importorskip("lycoris.modules.locon", reason=REASON).LoConModule
    theirs = locon("x", base, 1.0, 3, alpha, weight_decompose=True, wd_on_out=True)
    inner = LoRA(32, 48, 3, alpha)
    mine = Decomposed(inner, base)
    with torch.no_grad():
        for factor in (theirs.lora_up.weight, theirs.dora_scale):
            factor.add_(0.1 * torch.rand_like(factor))
        down, up = theirs.lora_down.weight, theirs.lora_up.weight
        change = alpha / 3 * up @ down
        magnitude = as_dora_scale(change, base.weight, theirs.dora_scale.flatten())
        mine.fill({"lora_down": down, "lora_up": up, "dora_scale": magnitude}, base, ())
        inner.alpha = alpha
        merged = mine.merged({"weight": base.weight})["weight"]
        torch.testing.assert_close(merged, theirs.get_merged_weight()[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [2, 12])
@pytest.mark.parametrize("alpha", [0, 1.5])
def test_a_lohas_delta_and_start_are_those_of_lycoris(rank, alpha):
    module = pytest.importorskip("lycoris.modules.loha", reason=REASON)
    theirs = module.LohaModule("x", nn.Linear(24, 40, bias=False), 1.0, rank, alpha)
    mine = LoHa(24, 40, rank, alpha or rank)
    factors = {n: p for n, p in theirs.named_parameters() if n.startswith("hada_")}
    zero = [n for n, p in factors.items() if not p.any()]
    assert zero == [n for n, p in mine.factors().items() if not p.any()] == [mine.zero_factor]
    with torch.no_grad():
        for name, factor in factors.items():
            factor.copy_(torch.randn_like(factor))
            mine.factors()[name].copy_(factor)
    theirs_trained = theirs.get_weight((40, 24))  # where LyCORIS merges, it scales twice
    torch.testing.assert_close(mine.delta(), theirs_trained)


def oft_of_lycoris(name, out, dim, **options):
    file, _, cls = name.partition(".")
    module = getattr(pytest.importorskip(f"lycoris.modules.{file}", reason=REASON), cls)
    return module("x", nn.Linear(24, out, bias=False), 1.0, dim, **options)


TURNED = {"diag_oft.DiagOFTModule": False, "boft.ButterflyOFTModule": True}


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.parametrize(("out", "dim"), [(48, 6), (64, 100), (2048, 8), (8192, 16)])
def test_blocks_of_an_oft_are_those_of_lycoris(name, out, dim):
    theirs = oft_of_lycoris(name, out, dim).oft_blocks
    arguments = OFTArguments(boft=TURNED[name])
    mine = arguments.make(nn.Linear(24, out, bias=False), dim, 1.0, NO_DROPOUT)
    assert mine.oft_blocks.shape == theirs.shape and not theirs.any()


@pytest.mark.parametrize("name", TURNED)
@pytest.mark.parametrize("constraint", [0, 1e-3])
def test_an_oft_turns_as_lycoris_does_and_learns_by_the_same_gradients(name, constraint):
    theirs = oft_of_lycoris(name, 48, 6, constraint=constraint)
    (base,) = theirs.org_module
    mine = OFTArguments(boft=TURNED[name], constraint=float(constraint)).make(base, 6, 1.0, NO_DROPOUT)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        theirs.oft_blocks.normal_(std=0.2)
        mine.oft_blocks.copy_(theirs.oft_blocks)
    weight = base.weight.detach()
    expected, found = theirs(x), mine(x, weight, None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (merged, _), parameters = theirs.get_merged_weight(), {"weight": weight}
    torch.testing.assert_close(mine.merged(parameters)["weight"], merged, rtol=1e-4, atol=1e-5)
    (theirs_grad,) = torch.autograd.grad(expected.square().sum() + expected.sum(), [theirs.oft_blocks])
    (mine_grad,) = torch.autograd.grad(found.square().sum() + found.sum(), [mine.oft_blocks])
    torch.testing.assert_close(mine_grad, theirs_grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("rank", "least", "power"), [(16, 1, 1.0), (8, 4, 1.0), (32, 2, 0.7), (5, 5, 2.0)])
def test_a_tloras_ranks_are_those_of_lycoris(rank, least, power):
    module = pytest.importorskip("lycoris.modules.tlora", reason=REASON)
    moments = range(3, 1000, 7)
    theirs = [module.compute_timestep_mask(t, 1000, rank, least, power)[0] for t in moments]
    mine = NoiseRanks(least, power).acting(torch.tensor(moments) / 1000, rank)
    assert torch.equal(mine, torch.stack(theirs))


@pytest.mark.parametrize("name", ["locon.LoConModule", "lokr.LokrModule"])
def test_magnitudes_of_inputs_are_those_of_lycoris(name):
    """There LyCORIS and ComfyUI divide by the same norm, that of the sum."""
    file, _, cls = name.partition(".")
    base = nn.Linear(32, 48, bias=False)
    theirs = getattr(pytest.importorskip(f"lycoris.modules.{file}", reason=REASON), cls)(
        "x", base, 1.0, 3, 2.0, weight_decompose=True, wd_on_out=False
    )
    with torch.no_grad():
        for factor in theirs.parameters():
            factor.add_(0.1 * torch.rand_like(factor))
    inner = LoKr(lokr_shape((48, 32), 3, -1), 2.0) if file == "lokr" else LoRA(32, 48, 3, 2.0)
    mine = DecomposedInputs(inner, base)
    factors = {n.removesuffix(".weight"): p.detach() for n, p in theirs.named_parameters()}
    mine.fill(factors | {"alpha": torch.tensor(2.0)}, base, ())
    x = torch.randn(2, 5, 32)
    merged = mine.merged({"weight": base.weight})["weight"]
    for found in (mine(x, base.weight, None), x @ merged.T):
        torch.testing.assert_close(found, theirs(x), rtol=1e-4, atol=1e-5)
