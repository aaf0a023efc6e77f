"""Small helpers that need the standard library only (and tqdm, whose bars messages must not break)."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import logging
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from library.errors import UserError, visible
from library.system.files import remove_folder, replace_file

logger = logging.getLogger(__name__)

HANDLER = "the program's own messages"


class ConsoleHandler(logging.StreamHandler):
    """Messages on standard error, above a progress bar that is being drawn there."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


class VisibleFormatter(logging.Formatter):
    """Lines that any terminal and any file takes, whatever the names in them are made of."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n\t")


class LogFile(logging.FileHandler):
    """Messages in a file; when it cannot be written any more they go to standard error, said once."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.path.lexists(self.baseFilename):
            super().emit(record)
        else:
            self.give_up(record, "it is gone")

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.give_up(record, str(error))
        else:
            super().handleError(record)

    def give_up(self, record: logging.LogRecord, reason: str) -> None:
        console = ConsoleHandler()
        console.setFormatter(self.formatter)
        console.name = HANDLER
        root = logging.getLogger()
        root.removeHandler(self)
        root.addHandler(console)
        logger.warning("%s: no more messages in it from here on (%s)", self.baseFilename, reason)
        console.handle(record)
        with contextlib.suppress(OSError):  # what it still held is lost with the disk
            self.close()


def setup_logging(level: str | None = None, file: str | None = None, simple: bool = False) -> None:
    """Send log lines to standard error, or to `file`; called once, by a program's main().

    level: a logging level's name, INFO when None. simple: the message alone.
    """
    template = "%(message)s" if simple else "%(asctime)s %(levelname)-7s %(message)s"
    try:
        handler = LogFile(file, encoding="utf-8") if file else ConsoleHandler()
    except (OSError, ValueError) as error:
        raise UserError(f"--console_log_file {file}: cannot be written ({error}).") from error
    handler.setFormatter(VisibleFormatter(template, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if h.name == HANDLER]:
        root.removeHandler(earlier)
    handler.name = HANDLER
    root.addHandler(handler)
    root.setLevel(level or "INFO")
    quiet_libraries()


def quiet_libraries() -> None:
    """Leave out what libraries say that no user can change."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its CPU kernels are not used here
    for name in ("httpx", "httpx2"):  # of huggingface_hub 1 and 2: a line for each request
        logging.getLogger(name).setLevel(logging.WARNING)


def is_quiet() -> bool:
    """Whether this process shows no progress: --console_log_level says so, or another process tells."""
    return not logging.getLogger().isEnabledFor(logging.INFO)


def log_lines(logger: logging.Logger, lines: Iterable[str], level: int = logging.INFO) -> None:
    for line in lines:
        logger.log(level, line)


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path near `path`; on success sync it and rename it to `path`.

    The file under the final name is always whole: the old one or the new one. On an error what is
    temporary is removed and the old file stays. It is in a folder of its own, where libraries may make
    temporary files in turn. sync False: faster, and after a power cut the file may have lost its content.
    """
    path = Path(path)
    folder = path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    temporary = folder / "new"
    try:
        folder.mkdir()
        yield temporary
        give_usual_permissions(temporary)
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        replace_file(temporary, path)
    finally:
        remove_folder(folder)


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; after an error, or Ctrl-C, what has not begun is left undone."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def sync_folder(path: str | Path) -> None:
    """Make the names in a folder durable, where the system has a way to ask for it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # shared folders know no such request
            raise
    finally:
        os.close(handle)


def give_usual_permissions(path: str | Path) -> None:
    """Let a file be read as any new file may be: safetensors writes for the owner alone.

    A disk that keeps no permissions, such as Windows' under WSL, refuses; the file is as good.
    """
    with contextlib.suppress(PermissionError):
        os.chmod(path, 0o666 & ~current_umask())


def current_umask() -> int:
    """The process's mask of permission bits; asking for it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def nearest_name(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` was probably meant to be, or None.

    Names of several words must be alike word by word: `lora_type` is no `loss_type`.
    """
    found = difflib.get_close_matches(name, list(candidates), n=5, cutoff=0.75)
    return next((each for each in found if _words_alike(name, each)), None)


def _words_alike(name: str, other: str) -> bool:
    """Whether each word of two names is alike; of names with other words, all letters together."""
    pairs = list(zip(name.split("_"), other.split("_")))
    if name.count("_") != other.count("_"):
        return _alikeness(name.replace("_", ""), other.replace("_", "")) >= 0.9
    return all(_alikeness(*pair) >= 0.6 for pair in pairs)


def _alikeness(one: str, other: str) -> float:
    """0 to 1: the share of letters that two words have in the same order."""
    return difflib.SequenceMatcher(None, one, other).ratio()


def first_few(names: Sequence[str], shown: int) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def position_seed(*position: int | str) -> int:
    """A seed in [0, 2**63) that is a function of the position alone, e.g. (seed, epoch, key).

    The same on every machine, process and Python version (hash() is not).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in position)
    digest = hashlib.blake2b(name_bytes(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def name_bytes(text: str) -> bytes:
    """The text as bytes to hash: UTF-8, and distinct bytes for a name that is not UTF-8 too."""
    return text.encode("utf-8", "surrogatepass")


def sha256_of_file(path: str | Path) -> str:
    """The hexadecimal sha256 of a file's contents."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def file_facts(path: str | Path) -> list[int]:
    """Size, times and number (inode) of a file: while they stay, it is taken for unchanged.

    Two files that exchange their names differ in the number, one that is written to in the last time.
    """
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
