"""T-LoRA: fewer ranks act the more noise there is, in training; the file is a plain LoRA."""

import pytest
import torch
from safetensors.torch import load_file

from library.errors import ConfigError
from networks import lokr_anima, lora_anima
from networks.kinds.lora import LoRA
from networks.kinds.noise_ranks import Noise, NoiseRanks
from tests.helpers.comfy_rules import weight_differences
from tests.helpers.tiny import golden_vectors, loss_of, rel_l2, tiny_transformer
from tests.helpers.trained_networks import trained
from tests.helpers.written_adapters import live_differences

SIGMA = torch.tensor([0.1, 0.55, 1.0])


@torch.no_grad()
def drawn(model, sigma, batch=1):
    vectors = golden_vectors()
    of_one = (vectors["in.x.sq"][:1, :, 0], vectors["in.qwen_hidden.a"][:1], vectors["in.t5_ids.a"][:1])
    latents, hidden, ids = (each.expand(batch, *each.shape[1:]) for each in of_one)
    return model(latents, torch.tensor(sigma).expand(batch), hidden, ids)


def tlora(**options):
    return trained("lora", 2, tlora="true", train_norm=False, **options)


def test_all_ranks_act_without_noise_and_the_least_on_noise_alone():
    found = NoiseRanks(2, 1.0).acting(torch.tensor([0.0, 0.49, 1.0]), 6)
    assert found.sum(1).tolist() == [6, 4, 2]
    assert found[1].tolist() == [1, 1, 1, 1, 0, 0]
    assert NoiseRanks(1, 2.0).acting(torch.tensor([0.5]), 9).sum() == 3


@pytest.mark.parametrize("plain", [True, False])
def test_ranks_that_do_not_act_learn_nothing_of_a_sample(plain):
    adapter, weight = LoRA(8, 6, 4, 4.0), torch.randn(6, 8)
    adapter.lora_up.data.normal_()
    adapter.noise_ranks, noise = NoiseRanks(1), Noise()
    adapter.use_noise(noise)
    noise.take(adapter, (None, SIGMA), {})
    x, ranks = torch.randn(3, 5, 8), [3, 2, 1]
    assert NoiseRanks(1).acting(SIGMA, 4).sum(1).tolist() == ranks
    found = x @ weight.T + adapter.added(x) if plain else adapter(x, weight, None)
    for sample, rank in enumerate(ranks):
        small = weight + adapter.lora_up[:, :rank] @ adapter.lora_down[:rank]
        torch.testing.assert_close(found[sample], x[sample] @ small.T)
    down, up = torch.autograd.grad(found.square().sum(), [adapter.lora_down, adapter.lora_up])
    assert down[:3].any(1).all() and not down[3].any() and not up[:, 3].any()
    whole = adapter.eval()(x, weight, None)
    torch.testing.assert_close(whole, x @ (weight + adapter.delta()).T)


def test_the_model_tells_each_sample_its_own_noise():
    """In a batch as alone, twice the same, and all ranks where it is only used."""
    network = tlora(exclude_patterns=r"llm.*")
    model = network.model
    network.set_training(True)
    noisy, clean = drawn(model, 0.95), drawn(model, 0.0)
    together = drawn(model, [0.95, 0.0], batch=2)
    torch.testing.assert_close(together, torch.cat([noisy, clean]), rtol=1e-4, atol=1e-5)
    assert torch.equal(drawn(model, 0.95), noisy)
    network.set_training(False)
    assert rel_l2(drawn(model, 0.95), noisy) > 1e-3
    torch.testing.assert_close(drawn(model, 0.0), clean, rtol=1e-5, atol=1e-6)


def test_what_checkpointing_computes_again_has_the_noise_of_its_pass():
    network, grads = tlora(), []
    network.set_training(True)
    for again in (False, True):
        if again:
            network.model.enable_gradient_checkpointing()
        loss = loss_of(network.model)
        grads.append(torch.autograd.grad(loss, network.get_trainable_params()))
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other)
    assert any(not each.abs().sum(1).all() for each in grads[0])  # some ranks did not act


def test_the_file_is_a_plain_lora_of_all_ranks_and_says_how_it_was_trained(tmp_path):
    network = tlora(tlora_min_rank="2", dora_wd="1")
    network.save_weights(tmp_path / "a.safetensors", None, None)
    network.set_training(False)
    file = load_file(tmp_path / "a.safetensors")
    theirs = weight_differences(file, tiny_transformer().state_dict())
    for name, difference in live_differences(network).items():
        assert rel_l2(theirs[name], difference) < 3e-6, name
    args = network.network_args
    assert (args["tlora"], args["tlora_min_rank"], args["tlora_power"]) == ("true", "2", "1")


def test_what_sees_no_noise_is_a_plain_lora():
    network = tlora()
    by_noise = {p.path for p in network.placements if p.adapter.acts_by_noise}
    assert by_noise == {p.path for p in network.placements if not p.path.startswith("llm_adapter")}
    model = network.model
    network.remove()
    assert not model._forward_pre_hooks


def test_its_arguments_are_checked_and_other_words_are_read(caplog):
    words = {"use_timestep_mask": 1, "min_rank": 2, "alpha_rank_scale": 0.5}
    network = lora_anima.create_network(1.0, 4, 1, None, None, tiny_transformer(), **words)
    assert network.placements[0].adapter.noise_ranks == NoiseRanks(2, 0.5)
    told = str(lora_anima.check_network_args(4, 1, tlora=1, pissa=1, tlora_min_rank=0, tlora_power="-1"))
    assert all(word in told for word in ("pissa and tlora", "tlora_min_rank=0", "tlora_power=-1"))
    assert "networks.lora_anima" in str(lokr_anima.check_network_args(4, 1, tlora=1))
    with pytest.raises(ConfigError, match="above the rank 4"):
        lora_anima.create_network(
            1.0, 4, 1, None, None, tiny_transformer(), tlora=1, tlora_min_rank=5
        )
    lora_anima.create_network(1.0, 4, 1, None, None, tiny_transformer(), tlora_power=2.0)
    assert "tlora_power has no effect without tlora=true" in caplog.text
    lora_anima.create_network(
        1.0, 4, 1, None, None, tiny_transformer(), tlora=1, exclude_patterns=r"blocks.*"
    )
    assert "tlora has no effect: no adapted Linear sees noise" in caplog.text
