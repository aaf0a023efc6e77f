"""Step logs for TensorBoard, Weights & Biases and scripts.

One folder per run, <root>/<prefix><date and time>: event files in network_train/, the same numbers as
JSON lines in loss.jsonl. tensorboard and wandb are imported when they are used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from library.errors import ConfigError, Problem, as_utf8
from library.settings.user_classes import check_keywords, is_installed
from library.system.file_names import path_problem
from library.system.text_files import TextFileError, parse_toml, read_text
from library.watching.tensorboard_server import TensorBoardServer, free_port, start_server

if TYPE_CHECKING:
    import numpy

    from library.settings.flags.logging import LoggingOptions

logger = logging.getLogger(__name__)

LOG_WITH = {
    "none": (),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "all": ("tensorboard", "wandb"),
}
DEFAULT_TRACKER_NAME = "network_train"
SECRETS = frozenset({"wandb_api_key", "huggingface_token"})
LONGEST_PART = 120  # bytes
STEPS_FILE = "loss.jsonl"


class Writer(Protocol):
    """One destination of step logs. show: pictures by tag, (H, W, 3) uint8, where it can keep them."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def show(self, step: int, pictures: Mapping[str, numpy.ndarray]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Where a run's numbers go; without destinations every call does nothing.

    listener: hears every step's numbers too, whatever becomes of the destinations
    """

    def __init__(
        self,
        run_dir: Path | None = None,
        writers: tuple[Writer, ...] = (),
        server: TensorBoardServer | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.writers = writers
        self.server = server
        self.listener: Callable[[int, Mapping[str, float]], None] | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's numbers. A destination that fails is reported once: training goes on."""
        self._each(lambda writer: writer.write(step, values))
        if self.listener:
            self.listener(step, values)

    def show(self, step: int, pictures: Mapping[str, numpy.ndarray]) -> None:
        """Give pictures, (H, W, 3) uint8 by tag, to the destinations that keep some."""
        self._each(lambda writer: writer.show(step, pictures))

    def _each(self, act: Callable[[Writer], None]) -> None:
        is_there = self.run_dir and os.path.isdir(self.run_dir)  # is_dir() raises for lost shares
        if self.writers and not is_there:
            logger.warning("%s is gone: nothing is logged from here on", self.run_dir)
            self.writers = ()
        for writer in self.writers:
            try:
                act(writer)
            except OSError as error:
                name = type(writer).__name__
                logger.warning("%s: no more logs from here on (%s)", name, error)
                self.writers = tuple(each for each in self.writers if each is not writer)

    def describe(self) -> list[str]:
        """Lines that tell the user where the logs are."""
        if self.run_dir is None:
            return ["logs: none (--log_with none)"]
        if not self.writers:
            return []
        lines = [f"logs: {self.run_dir} (view with: tensorboard --logdir {self.run_dir.parent})"]
        return lines + ([f"TensorBoard: {self.server.url}"] if self.server else [])

    def close(self) -> None:
        """Finish the files and stop the server."""
        self._each(lambda writer: writer.close())
        if self.server:
            self.server.stop()
        self.writers, self.server = (), None


def create_trackers(
    options: LoggingOptions | None,
    *,
    output_dir: str | Path | None,
    output_name: str | None,
    config: Mapping[str, Any],
    now: datetime | None = None,
) -> Trackers:
    """The trackers that the options ask for; none at all for options None (processes but the first).

    config: the run's settings, written for --log_config. now: the time in the folder's name.
    Where nothing can be written any more the run goes on without logs, and that is told.
    """
    chosen = LOG_WITH[options.log_with or "tensorboard"] if options else ()
    if not (options and chosen):
        return Trackers()
    problems = check_logging(options)
    if problems:
        raise ConfigError(problems)
    root = log_root(options.logging_dir, output_dir)
    run_dir = root / run_name(options.log_prefix, output_name, now or datetime.now())
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return _open_trackers(options, chosen, root, run_dir, config)
    except OSError as error:
        logger.warning("%s: cannot be written, nothing is logged (%s)", run_dir, error)
        return Trackers(run_dir)


def _open_trackers(
    options: LoggingOptions,
    chosen: Collection[str],
    root: Path,
    run_dir: Path,
    config: Mapping[str, Any],
) -> Trackers:
    shown = {k: v for k, v in config.items() if k not in SECRETS} if options.log_config else {}
    settings = _tracker_settings(options)
    name = options.log_tracker_name or DEFAULT_TRACKER_NAME
    writers: list[Writer] = [JsonLines(run_dir / STEPS_FILE)]
    writes_events = as_utf8(str(run_dir)) == str(run_dir)
    if not writes_events and ("tensorboard" in chosen or options.auto_start_tensorboard):
        logger.warning(
            "TensorBoard takes no folder whose name is not UTF-8: %s gets no event files. loss.jsonl has "
            "the same numbers; choose another --logging_dir to see them as curves.", run_dir
        )  # fmt: skip
    if "tensorboard" in chosen and writes_events:
        writers.append(TensorBoard(run_dir / name, shown, settings.get("tensorboard", {})))
    if "wandb" in chosen:
        keywords = {"dir": str(run_dir), "config": shown, **settings.get("wandb", {})}
        if options.wandb_run_name:
            keywords["name"] = options.wandb_run_name
        writers.append(WeightsAndBiases(name, keywords, options.wandb_api_key))
    server = start_server(options, root, run_dir) if writes_events else None
    return Trackers(run_dir, tuple(writers), server)


def log_root(logging_dir: str | None, output_dir: str | Path | None) -> Path:
    """The folder of all runs' logs: --logging_dir, else <output_dir>/logs, else logs."""
    if logging_dir:
        return Path(logging_dir)
    return Path(output_dir or ".") / "logs"


def run_name(log_prefix: str | None, output_name: str | None, now: datetime) -> str:
    """<prefix><YYYYMMDD_HHMMSS_ffffff>; the prefix is log_prefix as it is, else <output_name>_."""
    prefix = log_prefix
    if prefix is None:
        prefix = f"{file_name_part(output_name)}_" if output_name else ""
    return prefix + now.strftime("%Y%m%d_%H%M%S_%f")


def file_name_part(text: str) -> str:
    """Text as part of a file name on any system: letters and digits of any script stay."""
    name = re.sub(r"[^\w.+-]+", "_", text).strip("._ ")
    return name.encode()[:LONGEST_PART].decode(errors="ignore") or "run"


def longest_log_path(
    options: LoggingOptions, output_dir: str | None, output_name: str | None
) -> Path | None:
    """The longest path that a run's logs need, or None when there are none."""
    chosen = LOG_WITH[options.log_with or "tensorboard"]
    if not chosen:
        return None
    run = run_name(options.log_prefix, output_name, datetime.now())
    folder = log_root(options.logging_dir, output_dir) / run
    if "tensorboard" not in chosen:
        return folder / STEPS_FILE
    events = f"events.out.tfevents.{0:010d}.{socket.gethostname()}.{os.getpid()}.0"
    return folder / (options.log_tracker_name or DEFAULT_TRACKER_NAME) / events


def check_logging(options: LoggingOptions) -> list[Problem]:
    """What is wrong with the logging options, found without importing a tracker."""
    problems = []
    chosen = LOG_WITH[options.log_with or "tensorboard"]
    wanted = {*chosen, *(["tensorboard"] if options.auto_start_tensorboard else [])}
    for package in sorted(wanted):
        if not is_installed(package):
            message = f"{package} is not installed. Run: pip install {package}"
            problems.append(Problem(message, source="--log_with"))
    problems += _name_problems(options, chosen)
    try:
        settings = _tracker_settings(options)
    except ConfigError as error:
        return problems + list(error.problems)
    for name in settings:
        if name not in LOG_WITH["all"] or not isinstance(settings[name], dict):
            message = "expected tables [tensorboard] and [wandb] of arguments, nothing else."
            problems.append(Problem(message, name, options.log_tracker_config or ""))
    if not problems:
        problems += _tried_tensorboard(options, settings.get("tensorboard", {}))
    return problems


def _tried_tensorboard(options: LoggingOptions, keywords: Mapping[str, Any]) -> list[Problem]:
    """What TensorBoard says to further arguments and to its address, before a run needs it."""
    problems: list[Problem] = []
    if keywords and "tensorboard" in LOG_WITH[options.log_with or "tensorboard"]:
        try:
            with tempfile.TemporaryDirectory() as folder:
                TensorBoard(Path(folder), {}, keywords).close()
        except ConfigError as error:
            problems += error.problems
        except Exception as error:  # noqa: BLE001  whatever it makes of the user's values
            message = f"TensorBoard does not take them ({type(error).__name__}: {error})."
            problems.append(Problem(message, "[tensorboard]", options.log_tracker_config or ""))
    if options.auto_start_tensorboard:
        try:
            free_port(options.tensorboard_host, options.tensorboard_port)
        except ConfigError as error:
            problems += error.problems
        if os.path.isfile(options.tensorboard_logdir or ""):
            message = "is a file, expected the folder of logs to show."
            problems.append(Problem(message, f"tensorboard_logdir = {options.tensorboard_logdir}"))
    return problems


def _name_problems(options: LoggingOptions, chosen: Collection[str]) -> list[Problem]:
    """What speaks against the names of the folders that the options give."""
    prefix, name = options.log_prefix if chosen else None, options.log_tracker_name
    wrong = {"log_prefix": prefix and path_problem(prefix, is_start=True)}
    wrong["log_tracker_name"] = path_problem(name) if name and "tensorboard" in chosen else None
    return [Problem(what, f"--{option}") for option, what in wrong.items() if what]


def _tracker_settings(options: LoggingOptions) -> dict[str, dict[str, Any]]:
    """Per tracker, further arguments from --log_tracker_config. Raises ConfigError."""
    if not options.log_tracker_config:
        return {}
    path = options.log_tracker_config
    try:
        return parse_toml(read_text(path))
    except (FileNotFoundError, TextFileError) as error:
        raise ConfigError(f"--log_tracker_config {path}: cannot be read ({error}).") from error


class JsonLines:
    """One JSON object per step, whole or not at all; what is not finite stands as NaN or Infinity."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        rest = (json.dumps({"step": step, **values}) + "\n").encode()
        begin = self.file.tell()
        try:
            while rest:  # a full disk takes a part first
                rest = rest[self.file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self.file.truncate(begin)
            raise

    def show(self, step: int, pictures: Mapping[str, numpy.ndarray]) -> None:
        """Numbers alone are kept."""

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Event files in `folder`; config as a text table. keywords: further ones of SummaryWriter."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], keywords: Mapping[str, Any]
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        own = {"self": "the trainer", "log_dir": "--logging_dir"}
        problems = check_keywords(SummaryWriter, keywords, "log_tracker_config", own)
        if problems:
            raise ConfigError(problems)
        self.hook, threading.excepthook = threading.excepthook, self.on_thread_error
        try:
            self.writer = SummaryWriter(str(folder), **{"flush_secs": 10, **keywords})
        except BaseException:
            threading.excepthook = self.hook
            raise
        if config:
            rows = [f"| {name} | {_cell(value)} |" for name, value in sorted(config.items())]
            self.writer.add_text("config", "\n".join(["| option | value |", "|---|---|", *rows]))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def show(self, step: int, pictures: Mapping[str, numpy.ndarray]) -> None:
        """Each tag becomes a row of pictures over the steps."""
        for tag, pixels in pictures.items():
            self.writer.add_image(tag, pixels, step, dataformats="HWC")

    def close(self) -> None:
        threading.excepthook = self.hook
        self.writer.close()

    def on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """SummaryWriter writes in a thread. What fails there, the next write raises, and is told."""
        if "Writer" not in type(args.thread).__name__:
            self.hook(args)


def _cell(value: Any) -> str:
    return as_utf8(str(value)).replace("|", "\\|").replace("\n", " ")


class WeightsAndBiases:
    """A run of the project `name`. keywords: of wandb.init."""

    def __init__(self, name: str, keywords: Mapping[str, Any], api_key: str | None) -> None:
        import wandb

        self.error = wandb.Error
        try:
            if api_key:
                wandb.login(key=api_key)
            self.run = wandb.init(**{"project": name, **keywords})
        except wandb.Error as error:
            message = (
                f"wandb does not start ({error}). Log in with: wandb login; or set the variable "
            )
            message += "WANDB_MODE=offline, or leave wandb out of --log_with."
            raise ConfigError(Problem(message, source="--log_with")) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._do(lambda: self.run.log(dict(values), step=step))

    def show(self, step: int, pictures: Mapping[str, numpy.ndarray]) -> None:
        import wandb

        shown = {tag: wandb.Image(pixels) for tag, pixels in pictures.items()}
        self._do(lambda: self.run.log(shown, step=step))

    def close(self) -> None:
        self._do(self.run.finish)

    def _do(self, act: Callable[[], object]) -> None:
        """A service that fails ends its logs, as a disk does, and not the run."""
        try:
            act()
        except self.error as error:
            raise OSError(str(error)) from error
