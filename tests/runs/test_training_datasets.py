"""Datasets through the whole trainer: masks, weights, regularisation, augmentation, validation."""

import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from library.data.catalogue import LEFT_TO_CHANCE
from library.data.data_types import SampleRequest
from library.data.dataset_config import SubsetConfig
from library.data.datasets import collate
from library.data.images import load_image
from library.data.picture_folders import is_picture
from tests.helpers.running import (
    STILL,
    config_files,
    exported,
    losses_of,
    make_trainer,
    model_paths,
    rows_of,
    train,
)

UNCACHED = {"cache_latents": False, "cache_text_encoder_outputs": False}


def masks_for(folder, draw):
    """A mask for every picture, painted by draw(array)."""
    masks = folder / "masks"
    masks.mkdir()
    for picture in pictures_of(folder):
        array = np.zeros(load_image(picture).size[::-1], dtype=np.uint8)
        draw(array)
        Image.fromarray(array).save(masks / f"{picture.stem}.png")
    return str(masks)


def pictures_of(folder):
    return [path for path in (folder / "pictures").iterdir() if is_picture(path.name)]


def left_half(array):
    array[:, : array.shape[1] // 2] = 255


def gradients_of_first_batch(trainer):
    trainer.prepare()
    trainer.sampler.set_epoch(0)
    result = trainer.process_batch(first_batch(trainer))
    result.loss.backward()
    norm = torch.stack([p.grad.norm() for p in trainer.network.get_trainable_params()
                        if p.grad is not None]).norm()  # fmt: skip
    return result, norm


def first_batch(trainer):
    return collate([trainer.dataset[request] for request in next(iter(trainer.sampler))])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("source", ["mask_path", "conditioning_data_dir", "alpha_mask"])
def test_the_loss_counts_inside_the_mask_only(demo, run_folder, source, cached):
    masks = masks_for(run_folder, left_half)
    subset = {source: masks}
    if source == "alpha_mask":
        subset = {source: True}
        for picture in pictures_of(run_folder):
            image = load_image(picture).convert("RGBA")
            with Image.open(f"{masks}/{picture.stem}.png") as mask:
                image.putalpha(mask)
            picture.unlink()
            image.save(picture.with_suffix(".png"))
    settings = {"masked_loss": source == "conditioning_data_dir", "cache_latents": cached}
    trainer = make_trainer(config_files(demo, run_folder, settings, **subset))
    trainer.prepare()
    batch = first_batch(trainer)
    mask = batch.loss_mask[:, :, : batch.loss_mask.shape[2] // 2]
    assert mask.mean() > 0.95 and batch.loss_mask.shape[0] == 2
    seen = []
    trainer.call_unet = lambda noisy, _: seen.append(noisy) or torch.zeros_like(noisy.latents)
    expected_side = trainer.process_batch(batch).per_sample
    half = seen[0].velocity[..., : seen[0].velocity.shape[-1] // 2]
    assert torch.allclose(expected_side, half.square().flatten(1).mean(1), rtol=0.02)


@pytest.mark.all_pictures
def test_masked_training_is_the_same_cached_and_uncached(demo, run_folder):
    masks = masks_for(run_folder, left_half)
    results = []
    for settings in ({"cache_latents_to_disk": True}, {"cache_latents": True}, UNCACHED):
        trainer = train(demo, run_folder, settings, resolution=128, mask_path=masks, flip_aug=True)
        results.append((losses_of(trainer), exported(run_folder)))
    for losses, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        for key, value in weights.items():
            assert torch.allclose(value, results[0][1][key], atol=1e-5), key


def test_a_small_mask_does_not_shrink_the_gradient(demo, run_folder):
    def corner(array):
        array[: array.shape[0] // 4, : array.shape[1] // 4] = 255

    masks = masks_for(run_folder, corner)
    whole = make_trainer(config_files(demo, run_folder, {}))
    _, norm = gradients_of_first_batch(whole)
    masked = make_trainer(config_files(demo, run_folder, {}, mask_path=masks))
    _, masked_norm = gradients_of_first_batch(masked)
    assert masked_norm > 0.5 * norm  # 1/16 of the area


def test_a_mask_of_zeros_contributes_nothing_and_makes_no_nan(demo, run_folder):
    masks = masks_for(run_folder, lambda array: None)
    trainer = train(demo, run_folder, {"max_train_steps": 2}, mask_path=masks)
    assert losses_of(trainer) == [0.0, 0.0]
    assert all(value.isfinite().all() for value in exported(run_folder).values())


def test_a_changed_mask_is_read_anew(demo, run_folder):
    masks = masks_for(run_folder, left_half)
    settings = {"cache_latents_to_disk": True, "max_train_steps": 1}
    first = train(demo, run_folder, settings, mask_path=masks)
    assert not first_batch(first).loss_mask.eq(1).all()
    shutil.rmtree(masks)
    masks_for(run_folder, lambda array: array.fill(255))
    second = make_trainer(config_files(demo, run_folder, settings, mask_path=masks))
    second.prepare()
    assert first_batch(second).loss_mask.eq(1).all()


def test_weights_of_subset_and_regularisation_scale_the_loss(demo, run_folder):
    losses = []
    for settings, subset in (
        ({}, {}),
        ({}, {"loss_multiplier": 0.5}),
        ({"prior_loss_weight": 0.25}, {"regular": True}),
    ):
        argv = config_files(demo, run_folder, settings)
        if subset.pop("regular", False):
            shutil.copytree(run_folder / "pictures", run_folder / "others", dirs_exist_ok=True)
            text = f"is_reg = true\n[[datasets.subsets]]\nimage_dir = '{run_folder / 'others'}'\n"
        else:
            text = "".join(f"{key} = {value}\n" for key, value in subset.items())
        with open(run_folder / "dataset.toml", "a", encoding="utf-8") as file:
            file.write(text)
        trainer = make_trainer(argv)
        trainer.prepare()
        regular = [i for i, image in enumerate(trainer.catalogue.images) if image.subset.is_reg]
        index = regular[0] if regular else 0
        batch = collate([trainer.dataset[SampleRequest(index, 0, 0)]])
        losses.append(trainer.process_batch(batch).loss.item())
    assert losses[1] == pytest.approx(0.5 * losses[0])
    assert losses[2] == pytest.approx(0.25 * losses[0])


def test_the_offset_of_a_subset_moves_its_draws_alone(demo, run_folder):
    argv = config_files(demo, run_folder, {})
    with open(run_folder / "dataset.toml", "a", encoding="utf-8") as file:
        file.write("custom_attributes = {timestep_sampling = {offset = 1.5}}\n")
        shutil.copytree(run_folder / "pictures", run_folder / "others")
        file.write(f"[[datasets.subsets]]\nimage_dir = '{run_folder / 'others'}'\n")
    trainer = make_trainer(argv)
    trainer.prepare()
    indices = {bool(image.subset.timestep_offset): i for i, image in enumerate(trainer.catalogue.images)}
    for is_moved, index in indices.items():
        batch = collate([trainer.dataset[SampleRequest(index, 0, 0)]])
        plain = trainer.noising.draw_ahead(batch.latents.shape, batch.seeds)
        ahead, drawn_now = trainer.ahead.make(batch).drawn, trainer.process_batch(batch).sigma
        assert torch.equal(drawn_now, ahead.sigma) and torch.equal(ahead.noise, plain.noise)
        assert bool(ahead.sigma > plain.sigma) is is_moved


def test_the_network_multiplier_of_a_dataset_scales_its_adapters(demo, run_folder):
    argv = config_files(
        demo, run_folder, {"max_train_steps": 2}, dataset="network_multiplier = 0.5"
    )
    trainer = make_trainer(argv)
    trainer.train()
    assert trainer.network.multiplier == 0.5
    batch = first_batch(trainer)
    sigma = torch.full((len(batch.keys),), 0.5)
    half = trainer.process_batch(batch, sigma).per_sample
    for placement in trainer.network.placements:
        for name, factor in placement.adapter.factors().items():
            if name in ("lora_up", "w_norm"):
                factor.data.mul_(0.5)
    whole = trainer.process_batch(replace(batch, network_multiplier=1.0), sigma).per_sample
    assert torch.allclose(half, whole, rtol=1e-4)


def test_augmented_pictures_train_and_differ_each_time(demo, run_folder):
    subset = {"random_crop": True, "color_aug": True, "face_crop_aug_range": [1.0, 3.0]}
    picture = next((run_folder / "pictures").glob("*.png"))
    picture.rename(picture.with_name(f"{picture.stem}_60_60_30_20.png"))
    trainer = train(demo, run_folder, UNCACHED, **subset)
    assert all(np.isfinite(losses_of(trainer)))

    def looks(index):
        return {
            trainer.dataset[SampleRequest(index, epoch, 0)].pixels.numpy().tobytes()
            for epoch in range(12)
        }

    first = looks(0)
    assert 3 < len(first) and first == looks(0)


def test_folders_named_by_flags_train(demo, run_folder):
    settings = {**model_paths(demo), "resolution": "128", "max_train_steps": 2}
    named = run_folder / "train" / "2_cat"
    shutil.move(run_folder / "pictures", named)
    argv = config_files(demo, run_folder, {**settings, "train_data_dir": str(named.parent)})
    trainer = make_trainer(argv[:2])
    trainer.train()
    assert {image.repeats for image in trainer.catalogue.images} == {2}


def validated(trainer):
    return [row for row in rows_of(trainer) if "loss/validation/average" in row]


def test_validation_is_logged_by_quarter_of_sigma(demo, run_folder):
    settings = {"max_train_epochs": 2, "validation_seed": 3}
    trainer = train(demo, run_folder, settings, dataset="validation_split = 0.3")
    rows = validated(trainer)
    assert [row["step"] for row in rows] == [trainer.plan.steps_per_epoch * n for n in (1, 2)]
    names = [name for name in rows[0] if name.startswith("loss/validation/sigma")]
    assert len(names) == 4
    mean = sum(rows[0][name] for name in names) / 4
    assert rows[0]["loss/validation/average"] == pytest.approx(mean)


@pytest.mark.parametrize("cached", [True, False])
def test_validation_is_fixed_and_changes_nothing_about_training(demo, run_folder, cached):
    """Also with dropout, extra noise and augmentation, whose draws it must not see."""
    settings = {"network_dropout": 0.2, "noise_offset": 0.1, "ip_noise_gamma": 0.1}
    settings |= {} if cached else UNCACHED
    results = []
    for every, seed in ((2, 7), (None, 7), (2, 8)):
        settings |= {"validate_every_n_steps": every, "seed": seed, "learning_rate": STILL}
        trainer = train(
            demo, run_folder, settings, dataset="validation_split = 0.3", flip_aug=True,
            caption_dropout_rate=0.5, shuffle_caption=True,
        )  # fmt: skip
        results.append((exported(run_folder), losses_of(trainer), validated(trainer)))
    (weights, losses, rows), (other, other_losses, _), (*_, other_seed) = results
    assert all(torch.equal(value, other[key]) for key, value in weights.items())
    assert losses == other_losses and len(rows) == 2
    for row in (rows[1], *other_seed):  # the adapters still change nothing: rate 0
        for name, value in rows[0].items():
            if name.startswith("loss/validation"):
                assert row[name] == pytest.approx(value, rel=1e-6)


def test_validation_with_schedule_free_uses_the_averaged_weights(demo, run_folder):
    settings = {"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "constant"}
    plain = train(demo, run_folder, settings, dataset="validation_split = 0.3")
    weights = exported(run_folder)
    often = {**settings, "validate_every_n_steps": 1, "max_validation_steps": 1}
    trainer = train(demo, run_folder, often, dataset="validation_split = 0.3")
    assert losses_of(plain) == losses_of(trainer) and len(validated(trainer)) == 4
    assert all(torch.equal(value, weights[key]) for key, value in exported(run_folder).items())


def test_what_validation_leaves_out_is_all_that_is_drawn():
    """A new random setting of a subset has to be thought of in LEFT_TO_CHANCE."""
    drawn = {f.name for f in fields(SubsetConfig) if "aug" in f.name or "dropout" in f.name}
    drawn |= {"shuffle_caption", "random_crop", "token_warmup_step"}
    assert drawn <= set(LEFT_TO_CHANCE)
