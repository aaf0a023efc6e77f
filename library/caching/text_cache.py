"""Text encoder outputs by caption, made once per text; in memory or on disk.

On disk, `_cache` keeps the texts that later runs may want. The others go to a file without a name,
which vanishes with the process however it ends.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from tqdm import tqdm

from library.caching.cache_files import (
    DELAY,
    CacheFile,
    CacheStatus,
    Foreign,
    StoredItem,
    TakenOver,
    Tally,
    UnfitFile,
    check_writable,
    copy_foreign,
    fingerprint,
    name_hash,
    parse,
)
from library.caching.contents import Contents
from library.caching.latents_cache import ONLY_PROCESS, Share
from library.caching.text_batches import ChangesTexts, TextBatches
from library.data.data_types import TextOutputs
from library.data.picture_folders import CACHE_FOLDER
from library.errors import DatasetError
from library.utils import is_quiet

if TYPE_CHECKING:
    from library.strategy_base import TextEncoderOutputsCachingStrategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForeignText(Foreign):
    """A caption's outputs in another trainer's file beside a picture."""

    strategy: TextEncoderOutputsCachingStrategy
    picture: Path
    caption: str

    def unpack(self) -> TextOutputs:
        outputs = self.strategy.read_foreign(self.picture, self.caption)
        if outputs is None:
            raise UnfitFile(f"{self.picture}: the file with its caption's outputs is gone.")
        return outputs


class Scratch:
    """Outputs by caption in a file without a name in `folder`, gone with the process."""

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  lives as long as the window
        self.lock = threading.Lock()  # batches are made on other threads
        self.places: dict[str, tuple[int, int]] = {}

    def __contains__(self, caption: str) -> bool:
        return caption in self.places

    def __len__(self) -> int:
        return len(self.places)

    def __setitem__(self, caption: str, outputs: TextOutputs) -> None:
        content = save(dict(outputs))
        try:
            with self.lock:
                start = self.file.seek(0, os.SEEK_END)
                self.file.write(content)
                self.file.flush()
        except OSError as error:
            raise DatasetError(f"cached captions cannot be written ({error.strerror}).") from error
        self.places[caption] = start, len(content)

    def __getitem__(self, caption: str) -> TextOutputs:
        start, length = self.places[caption]
        with self.lock:
            self.file.seek(start)
            content = self.file.read(length)
        return parse(bytearray(content))


class TextCache:
    """Outputs by caption: of the captions at hand; `hold` says which those are.

    batches: which captions are encoded together; None: each alone
    """

    def __init__(
        self,
        strategy: TextEncoderOutputsCachingStrategy,
        *,
        to_disk: bool,
        skip_check: bool = False,
        contents: Contents | None = None,
        batches: TextBatches | None = None,
    ) -> None:
        self.strategy = strategy
        self.batches = batches or TextBatches(strategy)
        self.to_disk = to_disk
        self.skip_check = skip_check
        self.contents = contents or Contents()
        self.held: dict[str, TextOutputs] | Scratch = {}
        self.stored: dict[str, StoredItem] = {}
        self.intact: set[str] = set()  # read before and found whole
        self.more_to_come = False
        self.captions: tuple[str, ...] = ()
        self.change: ChangesTexts | None = None
        self.changes = self.batches  # which captions are changed together
        self.changed: set[str] = set()  # captions whose outputs are held as `change` made them

    def get(self, caption: str, *, rebuild: bool = True) -> TextOutputs:
        """The encoder's outputs. What is damaged or lost on disk is made anew, as it was.

        Without `rebuild` nothing is encoded: raises UnfitFile.
        """
        if caption in self.held:
            return self.held[caption]
        try:
            if caption not in self.stored:
                raise UnfitFile(f"{caption!r} was not foreseen.")
            outputs = self.stored[caption].read(check=caption not in self.intact)
        except UnfitFile as error:
            if not rebuild:
                raise
            if caption not in self.stored:
                return self.encode_late(caption)
            outputs = self.rebuild(caption, error)
        self.intact.add(caption)
        return outputs

    def encode_late(self, caption: str) -> TextOutputs:
        """A text that `hold` was not told of: right, but slow."""
        logger.warning("encoded while it is waited for, since it was not foreseen: %r", caption)
        outputs = self.encode(caption)
        self.held[caption] = self.changed_batch({caption: outputs})[caption]
        self.strategy.rest()
        return self.held[caption]

    def rebuild(self, caption: str, error: UnfitFile) -> TextOutputs:
        """Encode one text again. Kept aside when its file now serves another run."""
        logger.warning("%s It is made anew.", error)
        outputs = self.encode(caption)
        self.put_away()
        source = self.stored[caption]
        if isinstance(source, CacheFile) and not isinstance(error, TakenOver):
            source.write(outputs)
        else:
            self.held[caption] = outputs
        return outputs

    def encode(self, caption: str) -> TextOutputs:
        return self.encode_batch([caption])[caption]

    def encode_batch(self, batch: Sequence[str]) -> dict[str, TextOutputs]:
        """By caption, of one of the batches that captions are arranged in."""
        made: dict[str, TextOutputs] = {}
        for caption, encoded in self.batches.run(batch, self.strategy.encode_together).items():
            outputs = {name: tensor.detach().cpu().contiguous() for name, tensor in encoded.items()}
            if not all(torch.isfinite(t).all() for t in outputs.values() if t.is_floating_point()):
                message = f"the text encoder gives NaN or infinite outputs for {caption!r}."
                raise DatasetError(message)
            made[caption] = outputs
        return made

    def hold_changed(self, change: ChangesTexts) -> int:
        """From now on `get` gives what `change` makes of a caption's outputs; returns how many were made.

        Of the captions at hand each is made once, here, as many together as are encoded together. Files
        keep the outputs as they were.
        """
        if change != self.change:
            together = self.batches.most, self.batches.first
            self.change, self.changes = change, TextBatches(change, *together)
        due = [caption for caption in self.captions if caption not in self.changed]
        for batch in self.changes.arrange(due):
            made = self.changed_batch({caption: self.get(caption) for caption in batch})
            for caption in batch:
                self.held[caption] = made[caption]
            self.changed.update(batch)
        return len(due)

    def changed_batch(self, outputs: Mapping[str, TextOutputs]) -> Mapping[str, TextOutputs]:
        """By caption, what the change makes of them, if there is one."""
        if self.change is None:
            return outputs
        make = self.change.make
        return self.changes.run(tuple(outputs), lambda texts: make([outputs[text] for text in texts]))

    def put_away(self) -> None:
        """Free the device of the encoder; it stays in the host's memory while more is to come."""
        if self.more_to_come:
            self.strategy.rest()
        else:
            self.strategy.free()

    def hold(
        self,
        captions: Mapping[str, Path],
        *,
        lasting: Collection[str] | None = None,
        pictures: Mapping[str, Sequence[Path]] | None = None,
        more_to_come: bool = False,
        share: Share = ONLY_PROCESS,
    ) -> None:
        """Make these captions ready, each text once, and let all others go.

        captions: text -> the folder its file goes to
        lasting:  on disk, the texts that `_cache` may keep, all when None; the others go to a scratch
        pictures: text -> pictures that always have it, beside which another trainer may have stored it
        share:    of what lasts on disk; the processes hold the same captions, and have all after it

        Raises DatasetError naming a caption without finite outputs, or a folder that cannot be written.
        """
        tally = Tally("captions")
        self.captions = tuple(captions)
        self.more_to_come = more_to_come
        files = self.files_of(captions) if self.to_disk else {}
        self.stored = self.find(files, pictures or {}, tally)
        self.intact &= self.stored.keys()
        missing = [text for text in captions if text not in self.stored]
        lasts = set(missing if lasting is None else lasting) & files.keys()
        self.carry_over({t: captions[t] for t in missing if t not in lasts}, tally)
        due = [text for text in missing if text not in self.held]
        check_writable(files[text].path.parent.parent for text in due if text in lasts)
        share.wait()  # before anything is stored: all shall find the same to be missing
        self.encode_due(due, {text: files[text] for text in lasts}, share)
        copy_foreign(share.of([each for each in self.stored.values() if isinstance(each, Foreign)]))
        share.wait()
        if share.rank == 0:
            self.contents.remember()
        self.put_away()
        tally.encoded = len(due)
        tally.log()

    def encode_due(
        self, due: Sequence[str], files: Mapping[str, CacheFile], share: Share
    ) -> None:
        """Encode and keep what is due: of the texts that have files this process's share."""
        shared = [text for text in due if text in files]
        own = [text for text in due if text not in files]
        arrange = self.batches.arrange
        self.encode_all([*share.of(arrange(shared)), *arrange(own)], files)
        self.stored |= {text: files[text] for text in shared}

    def encode_all(self, batches: Sequence[list[str]], files: Mapping[str, CacheFile]) -> None:
        """Encode texts and keep them, batch by batch: in their files, those without one at hand."""
        count, off = sum(map(len, batches)), is_quiet() or not batches
        with tqdm(total=count, desc="caching captions", unit="caption", disable=off) as bar:
            for batch in batches:
                for text, outputs in self.encode_batch(batch).items():
                    if text in files:
                        files[text].write(outputs)
                    else:
                        self.held[text] = outputs
                bar.update(len(batch))

    def files_of(self, captions: Mapping[str, Path]) -> dict[str, CacheFile]:
        """Each text's file: a valid one in any of the folders, else one to replace, else a new one.

        Which picture a text is met with first, and so its folder, can change from run to run.
        """
        listed: dict[str, list[Path]] = {}
        for folder in dict.fromkeys(captions.values()):
            for path in (folder / CACHE_FOLDER).glob("text_*.safetensors"):
                listed.setdefault(path.name, []).append(folder)
        files = {}
        for text, folder in captions.items():
            new = self.file_of(text, folder)
            there = [self.file_of(text, place) for place in listed.get(new.path.name, ())]
            valid = (file for file in there if len(there) == 1 or file.is_valid())
            files[text] = next(valid, there[0] if there else new)
        return files

    def file_of(self, caption: str, folder: Path) -> CacheFile:
        return text_file(caption, folder, self.strategy, self.skip_check)

    def find(
        self,
        files: Mapping[str, CacheFile],
        pictures: Mapping[str, Sequence[Path]],
        tally: Tally,
    ) -> dict[str, StoredItem]:
        """The texts that are stored validly: in our file or another trainer's."""
        found: dict[str, StoredItem] = {}
        for text, file in tqdm(files.items(), "checking captions", unit="file", delay=DELAY):
            status = file.status()
            if status is CacheStatus.VALID:
                found[text] = file
            elif foreign := self.find_foreign(text, file, pictures.get(text, ()), tally):
                found[text], status = foreign, CacheStatus.FOREIGN
            tally.found[status] += 1
        return found

    def find_foreign(
        self, caption: str, file: CacheFile, pictures: Sequence[Path], tally: Tally
    ) -> ForeignText | None:
        """The first file of another trainer that holds this caption's outputs."""
        for picture in pictures:
            theirs = self.strategy.foreign_file(picture)
            if theirs is None:
                continue
            content = self.contents.hash_of(theirs, theirs.parent)
            wanted = fingerprint("copied text", content, caption, self.strategy.identity)
            found = ForeignText(replace(file, fingerprint=wanted), self.strategy, picture, caption)
            try:
                if not found.copy.is_valid():
                    found.unpack()
                return found
            except UnfitFile as error:
                tally.unfit.append(str(error))
        return None

    def carry_over(self, wanted: Mapping[str, Path], tally: Tally) -> None:
        """Let go what is held and not wanted any more. wanted: text -> a folder with room for it."""
        held: dict[str, TextOutputs] | Scratch = {}
        if self.to_disk and wanted:
            folder = next(iter(wanted.values()))
            check_writable([folder])
            held = Scratch(folder / CACHE_FOLDER)
        for text in wanted:
            if text in self.held:
                held[text] = self.held[text]
        tally.kept += len(held)
        self.held = held
        self.changed = {text for text in self.changed if text in held}


def text_file(
    caption: str, folder: Path, strategy: TextEncoderOutputsCachingStrategy, trust: bool = False
) -> CacheFile:
    wanted = fingerprint("text", caption, strategy.identity)
    return CacheFile(text_path(caption, folder), wanted, strategy.layout, trust)


def text_path(caption: str, folder: Path) -> Path:
    """Named by the text alone, so that another encoder replaces the file instead of adding one."""
    return Path(folder) / CACHE_FOLDER / f"text_{name_hash('text', caption)}.safetensors"
