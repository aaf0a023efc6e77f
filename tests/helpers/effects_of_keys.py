"""The same as effects_table.py for every key of the dataset file."""

from typing import Any

from tests.helpers.effects_cases import Case, shown

BUCKETS = {
    "enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 16,
}  # fmt: skip
SHUFFLED = {"shuffle_caption": True}
SENTENCES_TOO = {"caption_shares": {"tags": 1, "sentences": 1, "tags_sentences": 2}}
DROPPED = {"caption_dropout_rate": 1.0}
OWN_CLASS = "test_user_pictures.test_what_a_class_names_is_what_its_folder_has"
EVERY_EPOCH = {"caption_dropout_every_n_epochs": 1}


def caption(value: Any, *idle: dict[str, Any], **beside: Any) -> Case:
    """A key that changes captions, which does nothing where all of them are dropped."""
    return Case(
        value, "pictures", beside, idle=(*idle, {**beside, **DROPPED}, {**beside, **EVERY_EPOCH})
    )


def picture(value: Any, *idle: dict[str, Any], **beside: Any) -> Case:
    return Case(value, "pictures", beside, idle=idle)


KEYS: dict[str, Case] = {
    "batch_size": picture(3),
    "resolution": picture(96),
    "enable_bucket": picture(True, min_bucket_reso=32, max_bucket_reso=128, bucket_reso_steps=16),
    "min_bucket_reso": picture(64, {}, {**BUCKETS, "bucket_no_upscale": True}, **BUCKETS),
    "max_bucket_reso": picture(64, {}, {**BUCKETS, "bucket_no_upscale": True}, **BUCKETS),
    "bucket_reso_steps": picture(32, {}, **BUCKETS),
    "bucket_no_upscale": picture(True, {}, **BUCKETS),
    "resize_interpolation": picture("nearest"),
    "num_repeats": picture(2),
    "shuffle_caption": caption(True),
    "caption_separator": caption(";", {}, **SHUFFLED),
    "keep_tokens": caption(2, {}, {"enable_wildcard": True}, **SHUFFLED),
    "keep_tokens_separator": caption("|||"),
    "secondary_separator": caption(";;;"),
    "enable_wildcard": caption(True),
    "caption_lines": caption("join"),
    "caption_prefix": caption("before"),
    "caption_suffix": caption("after"),
    "flip_aug": picture(True),
    "token_warmup_min": caption(2, {}, SHUFFLED, token_warmup_step=6),
    "token_warmup_step": caption(6),
    "caption_dropout_rate": picture(0.5),
    "caption_dropout_every_n_epochs": picture(2),
    "caption_tag_dropout_rate": caption(0.5),
    "image_dir": shown("test_dataset_scan.test_pictures_come_in_natural_order_with_captions_and_plans"),
    "caption_extension": caption(".other", {"metadata_file": "{folder}/all.json"}),
    "class_tokens": caption("a thing"),
    "cache_info": shown(
        "test_dataset_features.test_sizes_are_remembered_and_read_again_when_a_file_changes"
    ),
    "network_multiplier": picture(0.5),
    "validation_split": picture(0.4),
    "validation_seed": picture(3, {}, validation_split=0.4),
    "skip_image_resolution": picture(50),
    "color_aug": picture(True),
    "random_crop": picture(True),
    "face_crop_aug_range": picture([1.0, 2.0]),
    "is_reg": shown("test_training_datasets.test_weights_of_subset_and_regularisation_scale_the_loss"),
    "metadata_file": picture("{folder}/all.json"),
    "dataset_class": shown(OWN_CLASS),
    "custom_attributes": shown(OWN_CLASS),
    "alpha_mask": picture(True),
    "conditioning_data_dir": shown(
        "test_training_datasets.test_the_loss_counts_inside_the_mask_only", "{masks}", {}
    ),
    "resolutions": shown("test_dataset_language.test_one_list_of_resolutions_makes_a_dataset_of_each"),
    "recursive": picture(True),
    "mask_path": picture("{masks}"),
    "min_ar": picture(1.0),
    "max_ar": picture(1.0),
    "skip_empty_caption": picture(True),
    "loss_multiplier": picture(0.5),
    "timestep_offset": picture(0.5),
    "trigger_word": caption("trigger"),
    "caption_shares": caption(SENTENCES_TOO["caption_shares"]),
    "sentence_suffix": caption("_said", {}, {**SENTENCES_TOO, "metadata_file": "{folder}/all.json"}, **SENTENCES_TOO),
}  # fmt: skip
