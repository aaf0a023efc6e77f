"""Which texts a run needs when, and their encoder outputs window by window.

Which text a picture is trained with in which epoch is known ahead, so shuffling, dropout and
wildcards keep working with cached text. A run with more texts than are held at once is cut into
windows of whole epochs: the next one is encoded when the last one has been used up, and the text
encoder waits in the host's memory in between.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from library.caching.latents_cache import ONLY_PROCESS, Share
from library.caching.text_batches import ChangesTexts, TextBatches
from library.caching.text_cache import TextCache
from library.data.captions import CaptionRecipe
from library.data.data_types import SampleRequest, TextOutputs

if TYPE_CHECKING:
    from library.caching.contents import Contents
    from library.data.bucket_sampler import BucketBatchSampler
    from library.data.datasets import TrainDataset
    from library.settings.flags.cache import CacheOptions
    from library.strategy_base import (
        TextEncoderOutputsCachingStrategy,
        TextEncodingStrategy,
        TokenizeStrategy,
    )

logger = logging.getLogger(__name__)
SAME_EVERY_EPOCH = {  # parts of a recipe that do the same to a caption in every epoch
    "caption_separator", "keep_tokens", "keep_tokens_separator", "secondary_separator",
    "caption_prefix", "caption_suffix", "token_warmup_min", "class_tokens",
    "trigger_word", "caption_lines",  # but for "each"
    "caption_shares",  # of one form
}  # fmt: skip


@dataclass(frozen=True)
class RunTexts:
    """The texts that a run of `epochs` is trained with: known ahead, epoch by epoch.

    last_batches: how many of each rank's batches of the last epoch are used; all when None
    always:       further texts that every epoch needs, for validation
    """

    dataset: TrainDataset
    sampler: BucketBatchSampler
    epochs: int
    last_batches: int | None = None
    always: Mapping[str, Path] = field(default_factory=dict)

    def of_epoch(self, epoch: int, *, own: bool = False) -> dict[str, Path]:
        """Text -> the folder of a picture it belongs to. own: of this rank's batches alone."""
        end = self.last_batches if epoch == self.epochs - 1 else None
        batches: Iterable[list[SampleRequest]]
        if own:
            sampler = copy.copy(self.sampler)
            sampler.set_epoch(epoch)
            batches = itertools.islice(sampler, end)
        else:
            batches = self.sampler.batches(epoch)[: end and end * self.sampler.world_size]
        images, found = self.dataset.catalogue.images, dict(self.always)
        met: set[int] = set()  # pictures whose further repeats have no other text
        for batch in batches:
            for request in batch:
                if request.index in met:
                    continue
                if request.index in self.steady_pictures:
                    met.add(request.index)
                caption = self.dataset.caption_of(request)
                found.setdefault(caption, images[request.index].path.parent)
        return found

    @cached_property
    def steady(self) -> dict[str, list[Path]]:
        """Texts of pictures without sentences that have the same one in every epoch -> these pictures."""
        found: dict[str, list[Path]] = {}
        for index in sorted(self.steady_pictures):
            image = self.dataset.catalogue.images[index]
            if image.sentences is None:  # which other trainers' files know nothing of
                caption = self.dataset.caption_of(SampleRequest(index, 0, 0))
                found.setdefault(caption, []).append(image.path)
        return found

    @cached_property
    def steady_pictures(self) -> frozenset[int]:
        """Indices of the pictures that have the same text in every epoch and repeat."""
        images = enumerate(self.dataset.catalogue.images)
        return frozenset(index for index, image in images if is_steady(image.subset))

    @property
    def vary(self) -> bool:
        """Whether any picture's text depends on the epoch."""
        return len(self.steady_pictures) < len(self.dataset)

    def window(self, start: int, limit: int, *, own: bool = False) -> tuple[range, dict[str, Path]]:
        """As many epochs from `start` as have up to `limit` texts together, at least one."""
        stop = start + 1
        if not self.vary:  # a rank sees other pictures in the next epoch
            only = own and stop == self.epochs
            return range(start, self.epochs), self.of_epoch(start, own=only)
        texts = self.of_epoch(start, own=own)
        while stop < self.epochs:
            more = self.of_epoch(stop, own=own)
            new = more.keys() - texts.keys()
            if new and len(texts) + len(new) > limit:
                break
            texts = more | texts
            stop += 1
        return range(start, stop), texts


def is_steady(recipe: CaptionRecipe) -> bool:
    """Whether captions made by this recipe are the same in every epoch."""
    plain = CaptionRecipe()
    return recipe.use_of_lines != "each" and len(recipe.forms) == 1 and all(
        getattr(recipe, part.name) == getattr(plain, part.name)
        for part in fields(CaptionRecipe)
        if part.name not in SAME_EVERY_EPOCH
    )


class TextWindows:
    """The text outputs of the epoch at hand, encoded window by window.

    limit: how many texts are held at once; more only when a single epoch has more
    share: of the texts that all processes need and find on disk
    """

    def __init__(
        self, texts: RunTexts, cache: TextCache, limit: int, share: Share = ONLY_PROCESS
    ) -> None:
        self.texts = texts
        self.cache = cache
        self.limit = limit
        self.share = share
        self.window = range(0)

    @classmethod
    def make(
        cls,
        texts: RunTexts,
        strategy: TextEncoderOutputsCachingStrategy,
        options: CacheOptions,
        contents: Contents,
        share: Share,
    ) -> TextWindows:
        """As the flags ask; nothing is encoded yet."""
        to_disk, trust = options.cache_text_encoder_outputs_to_disk, options.skip_cache_check
        limit = options.text_cache_variants
        batches = TextBatches(
            strategy, options.captions_at_once, lambda: texts.window(0, limit)[1]
        )
        cache = TextCache(
            strategy, to_disk=to_disk, skip_check=trust, contents=contents, batches=batches
        )
        return cls(texts, cache, limit, share)

    def get(self, caption: str, *, rebuild: bool = True) -> TextOutputs:
        """The outputs of a caption of the epochs at hand, see TextCache.get."""
        return self.cache.get(caption, rebuild=rebuild)

    def prepare_epoch(self, epoch: int) -> None:
        """Make the texts of `epoch` (from 0) ready, and of those after it within the limit.

        Costs nothing when an earlier call has done it. Epochs may come in any order.
        """
        if epoch in self.window:
            return
        to_disk, epochs = self.cache.to_disk, self.texts.epochs
        # on disk the processes share the first window, or the only one; later texts are each one's own
        own = not to_disk or (epoch > 0 and self.texts.vary)
        self.window, captions = self.texts.window(epoch, self.limit, own=own)
        lasting = None
        if to_disk and epoch > 0:
            lasting = self.first_texts
        self.cache.hold(
            captions,
            lasting=lasting,
            pictures=self.texts.steady,
            more_to_come=self.window.stop < epochs,
            share=ONLY_PROCESS if own else self.share,
        )
        if len(self.window) < epochs:
            logger.info(
                "%d captions are ready, of epochs %d to %d of %d (--text_cache_variants %d)",
                len(captions), self.window.start + 1, self.window.stop, epochs, self.limit,
            )  # fmt: skip

    def hold_changed(self, change: ChangesTexts) -> int:
        """See TextCache.hold_changed; of the epochs at hand."""
        return self.cache.hold_changed(change)

    @cached_property
    def first_texts(self) -> frozenset[str]:
        """The texts of the run's first window, which lasts on disk for later runs."""
        return frozenset(self.texts.window(0, self.limit)[1])


class TextNow:
    """Text outputs that are not cached: encoded at every use, one at a time as a cache does.

    change: what else is made of each, as what TextWindows.hold_changed gets makes of several
    """

    def __init__(self, tokenize: TokenizeStrategy, encoding: TextEncodingStrategy) -> None:
        self.tokenize = tokenize
        self.encoding = encoding
        self.change: Callable[[TextOutputs], TextOutputs] | None = None

    def get(self, caption: str) -> TextOutputs:
        outputs = self.encoding.encode_tokens(self.tokenize.tokenize(caption))
        return outputs if self.change is None else self.change(outputs)

    def prepare_epoch(self, epoch: int) -> None:
        """Nothing has to be prepared."""
