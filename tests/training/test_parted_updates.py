"""Masters that are updated a part at a time: the same bits, with few gradients in float32 at once."""

import pytest
import torch

from library.settings.flags.optimizer import OptimizerOptions
from library.training.optimizers import create_optimizer
from library.training.parted_updates import PartedUpdates, parts_of
from networks._anima_arguments import component_of
from networks.model_layout import ModelLayout
from networks.whole_model import Whole
from tests.helpers.cards import CARD, repeatable
from tests.helpers.memory_modes import loss_of, small_dit

LIMIT = 0.1
OPTIMIZERS = {
    "AdamW": OptimizerOptions(learning_rate=1e-2),
    "Adafactor": OptimizerOptions(optimizer_type="Adafactor"),
}


def trained(name: str, most: int | None, device="cpu"):
    """Masters, optimizer states and norms after three updates; most: numbers of a part, None: of all at once."""
    model = small_dit(1).requires_grad_(False)
    subject = Whole(component_of, {"mlp": 3e-3}, torch.bfloat16, lambda: ModelLayout({}, {}))
    subject.mark(model)
    model.to(device)
    network = subject.made_for(model)
    network.attach(model, torch.float32)
    groups, _ = network.prepare_optimizer_params(None, None, 1e-2)
    optimizer = create_optimizer(OPTIMIZERS[name], groups)
    masters, norms, sizes = network.get_trainable_params(), [], []
    parted = PartedUpdates(optimizer, network.pairs(), most) if most else None

    def update(_):
        gradients = [held.grad for held in masters if held.grad is not None]
        sizes.append(sum(gradient.numel() for gradient in gradients))
        optimizer.step()

    for seed in range(3):
        loss_of(model, seed=seed).backward()
        if parted:
            norms.append(parted.norm())
            parted.step(norms[-1], LIMIT, update)
        else:
            network.gather_gradients()
            norms.append(torch.nn.utils.clip_grad_norm_(masters, LIMIT))
            update(norms[-1])
            optimizer.zero_grad()
        network.show()
        assert all(weight.grad is None and held.grad is None for weight, held in network.pairs())
    states = [v for each in masters for v in optimizer.state[each].values() if torch.is_tensor(v)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(masters)
    return [*masters, *states, *norms], sizes


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_that_of_all_at_once_to_the_bit(name):
    expected, (at_once, *_) = trained(name, None)
    found, sizes = trained(name, 6000)
    assert len(found) == len(expected) and min(norm.item() for norm in found[-3:]) > LIMIT
    assert all(map(torch.equal, found, expected))
    assert max(sizes) <= 6000 and sum(sizes) == 3 * at_once


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_on_a_card_too(name):
    with repeatable():
        expected, found = (trained(name, most, CARD)[0] for most in (None, 6000))
    assert all(map(torch.equal, found, expected))


def test_a_weight_that_is_larger_than_a_part_is_one():
    weights = [torch.nn.Parameter(torch.empty(size)) for size in (2, 3, 9, 1, 1)]
    parts = parts_of([(each, each) for each in weights], 5)
    assert [[len(held) for _, held in part] for part in parts] == [[2, 3], [9], [1, 1]]
