"""Knowledge kept by the base's own prediction, on regularisation pictures and on prompts."""

import shutil

import pytest
import torch

from library.data.data_types import SampleRequest
from library.data.datasets import collate
from library.errors import ConfigError
from library.settings.drift_prompts import PROMPTS
from tests.helpers.running import config_files, make_trainer, train

LEARNING = {
    "cache_text_encoder_outputs": False,
    "max_train_steps": 12,
    "learning_rate": 2e-2,
    "lr_scheduler": "constant",
}


def regularised(demo, folder, settings):
    argv = config_files(demo, folder, settings, caption_dropout_rate=0)
    shutil.copytree(folder / "pictures", folder / "others", dirs_exist_ok=True)
    text = f"is_reg = true\n[[datasets.subsets]]\nimage_dir = '{folder / 'others'}'\n"
    with open(folder / "dataset.toml", "a", encoding="utf-8") as file:
        file.write(text)
    return make_trainer(argv)


def batch_of(trainer, *indices):
    return collate([trainer.dataset[SampleRequest(index, 0, 0)] for index in indices])


def test_regularisation_pictures_learn_the_bases_own_prediction(demo, run_folder):
    trainer = regularised(demo, run_folder, {"prior_preservation_weight": 0.5})
    trainer.prepare()
    images = trainer.catalogue.images
    prior = next(i for i, image in enumerate(images) if image.subset.is_reg)
    same = [i for i, image in enumerate(images) if image.plan.bucket == images[prior].plan.bucket]
    learned = next(i for i in same if not images[i].subset.is_reg)
    batch = batch_of(trainer, learned, prior)
    assert batch.of_prior == (False, True) and batch.loss_weight.tolist() == [1.0, 0.5]
    plain, kept = trainer.process_batch(batch).per_sample.tolist()
    assert plain > 0.1 and kept == 0, "fresh adapters predict what the base predicts"
    for placement in trainer.network.placements:
        for factor in placement.adapter.factors().values():
            factor.data.add_(0.05)
    sigma = torch.full((2,), 0.7)
    result = trainer.process_batch(batch, sigma)
    noisy = trainer.noising.draw(batch.latents, batch.seeds, sigma, batch.drawn)
    conditioning = trainer.get_conditioning(batch)
    with torch.no_grad():
        moved = trainer.call_unet(noisy, conditioning) - trainer.predict_base(noisy, conditioning)
    expected = moved[1].square().mean().item()
    assert result.per_sample[1].item() == pytest.approx(expected, rel=1e-4) and expected > 1e-6
    assert trainer.network.multiplier == 1.0


def test_prompts_keep_what_the_base_predicts_for_them(demo, run_folder):
    prompts = run_folder / "prompts.txt"
    prompts.write_text(PROMPTS[0])
    moved = []
    for weight in (0.0, 5.0):
        settings = {"prior_preservation_weight": weight, "prior_preservation_prompts": str(prompts)}
        trainer = train(demo, run_folder, {**LEARNING, **settings})
        batch = batch_of(trainer, 0)
        noisy = trainer.noising.draw(batch.latents, batch.seeds, torch.tensor([0.9]), None)
        with torch.no_grad():
            base, now = (trainer.predict_caption(noisy, PROMPTS[0], at) for at in (0.0, 1.0))
        moved.append(float((now - base).norm() / base.norm()))
    assert moved[1] < 0.5 * moved[0], moved


@pytest.mark.parametrize("value, words", [("nowhere.txt", "no such file"), ("", None)])
def test_prompts_that_cannot_be_read_are_told_at_the_start(demo, run_folder, value, words):
    settings = {"prior_preservation_weight": 1.0, "prior_preservation_prompts": value}
    argv = config_files(demo, run_folder, settings)
    if words is None:
        assert make_trainer(argv).cfg.loss.prior_prompts == ()
        return
    with pytest.raises(ConfigError, match=f"prior_preservation_prompts.*{words}"):
        make_trainer(argv)
