"""Compiled blocks: plain training's gradients within rounding, and few graphs, whatever lies around them."""

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from library.memory.kept import keeping, storage_key
from library.settings.flags.precision import PrecisionOptions
from library.training.compiling import settle, uncompiled
from tests.helpers.memory_modes import adapted, gradients, loss_of
from tests.helpers.tiny import golden_vectors, rel_l2, tiny_transformer

SIZES = (8, 10, 12, 14, 16, 18, 20, 22, 24, 26)
BOUND = 1e-5


@pytest.fixture(autouse=True)
def compiler(compiler_left_alone):
    settle(PrecisionOptions(compile=True))


def compiled(model, backend="eager", any_size=True, **options):
    """The model, compiled; a list that grows with each graph that is made."""
    graphs, build = [], lookup_backend(backend)

    def counting(graph, inputs):
        graphs.append(graph)
        return build(graph, inputs)

    model.compile_blocks(any_size=any_size, backend=counting, fullgraph=True, **options)
    return graphs


def worst(found, expected):
    """The largest relative difference of a gradient, of those that are not rounding alone."""
    largest = max(grad.norm().item() for grad in expected.values())
    assert expected and found.keys() == expected.keys()
    return max(
        (found[name] - grad).norm().item() / max(grad.norm().item(), 1e-3 * largest)
        for name, grad in expected.items()
    )


def test_ten_sizes_make_three_graphs_and_none_after_the_first():
    """Of the first block, whose input wants no gradient, of the others, and without gradients."""
    model, _ = adapted("lora linears", blocks=3)
    graphs = compiled(model)
    counts = []
    for side in SIZES:
        gradients(model, side=side)
        with torch.no_grad():
            loss_of(model, side=side)
        counts.append(len(graphs))
    assert counts == [3] * len(SIZES)


def test_sizes_that_are_equal_by_chance_stay_two():
    """512 tokens are as many as the rows of the text."""
    model, _ = adapted("lora linears", blocks=1)
    graphs = compiled(model)
    for height, width in ((32, 64), (16, 16)):
        latents = torch.zeros(2, 16, height, width)
        model(latents, torch.tensor([0.3, 0.8]), context=torch.zeros(2, 512, 16))
    model(latents[:3], torch.tensor([0.3, 0.8]), context=torch.zeros(2, 600, 16))
    assert len(graphs) == 1


def test_zeros_that_are_counted_are_in_one_graph_for_all_texts():
    """For those too that have no zeros left out."""
    model, _ = adapted("lora linears", blocks=1)
    model.folds_text = True

    def velocities():
        for rows in (200, 400, 500, 530):
            text = torch.full((2, rows, model.params.text_dim), 0.5)
            noisy, sigma = torch.zeros(2, 16, 8, 8), torch.tensor([0.3, 0.8])
            yield model(noisy, sigma, context=text, whole=False)

    expected = list(velocities())
    graphs = compiled(model)
    assert all(rel_l2(*both) < BOUND for both in zip(velocities(), expected, strict=True))
    assert len(graphs) == 1


def test_the_golden_model_gives_its_loss_and_gradients():
    def passed(model):
        vectors = golden_vectors()
        x = vectors["in.x.sq"][:, :, 0].clone().requires_grad_()
        out = model(x, vectors["in.t.sq"], vectors["in.qwen_hidden.a"], vectors["in.t5_ids.a"])
        loss = out.float().square().mean()
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected, wanted = passed(tiny_transformer().requires_grad_(True))
    model = tiny_transformer().requires_grad_(True)
    compiled(model, "aot_eager")
    loss, found = passed(model)
    assert rel_l2(loss, expected) < BOUND and worst(found, wanted) < BOUND


def kept_and_gradients(model):
    """Bytes that the blocks keep for the backward pass beside weights; the gradients."""
    own, sizes = {storage_key(each) for each in model.state_dict().values()}, {}

    def note(kept):
        sizes[storage_key(kept)] = kept.untyped_storage().nbytes()
        return kept

    with keeping(note):
        loss = loss_of(model)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return sum(size for key, size in sizes.items() if key not in own), found


def test_a_budget_keeps_less_and_changes_no_gradient():
    settle(PrecisionOptions(compile=True, activation_memory_budget=0.3))
    plain, other = (adapted("norms", blocks=1)[0] for _ in range(2))
    compiled(other, "aot_eager")
    (whole, expected), (kept, found) = map(kept_and_gradients, (plain, other))
    assert worst(found, expected) < BOUND
    assert kept < 0.6 * whole


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


CASES = [
    ("lora dropouts", {"block_swap": 1, "gradient_checkpointing": {}}),
    ("lokr full", {}),
    slow("lora", {"gradient_checkpointing": {"mode": "cheap"}}),
    slow("lora dropouts", {"gradient_checkpointing": {"cpu_offload": True}}),
    slow("lokr full", {"gradient_checkpointing": {}}),
    slow("lokr low", {"block_swap": 1}),
    slow("norms", {}),
    slow("oft", {"block_swap": 1, "gradient_checkpointing": {"cpu_offload": True}}),
    ("dora of inputs", {}),
]


@pytest.mark.parametrize("kind, modes", CASES)
def test_gradients_are_those_of_plain_training(kind, modes):
    """Accumulated over two sizes; whatever is around the graphs, there are no more of them."""

    def accumulated(model):
        for side in (8, 12):
            loss_of(model, side=side).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected = accumulated(adapted(kind, blocks=1)[0])
    model, _ = adapted(kind, blocks=1)
    if "gradient_checkpointing" in modes:
        model.enable_gradient_checkpointing(**modes["gradient_checkpointing"])
    if "block_swap" in modes:
        model.enable_block_swap(modes["block_swap"], "cpu")
    graphs = compiled(model)
    assert worst(accumulated(model), expected) < BOUND
    assert len(graphs) == 1


def test_what_is_called_without_the_compiler_makes_no_graph():
    """Pictures that are drawn while training have sizes of their own."""
    model, _ = adapted("lora linears", blocks=1)
    with torch.no_grad():
        expected = loss_of(model)
        graphs = compiled(model)
        with uncompiled(model):
            assert torch.equal(loss_of(model), expected)
        assert graphs == []
        loss_of(model)
    assert len(graphs) == 1
