"""The flags of pictures and captions: what counts where the file of datasets is silent."""

from __future__ import annotations

from dataclasses import dataclass

from library.settings.dataset_keys import INTERPOLATIONS
from library.settings.effects import loses_to, needs
from library.settings.flags.shared import key_flag
from library.settings.options import at_least, between, flag, size

FOLDERS = ("train_data_dir", "reg_data_dir", "in_json", "dataset_class")
"""Flags that name the pictures where there is no dataset_config."""
FILE_OF_DATASETS = loses_to(lambda o: o.dataset_config, "dataset_config names the folders")
ONE_READER = needs(
    lambda o: not (o.cache_latents and o.max_data_loader_n_workers),
    "one thread reads cached latents ahead",
)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data; every value is the fallback of the key of the same meaning in the dataset file"""

    resolution: str | None = key_flag(
        "resolution", 'training area: 1024 or "width,height"', read=size
    )
    train_batch_size: int = key_flag("batch_size", "pictures per micro-step", check=at_least(1))
    dataset_repeats: int = key_flag(
        "num_repeats", "times each picture counts per epoch", check=at_least(1)
    )
    caption_extension: str = key_flag(
        "caption_extension", "extension of caption files (sd-scripts: .caption)",
        names=("--caption_extension", "--caption_extention"),
    )  # fmt: skip
    shuffle_caption: bool = key_flag("shuffle_caption", "a new order of the tags every time")
    caption_separator: str = key_flag("caption_separator", "what separates tags", prose=True)
    keep_tokens: int = key_flag(
        "keep_tokens", "leading tags that keep their place", check=at_least(0)
    )
    keep_tokens_separator: str = key_flag(
        "keep_tokens_separator", "mark between fixed head, tags and fixed tail", prose=True
    )
    secondary_separator: str | None = flag(None, "separator inside tags that stay together", prose=True)
    enable_wildcard: bool = key_flag("enable_wildcard", "{a|b} choices and multi-line captions")
    caption_prefix: str | None = flag(None, "text before every caption", prose=True)
    caption_suffix: str | None = flag(None, "text after every caption", prose=True)
    caption_dropout_rate: float = key_flag(
        "caption_dropout_rate", "share of samples trained without caption", check=between(0, 1)
    )
    caption_dropout_every_n_epochs: int = key_flag(
        "caption_dropout_every_n_epochs", "every n epochs train without captions", check=at_least(0)
    )
    caption_tag_dropout_rate: float = key_flag(
        "caption_tag_dropout_rate", "share of tags left out", check=between(0, 1)
    )
    token_warmup_min: int = key_flag(
        "token_warmup_min", "tags at the start of the tag warm-up", check=at_least(0)
    )
    token_warmup_step: float = key_flag(
        "token_warmup_step",
        "steps, or fraction of the run, until all tags are used",
        check=at_least(0),
    )
    flip_aug: bool = key_flag("flip_aug", "mirror pictures at random")
    enable_bucket: bool = key_flag("enable_bucket", "batches of several shapes")
    min_bucket_reso: int = key_flag(
        "min_bucket_reso", "smallest side of a bucket", check=at_least(16)
    )
    max_bucket_reso: int = key_flag(
        "max_bucket_reso", "largest side of a bucket", check=at_least(16)
    )
    bucket_reso_steps: int = key_flag(
        "bucket_reso_steps", "sides of buckets are multiples of this", check=at_least(16)
    )
    bucket_no_upscale: bool = key_flag("bucket_no_upscale", "never enlarge a picture")
    resize_interpolation: str | None = key_flag(
        "resize_interpolation",
        "resampling; area when shrinking, lanczos when enlarging unless given",
        choices=INTERPOLATIONS,
    )  # fmt: skip
    cache_info: bool = key_flag("cache_info", "remember the sizes of pictures in each folder")
    debug_dataset: bool = flag(
        False, "show what the dataset gives and exit",
        refused="tools/preview_buckets.py shows it, with the same arguments",
    )  # fmt: skip
    max_data_loader_n_workers: int = flag(
        4,
        "most threads that decode pictures ahead of the training (sd-scripts: processes); one reads "
        "ahead when latents are cached; 0: nothing is loaded ahead",
        check=at_least(0),
        idle=(ONE_READER,),
    )
    persistent_data_loader_workers: bool = flag(
        False,
        "keep sd-scripts' worker processes between epochs",
        ignored="pictures are decoded by threads of the trainer, which are never started anew",
    )
    train_data_dir: str | None = flag(
        None,
        "folder of <repeats>_<class> folders, where there is no dataset_config",
        idle=(FILE_OF_DATASETS,), path=True)
    reg_data_dir: str | None = flag(
        None, "the same, of regularisation pictures", idle=(FILE_OF_DATASETS,), path=True)
    in_json: str | None = flag(
        None,
        "metadata file of captions, with the pictures in train_data_dir",
        idle=(FILE_OF_DATASETS,), path=True)
    dataset_class: str | None = key_flag(
        "dataset_class", "module.Class of your own that names pictures and captions; see docs/config_README.md"
    )
    color_aug: bool = key_flag(
        "color_aug", "change hue or brightness a little at random; not with cache_latents"
    )
    random_crop: bool = key_flag("random_crop", "crop at random; not with cache_latents")
    face_crop_aug_range: str | None = key_flag(
        "face_crop_aug_range",
        "min,max: crop around the face that a file name ending in _x_y_w_h tells of, the short side "
        "so many times the face; not with cache_latents",
    )  # fmt: skip
    alpha_mask: bool = key_flag("alpha_mask", "use transparency as loss mask")
    conditioning_data_dir: str | None = key_flag(
        "conditioning_data_dir", "folder of loss masks, with masked_loss", path=True
    )
    skip_image_resolution: str | None = key_flag(
        "skip_image_resolution",
        "leave out pictures of up to this many pixels, width times height", read=size
    )
    weighted_captions: bool = flag(
        False,
        "read (tag:1.3) and (tag) in captions as weights, as ComfyUI does in prompts; \\( and \\) are "
        "parentheses either way; off: they are letters",
    )
