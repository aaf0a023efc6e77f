"""Every place that a run writes to, tried before anything heavy; nothing is left behind."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from library.errors import Problem, UserError
from library.saving.checkpoints import Checkpoints
from library.saving.metadata import thumbnail
from library.saving.state_folder import longest_path
from library.system.system_errors import system_fault
from library.watching.trackers import longest_log_path

if TYPE_CHECKING:
    from library.settings.flags.logging import LoggingOptions
    from library.settings.run_config import TrainConfig

MOST_STEPS = 10**8 - 1  # more would lengthen the names of step files
TRIAL_BYTES = bytes(4096)  # an empty file fits on a disk that is full


def check_outputs(cfg: TrainConfig) -> list[Problem]:
    """What the run could not write or put into its files, told by the option that asks for it."""
    checkpoints = Checkpoints(cfg.save, epochs=1)
    longest = longest_path(checkpoints.state_folder(checkpoints.step_file(MOST_STEPS)))
    problems = tried(longest, f"output_dir = {cfg.save.output_dir}")
    logs = longest_log_path(cfg.logging, cfg.save.output_dir, cfg.save.output_name)
    folder = checkpoints.folder
    if logs and not (problems and folder in logs.parents):  # else the same is said twice
        problems += tried(logs, f"logging_dir = {cfg.logging.logging_dir or folder / 'logs'}")
    if not cfg.metadata.problems():
        try:
            thumbnail(cfg.metadata.metadata_thumbnail)
        except UserError as error:
            problems += error.problems
    return problems


def check_console_log(options: LoggingOptions) -> list[Problem]:
    """Whether --console_log_file can be written to; one that is there keeps its lines."""
    file = options.console_log_file
    if (
        not file or os.environ.get("RANK", "0") != "0"
    ):  # one process tries: it removes what it makes
        return []
    if not os.path.isfile(file):
        return tried(Path(file), f"console_log_file = {file}", makes_folders=False)
    try:
        with open(file, "ab"):
            return []
    except OSError as error:
        return [_problem(error, Path(file), f"console_log_file = {file}")]


def tried(path: Path, where: str, *, makes_folders: bool = True) -> list[Problem]:
    """What keeps a new file from being written at `path`; what is made to find out is removed."""
    made: list[Path] = []
    try:
        missing = [each for each in path.parents if not os.path.lexists(each)]
        for folder in reversed(missing) if makes_folders else ():
            folder.mkdir()
            made.append(folder)
        with open(path, "xb") as file:
            made.append(path)
            file.write(TRIAL_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        return [_problem(error, path, where)]
    finally:
        for each in reversed(made):
            with contextlib.suppress(OSError):  # another run has put something there meanwhile
                os.unlink(each) if each == path else os.rmdir(each)
    return []


def _problem(error: Exception, path: Path, where: str) -> Problem:
    above = next((each for each in path.parents if os.path.lexists(each)), path)
    if not os.path.isdir(above):
        return Problem(f"{above} is a file, expected a folder.", where)
    fault = system_fault(error)
    if fault is None:
        return Problem(f"no file can have this name ({error}).", where)
    name = getattr(error, "filename", None) or path
    return Problem(f"{name} cannot be written ({fault.words}). {fault.advice(path)}", where)
