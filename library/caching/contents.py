"""What files hold, by hash: caches follow content, not names, times or places.

A hash is remembered in a folder's `_cache/contents.json`, beside what the system says of its file: size,
times and number (inode). As long as all of these are the same the file is taken for unchanged, also after
two files of one size and time have exchanged their names. Otherwise it is read again, which is quick.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from library.caching.cache_files import DELAY, THREADS
from library.data.picture_folders import CACHE_FOLDER
from library.system.text_files import json_text
from library.utils import atomic_write, file_facts, is_quiet, sha256_of_file, threads

logger = logging.getLogger(__name__)

MEMORY = "contents.json"
FRESH = 2e9  # ns: a file younger than that can change once more without its time telling


def quick_hash(path: str | Path) -> str:
    """32 hex digits of a file's bytes; as fast as a disk gives them."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class Contents:
    """Hashes of files, each computed once; any thread may ask."""

    def __init__(self) -> None:
        self.found: dict[str, list] = {}  # by full path, of this process: [*facts, hash]
        self.memories: dict[Path, dict[str, list]] = {}  # by folder and name, as written there
        self.changed: set[Path] = set()
        self.lock = threading.Lock()
        self.turns: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def hash_of(
        self, path: Path, home: Path | None, digest: Callable[[Path], str] = quick_hash
    ) -> str:
        """The digest of a file, remembered in the folder `home`, if any. Raises OSError."""
        full = os.path.abspath(path)
        name = path.name if path.parent == home else full
        with self.lock:
            turn, memory = self.turns[full], self.memory_of(home)
        with turn:
            facts = file_facts(path)
            for known in (self.found.get(full), memory.get(name)):
                if known and known[:-1] == facts:
                    return known[-1]
            found = self.found[full] = [*facts, digest(path)]
        if home and time.time_ns() - facts[1] > FRESH and file_facts(path) == facts:
            with self.lock:
                memory[name] = found
                self.changed.add(home)
        return found[-1]

    def hash_of_model(self, path: Path, home: Path | None) -> str:
        """sha256 of a file; of a folder, the names and hashes of its files that are not hidden."""
        if not path.is_dir():
            return self.hash_of(path, home, sha256_of_file)
        files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
        return " ".join(f"{f.name} {self.hash_of(f, home, sha256_of_file)}" for f in files)

    def read_all(self, paths: Iterable[Path]) -> None:
        """Make the hashes of many pictures known, each remembered in its own folder."""
        every = list(dict.fromkeys(paths))
        with threads(THREADS) as pool:
            found = pool.map(lambda path: self.hash_of(path, path.parent), every)
            for _ in tqdm(
                found, "comparing pictures", len(every), unit="file", delay=DELAY, disable=is_quiet()
            ):
                pass

    def memory_of(self, home: Path | None) -> dict[str, list]:
        """What a folder remembers."""
        if home is None:
            return {}
        if home not in self.memories:
            self.memories[home] = read_memory(home / CACHE_FOLDER / MEMORY)
        return self.memories[home]

    def remember(self) -> None:
        """Write down what is new, for later runs."""
        with self.lock:
            for home in self.changed:
                write_memory(home, self.memories[home])
            self.changed.clear()


def read_memory(path: Path) -> dict[str, list]:
    """Name -> [size, changed, made, number, hash]; nothing of a file that says anything else."""
    try:
        memory = json.loads(path.read_bytes())
        return {name: known for name, known in memory.items() if isinstance(known[-1], str)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        logger.warning("%s cannot be used; the files it tells of are read again.", path)
        return {}


def write_memory(home: Path, memory: dict[str, list]) -> None:
    """What is known of files that are still there."""
    path = home / CACHE_FOLDER / MEMORY
    there = {name: known for name, known in memory.items() if os.path.isfile(home / name)}
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path, sync=False) as temporary:
            temporary.write_text(json_text(there), encoding="utf-8")
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the next run reads these files again.", path, error.strerror
        )
