"""OFT and BOFT, trained: against dense turns and ComfyUI's reading of the file; LyCORIS: test_lycoris.py."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from library.errors import AdapterFileError, ConfigError
from networks import oft_anima
from networks.kinds.adapter import NO_DROPOUT, Dropout
from networks.kinds.oft import OFT, OFTArguments, in_turn, turns
from networks.workshop.verifying import Written, differences
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import golden, loss_of, rel_l2, tiny_transformer
from tests.helpers.trained_networks import trained
from tests.helpers.written_adapters import live_differences
from tools import convert_lora_format

FORMS = ["oft", "boft"]
KEY = "diffusion_model.blocks.0.mlp.layer1.oft_blocks"


def filled(form, limit=0.0, dropout=NO_DROPOUT):
    fresh = OFTArguments(boft=form == "boft").make(nn.Linear(16, 48), 6, 1.0, dropout)
    adapter = OFT(fresh.oft_blocks.shape, limit, dropout)
    adapter.oft_blocks.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return adapter


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_it_is_a_turn_and_values_and_gradients_are_those_of_the_dense_one(form, limit):
    adapter, x = filled(form, limit), torch.randn(2, 5, 16, requires_grad=True)
    turn = turns(adapter.oft_blocks, limit)
    dense = in_turn(torch.eye(48), turn)
    torch.testing.assert_close(dense @ dense.T, torch.eye(48), atol=1e-5, rtol=0)
    assert (dense - torch.eye(48)).abs().max() > 0.01
    weight, bias = torch.randn(48, 16), torch.randn(48)
    expected = x @ weight.T @ dense + bias
    found = adapter(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wanted = [x, adapter.oft_blocks]
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum() + found.sum(), wanted),
        torch.autograd.grad(expected.square().sum() + expected.sum(), wanted),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-3)


def test_a_limit_shortens_what_is_longer_and_nothing_else():
    blocks = 0.1 * torch.randn(6, 4, 4)
    skew = (blocks - blocks.mT).norm().item()
    assert torch.equal(turns(blocks, 1.01 * skew), turns(blocks, 0.0))
    torch.testing.assert_close(turns(blocks, skew / 2), turns(blocks / 2, 0.0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["neuron", "rank", "module"])
def test_dropout_leaves_the_mean_and_every_gradient(form, kind):
    adapter = filled(form, dropout=Dropout(**{kind: 0.25}))
    weight, x = torch.randn(48, 16), torch.randn(1, 2, 16)
    adapter.oft_blocks.data *= 0.2
    base = x @ weight.T
    torch.manual_seed(0)
    outs = torch.stack([adapter(x, weight, None) for _ in range(60)])
    assert any(not torch.equal(outs[0], other) for other in outs)
    kept = 0.75 if kind == "module" else 1.0
    assert rel_l2(outs.mean(0) - base, kept * (adapter.eval()(x, weight, None) - base)) < 0.2
    outs.square().sum().backward()
    assert adapter.oft_blocks.grad.any()


@pytest.fixture(scope="module", params=[("boft", {}), ("oft", {"constraint": "1e-3"})], ids=str)
def network(request):
    name, options = request.param
    return trained(name, train_norm=False, exclude_patterns=r"llm.*", **options)


def test_comfyui_makes_of_the_file_what_was_trained(tmp_path, network):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    file = load_file(tmp_path / "a.safetensors")
    theirs = weight_differences(file, tiny_transformer().state_dict())
    mine = live_differences(network)
    assert theirs.keys() == mine.keys() and len(mine) == 20
    for name, difference in mine.items():
        assert rel_l2(theirs[name], difference) < 3e-5, name
    assert differences(network, file, Written(torch.float32)) == []
    assert "blocks of" in network.summary()[0]


def test_a_start_from_the_file_is_the_same_network(tmp_path, network):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    model, live = tiny_transformer(), loss_of(network.model).item()
    like, _ = oft_anima.create_network_from_weights(
        1.0, str(tmp_path / "a.safetensors"), None, None, model, train_norm=False
    )
    like.apply_to(None, model)
    assert loss_of(model).item() == pytest.approx(live, rel=1e-6)
    like.set_multiplier(0.4)
    weaker = loss_of(model).item()
    with like.merged():
        assert loss_of(model).item() == pytest.approx(weaker, rel=1e-5)
    assert weaker != pytest.approx(live, rel=1e-4)


def test_a_converter_makes_a_lora_of_the_file_with_the_base(tmp_path, network):
    network.save_weights(tmp_path / "a.safetensors", None, None)
    words = [str(tmp_path / "a.safetensors"), "--format", "universal", "--error", "1e-5"]
    words += ["--output", str(tmp_path / "b.safetensors")]
    with pytest.raises(AdapterFileError, match="Give it with --base"):
        convert_lora_format.main(words)
    convert_lora_format.main([*words, "--base", str(golden("anima_tiny_dit.safetensors"))])
    theirs = weight_differences(load_file(tmp_path / "b.safetensors"))
    for name, difference in live_differences(network).items():
        assert rel_l2(theirs[name], difference) < 1e-4, name


def test_a_fresh_network_changes_nothing():
    model = tiny_transformer()
    base = loss_of(model).item()
    oft_anima.create_network(1.0, 3, 1, None, None, model, train_norm=False).apply_to(None, model)
    assert loss_of(model).item() == pytest.approx(base, rel=3e-7)  # a bias is added after the turn


def test_small_turns_survive_bfloat16():
    adapter = OFT((6, 8, 8))
    adapter.oft_blocks.data.normal_(std=1e-4)
    x, weight = torch.randn(512, 16).bfloat16(), torch.eye(48, 16).bfloat16()
    out = adapter(x, weight, None) - x @ weight.T
    assert out.any()
    (grad,) = torch.autograd.grad(adapter(x, weight, None).float().sum(), [adapter.oft_blocks])
    assert grad.dtype == torch.float32 and grad.any()


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_on_a_card_nothing_waits_and_a_pass_can_be_recorded(form):
    adapter, weight = filled(form).cuda(), torch.randn(48, 16, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(2, 64, 16, device="cuda", dtype=torch.bfloat16)

    def gradient():
        out = adapter(x, weight, None).float().square().sum()
        return torch.autograd.grad(out, [adapter.oft_blocks])[0]

    side, expected = torch.cuda.Stream(), gradient()
    side.wait_stream(torch.cuda.current_stream())  # which still makes what is read there
    with torch.cuda.stream(side):
        gradient()
        torch.cuda.set_sync_debug_mode("error")
        try:
            gradient()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradient()
    graph.replay()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_what_it_has_no_use_for_is_said(caplog):
    (problem,) = oft_anima.check_network_args(4, 1, dora_wd=True)
    assert "OFT adds nothing" in problem.message
    assert "BOFT alone" in str(oft_anima.check_network_args(4, 1, rescaled="true"))
    assert "constraint" in str(oft_anima.check_network_args(4, 1, constraint="-1"))
    oft_anima.create_network(1.0, 4, 8, None, None, tiny_transformer(), rslora=1, loraplus_lr_ratio=4)
    for words in ("network_alpha has no effect", "rslora has no", "loraplus_lr_ratio has no effect"):
        assert words in caplog.text
    with pytest.raises(ConfigError, match="no even block for 96 outputs"):
        oft_anima.create_network(1.0, 4, 1, None, None, tiny_transformer(), boft=True)


@pytest.mark.parametrize(
    "shape", [(3, 3, 3), (4, 2, 3), (9, 6, 24, 4), (2, 33, 3, 3), (0, 4, 4), (96,)], ids=str
)
def test_blocks_that_do_not_fit_are_refused_by_name(tmp_path, shape):
    save_file({KEY: torch.zeros(shape)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match="layer1"):
        oft_anima.create_network_from_weights(
            1.0, str(tmp_path / "a.safetensors"), None, None, tiny_transformer()
        )
