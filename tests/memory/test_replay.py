"""Recorded passes: the same bits as passes that are run, whatever comes between; what cannot be recorded."""

import pytest
import torch

from library.errors import ConfigError
from library.memory.replay import RECORDINGS, CudaRecorder, Replays
from tests.helpers.cards import CARD, adapted_on, gradients_in_turn, repeatable
from tests.helpers.memory_modes import adapted, assert_same_bits, loss_of
from tests.helpers.running import config_files, make_trainer
from tests.helpers.tape import Tape


def recorded(kind, dtype=torch.float32, **mode):
    model, network = adapted(kind, dtype)
    if mode:
        model.enable_gradient_checkpointing(**mode)
    trained = network.get_trainable_params()
    state = lambda: network.multiplier
    model.record_passes(trained, lambda: Tape, state=state, around=network.within_pass)
    return model, network


def train(model, network, sides=(8, 4, 8, 4)):
    """Gradients after two micro-steps each, updates between; at half strength at the end."""
    seen = []
    optimizer = torch.optim.SGD(network.get_trainable_params(), lr=0.1)
    for number, side in enumerate(sides):
        for micro in range(2):
            loss_of(model, side, seed=10 * number + micro).backward()
        seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    network.set_multiplier(0.5)
    loss_of(model).backward()
    return [*seen, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}]


@pytest.mark.parametrize(
    "kind, dtype, mode",
    [
        ("lora", torch.float32, {}),
        ("lora", torch.bfloat16, {"mode": "block"}),
        ("lokr low", torch.bfloat16, {"mode": "cheap"}),
    ],
)
def test_gradients_are_the_same_bits(kind, dtype, mode):
    """Blocks, norms and the LLM adapter; two sizes in turn, micro-steps that add up, other strengths."""
    expected = train(*adapted(kind, dtype))
    model, network = recorded(kind, dtype, **mode)
    for found, one in zip(train(model, network), expected, strict=True):
        assert_same_bits(found, one)
    assert len(model.recorded.kept) == 2 and len(model.recorded_text.kept) == 1


def test_without_gradients_nothing_is_recorded():
    model, _ = recorded("lora")
    with torch.no_grad():
        values = [loss_of(model).item() for _ in range(3)]
    assert not model.recorded.met and len(set(values)) == 1


def test_a_pass_that_another_overwrote_has_no_backward_pass():
    model, _ = recorded("lora linears")
    loss_of(model).backward()
    first = loss_of(model, seed=1)
    loss_of(model, seed=2)
    loss_of(model, seed=3)
    with pytest.raises(RuntimeError, match="overwritten"):
        first.backward()


def test_so_many_recordings_are_kept():
    weight = torch.ones(3, requires_grad=True)
    replays = Replays(lambda x: (x[:, None] * weight).sum(), [weight], Tape)
    for size in range(RECORDINGS + 2):
        for _ in range(2):
            replays(torch.ones(size + 1)).backward()
    assert [key[1][0][0] for key in replays.kept] == list(range(3, RECORDINGS + 3))


def test_what_cannot_be_recorded_is_said_before_anything_is_loaded(demo, run_folder):
    settings = {
        "cuda_graphs": True, "blocks_to_swap": 2, "cpu_offload_checkpointing": True,
        "compile": True, "compile_mode": "reduce-overhead",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="blocks_to_swap: .*cpu_offload.*compile_mode"):
        make_trainer(config_files(demo, run_folder, settings))
    settings = {"cuda_graphs": True, "network_dropout": 0.1}
    trainer = make_trainer(config_files(demo, run_folder, settings))
    with pytest.raises(ConfigError, match="dropout is not the same in each step"):
        trainer.prepare()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["lora linears", "lokr low"])
@pytest.mark.parametrize("mode", [None, {"mode": "cheap"}, {"mode": "block"}])
def test_on_a_card_recorded_passes_give_the_same_bits(kind, mode):
    with repeatable():
        expected = gradients_in_turn(adapted_on(CARD, kind, mode=mode), passes=4)
        model = adapted_on(CARD, kind, mode=mode, recorder=CudaRecorder)
        assert_same_bits(gradients_in_turn(model, passes=4), expected)
        assert len(model.recorded.kept) == 1
