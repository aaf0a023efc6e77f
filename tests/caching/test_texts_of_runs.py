"""Runs that cache their texts: they train as those that do not, window by window."""

import pytest
import torch

from tests.helpers.running import config_files, exported, losses_of, make_trainer

DATASET = {
    "shuffle_caption": True,
    "caption_dropout_rate": 0.2,
    "caption_tag_dropout_rate": 0.2,
    "flip_aug": True,
    "caption_shares": {"tags": 1, "sentences": 1, "tags_sentences": 1, "sentences_tags": 1},
}


@pytest.fixture(scope="module")
def uncached(demo, tmp_path_factory):
    """Losses and weights of a run of three epochs that caches no text."""
    folder = tmp_path_factory.mktemp("uncached")
    return run(demo, folder, {"cache_text_encoder_outputs": False})


def run(demo, folder, settings):
    if not (folder / "pictures").exists():
        (folder / "pictures").mkdir()
        for picture in (demo / "pictures").iterdir():
            (folder / "pictures" / picture.name).write_bytes(picture.read_bytes())
            sentences = folder / "pictures" / f"{picture.stem}_nl.txt"
            sentences.write_text(f"A picture, {picture.stem}, of a girl.", encoding="utf-8")
    length = {"max_train_steps": None, "max_train_epochs": 3}
    trainer = make_trainer(config_files(demo, folder, {**length, **settings}, **DATASET))
    trainer.train()
    return losses_of(trainer), exported(folder)


@pytest.mark.parametrize(
    "limit, to_disk, windows", [(1, False, 3), (24, True, 2), (4000, False, 1)]
)
def test_training_from_the_cache_equals_training_without(
    demo, tmp_path, uncached, limit, to_disk, windows, caplog
):
    settings = {"text_cache_variants": limit, "cache_text_encoder_outputs_to_disk": to_disk}
    losses, weights = run(demo, tmp_path, settings)
    assert len(losses) == 18
    assert sum(line.startswith("captions: ") for line in caplog.messages) == windows
    assert losses == pytest.approx(uncached[0], rel=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(value, uncached[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_texts_are_stored_in_the_encoders_precision_and_at_their_real_length(
    demo, run_folder, precision, dtype
):
    length = {"max_train_steps": None, "max_train_epochs": 1}
    settings = {"mixed_precision": precision, "cache_text_encoder_outputs_to_disk": True, **length}
    trainer = make_trainer(config_files(demo, run_folder, settings))
    trainer.prepare()
    width = trainer.model_facts.params.llm_adapter.source_dim
    for image in trainer.catalogue.images:
        caption = image.caption.strip()
        tokens = trainer.tokenize_strategy.tokenize(caption)
        outputs = trainer.texts.get(caption)
        assert outputs["qwen_hidden"].shape == (len(tokens.qwen_ids), width)
        assert outputs["qwen_hidden"].dtype == dtype
        assert outputs["t5_ids"].tolist() == list(tokens.t5_ids)
        size = trainer.texts.cache.stored[caption].path.stat().st_size
        content = dtype.itemsize * width * len(tokens.qwen_ids) + 2 * 8 * len(tokens.t5_ids)
        assert content < size < content + 400


@pytest.mark.all_pictures
def test_a_trainer_whose_run_starts_later_has_the_texts_it_needs(demo, run_folder):
    settings = {"max_train_steps": None, "max_train_epochs": 4, "text_cache_variants": 1}
    tags_alone = {name: value for name, value in DATASET.items() if name != "caption_shares"}
    trainer = make_trainer(config_files(demo, run_folder, settings, **tags_alone))
    trainer.prepare()  # encodes for the first epoch
    trainer.state.epoch, trainer.state.step = 2, 12
    trainer.run_epochs()
    assert trainer.state.step == 24 and trainer.texts.window == range(3, 4)
