"""The loop, on the demo's real small models: what an update is, what it moves, what it reads."""

import json
import math
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.data.datasets import collate
from tests.helpers.running import (
    STILL,
    config_files,
    exported,
    losses_of,
    make_trainer,
    train,
    trainer_at_its_first_step,
    windows_of_first_epoch,
)

KEPT = {"prior_preservation_weight": 1.0, "prior_preservation_prompts": "builtin"}
LOKR = {"network_module": "networks.lokr_anima", "network_args": ["lokr_factor=4"]}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("network", [{}, LOKR], ids=["lora", "lokr"])
def test_two_updates_move_every_trainable_tensor_and_nothing_else(
    demo, run_folder, network, precision
):
    settings = {**network, "mixed_precision": precision}
    trainer, windows = trainer_at_its_first_step(config_files(demo, run_folder, settings))
    model = trainer.accelerator.unwrap_model(trainer.model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    for window in windows[:2]:
        trainer.train_step(window)
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == trainable
    assert trainable and all(model.get_parameter(name).dtype == torch.float32 for name in trainable)


def test_accumulating_single_pictures_equals_one_batch_of_them(demo, run_folder):
    """The same samples draw the same sigma and noise in any batch, so the update is the same."""
    results = []
    for size in (2, 1):
        # plain gradient steps: Adam's first step is the gradient's sign, whatever its size
        settings = {"optimizer_type": "SGDNesterov", "optimizer_args": ["momentum=0.9"]}
        trainer, _ = trainer_at_its_first_step(config_files(demo, run_folder, settings))
        requests = next(batch for batch in trainer.sampler.batches(0) if len(batch) == 2)
        samples = [trainer.dataset[request] for request in requests]
        trainer.train_step([collate(samples[i : i + size]) for i in range(0, 2, size)])
        results.append([p.detach().clone() for p in trainer.network.get_trainable_params()])
    assert all(torch.allclose(a, b, atol=1e-8, rtol=1e-4) for a, b in zip(*results))


def test_a_short_window_ends_the_epoch_and_counts_as_an_update(demo, run_folder):
    settings = {"gradient_accumulation_steps": 3, "max_train_steps": None, "max_train_epochs": 2}
    trainer = train(demo, run_folder, settings)
    assert trainer.plan.steps_per_epoch == math.ceil(len(trainer.sampler) / 3)
    assert trainer.state.step == 2 * trainer.plan.steps_per_epoch
    assert trainer.state.samples_seen == 2 * trainer.catalogue.num_samples


@pytest.mark.parametrize("to_disk", [False, True], ids=["memory", "disk"])
def test_training_from_caches_equals_training_without(demo, run_folder, to_disk):
    dataset = {"shuffle_caption": True, "caption_dropout_rate": 0.3, "flip_aug": True}
    caches = {
        f"{kind}{suffix}": True
        for kind in ("cache_latents", "cache_text_encoder_outputs")
        for suffix in (("", "_to_disk") if to_disk else ("",))
    }
    nothing = {"cache_latents": False, "cache_text_encoder_outputs": False}
    cached = losses_of(train(demo, run_folder, caches, **dataset))
    uncached = losses_of(train(demo, run_folder, nothing, **dataset))
    assert cached == pytest.approx(uncached, rel=1e-5)
    assert len(cached) == 4


def test_the_same_seed_gives_the_same_file_and_another_seed_another(demo, run_folder):
    runs = []
    for seed in (7, 7, 8):
        train(demo, run_folder, {"seed": seed, "network_dropout": 0.1})
        runs.append(exported(run_folder))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert any(not torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


@pytest.mark.parametrize("offload", [{}, {"cpu_offload_checkpointing": True}])
def test_gradient_checkpointing_changes_nothing_but_memory(demo, run_folder, offload):
    plain = losses_of(train(demo, run_folder, {"network_dropout": 0.2}))
    settings = {"network_dropout": 0.2, "gradient_checkpointing": True, **offload}
    assert losses_of(train(demo, run_folder, settings)) == pytest.approx(plain, rel=1e-5)


def test_files_are_written_when_due_and_old_ones_go(demo, run_folder):
    train(
        demo,
        run_folder,
        {"save_every_n_steps": 1, "save_last_n_steps": 1, "save_precision": "bf16"},
    )
    names = sorted(path.name for path in (run_folder / "out").glob("*.safetensors"))
    assert names == [
        "run-step00000003.safetensors",
        "run-step00000004.safetensors",
        "run.safetensors",
    ]
    weights = exported(run_folder)
    assert {v.dtype for k, v in weights.items() if "lora" in k} == {torch.bfloat16}
    assert {v.dtype for k, v in weights.items() if k.endswith(".alpha")} == {torch.float32}


def test_metadata_is_complete_and_true(demo, run_folder):
    train(demo, run_folder, {**LOKR, "training_comment": "a test", "metadata_author": "me"})
    with safe_open(run_folder / "out" / "run.safetensors", "pt") as file:
        found = file.metadata()
    assert found["ss_base_model_version"] == "anima"
    assert "anima" in found["modelspec.architecture"].lower()
    assert found["ss_network_module"] == "networks.lokr_anima"
    assert json.loads(found["ss_network_args"])["train_norm"] == "true"
    assert (found["ss_steps"], found["ss_seed"], found["ss_network_dim"]) == ("4", "7", "4")
    assert found["ss_training_comment"] == "a test" and found["modelspec.author"] == "me"
    assert len(found["sshs_model_hash"]) == 64
    assert json.loads(found["ss_tag_frequency"])["pictures"]


def test_no_metadata_leaves_what_other_tools_need(demo, run_folder):
    train(demo, run_folder, {"no_metadata": True})
    with safe_open(run_folder / "out" / "run.safetensors", "pt") as file:
        names = set(file.metadata())
    assert "ss_network_dim" in names and "ss_tag_frequency" not in names


def test_training_continues_from_network_weights(demo, run_folder):
    train(demo, run_folder, {"max_train_steps": 2})
    first = run_folder / "first.safetensors"
    (run_folder / "out" / "run.safetensors").rename(first)
    settings = {"network_weights": str(first), "dim_from_weights": True, "learning_rate": STILL}
    train(demo, run_folder, {**settings, "network_dim": None, "network_alpha": 1})
    before, after = load_file(first), exported(run_folder)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key]) for key in before)


@pytest.mark.all_pictures
def test_several_datasets_of_several_sizes_train_in_one_run(demo, run_folder):
    settings = {"max_train_steps": None, "max_train_epochs": 1}
    argv = config_files(demo, run_folder, settings, resolution=128)
    more = run_folder / "more"
    more.mkdir()
    for picture in list((run_folder / "pictures").glob("0[12]_*")):
        (more / picture.name).write_bytes(picture.read_bytes())
    with open(run_folder / "dataset.toml", "a", encoding="utf-8") as file:
        file.write(
            f'[[datasets.subsets]]\nimage_dir = "{more}"\nnum_repeats = 2\n'
            "[[datasets]]\nresolution = [64, 192]\nbatch_size = 3\n"
            f'[[datasets.subsets]]\nimage_dir = "{more}"\n'
        )
    trainer = make_trainer(argv)
    trainer.train()
    sizes = {tuple(batch.latents.shape[-2:]) for (batch,) in windows_of_first_epoch(trainer)}
    assert sizes == {(16, 16), (24, 8)}
    assert trainer.state.samples_seen == 12 + 2 * 2 + 2


class Mark:
    """What lives as long as the node of a graph that it hangs on."""

    def __call__(self, *_):
        pass


def test_a_pass_begins_when_nothing_of_the_one_before_is_left(demo, run_folder):
    """Recorded on a card it would take over nodes that work on another stream, and fail."""
    settings = {"gradient_accumulation_steps": 2}
    trainer, windows = trainer_at_its_first_step(config_files(demo, run_folder, settings))
    plain, marks, seen = trainer.process_batch, weakref.WeakSet(), []

    def process_batch(batch):
        seen.append(len(marks))
        result, mark = plain(batch), Mark()
        result.loss.grad_fn.register_hook(mark)
        marks.add(mark)
        return result

    trainer.process_batch = process_batch
    trainer.train_step(windows[0])
    assert seen == [0, 0] and not marks


@pytest.mark.gpu
@pytest.mark.parametrize("prior", [{}, KEPT], ids=["plain", "what the base knows is kept"])
def test_on_a_gpu_steps_of_several_passes_are_recorded(demo, run_folder, prior):
    settings = {
        "gradient_accumulation_steps": 2, "mixed_precision": "bf16", "optimizer_type": "SGDNesterov",
        "optimizer_args": ["momentum=0.9"], "attn_mode": "torch", "text_padding": "rows", **prior,
    }  # fmt: skip
    moved = []
    for recorded in (False, True):
        settings["cuda_graphs"] = recorded
        trainer, windows = trainer_at_its_first_step(config_files(demo, run_folder, settings))
        window = windows[0][:1] * 2  # of one size, which is recorded in the second pass
        before = [p.detach().clone() for p in trainer.network.get_trainable_params()]
        for _ in range(3):
            trainer.train_step(window)
        pairs = zip(trainer.network.get_trainable_params(), before)
        moved.append(torch.cat([(p.detach() - old).flatten() for p, old in pairs]))
        assert bool(trainer.base.recorded and trainer.base.recorded.kept) == recorded
    assert (moved[0] - moved[1]).norm() < 0.02 * moved[0].norm()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "more", [{}, KEPT, {"cache_text_encoder_outputs": False}],
    ids=["plain", "what the base knows is kept", "captions are encoded in the step"],
)  # fmt: skip
def test_on_a_gpu_nothing_waits_between_log_points(demo, run_folder, more):
    settings = {"log_every_n_steps": 1000, "mixed_precision": "bf16", **more}
    trainer, windows = trainer_at_its_first_step(config_files(demo, run_folder, settings))
    trainer.train_step(windows[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for window in windows[1:4]:
            trainer.train_step(window)
    finally:
        torch.cuda.set_sync_debug_mode("default")
