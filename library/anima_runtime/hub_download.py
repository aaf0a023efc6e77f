"""Files of one repository, fetched in a process of its own, so that a time limit really ends it.

python -m library.anima_runtime.hub_download REQUEST, a JSON file: hub ("huggingface" or "modelscope"),
repo, revision, folders (of the repository, tried in order), files, target. Ends with code 0 when every
file that the repository has lies in `target`; else the last line on standard error is the reason.

The libraries do the fetching: endpoints, tokens, proxies, and trying again with growing pauses.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from operator import ne
from pathlib import Path
from typing import Any

RETRY_PAUSES = (0.5, 1.0)  # seconds


class Absent(Exception):
    """The repository has no such file."""


def from_huggingface(request: dict[str, Any], path: str, folder: str) -> str:
    """Fetch one file below `folder`; its place."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return hf_hub_download(
            request["repo"], path, revision=request["revision"], local_dir=folder
        )
    except LocalEntryNotFoundError as error:  # what it makes of a hub that cannot be reached
        raise (error.__cause__ or error) from error
    except EntryNotFoundError as error:
        raise Absent from error


def from_modelscope(request: dict[str, Any], path: str, folder: str) -> str:
    """Fetch one file below `folder`; its place."""
    from modelscope_hub.compat.file_download import model_file_download

    revision = request["revision"] or "master"
    try:
        return model_file_download(request["repo"], path, revision=revision, local_dir=folder)
    except Exception as error:
        if status_of(error) == 404:
            raise Absent from error
        raise


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of either library."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None) or getattr(error, "status_code", None)


def again(fetch: Callable[[], str]) -> str:
    """fetch(), tried again when the line broke: the libraries do so for answers, not for all breaks."""
    for pause in RETRY_PAUSES:
        try:
            return fetch()
        except Absent:
            raise
        except Exception as error:
            if status_of(error) is not None:
                raise
            time.sleep(pause)
    return fetch()


def fetch_all(request: dict[str, Any]) -> None:
    """Every file that is there, into `target`; the folder that had the first is tried first."""
    download = {"huggingface": from_huggingface, "modelscope": from_modelscope}[request["hub"]]
    folders = list(request["folders"])
    with tempfile.TemporaryDirectory(dir=request["target"]) as work:
        for name in request["files"]:
            for folder in folders:
                path = f"{folder}/{name}" if folder else name
                try:
                    came = again(partial(download, request, path, work))
                except Absent:
                    continue
                shutil.copyfile(came, Path(request["target"]) / name)
                folders.sort(key=partial(ne, folder))
                break


def describe(error: BaseException) -> str:
    """The kind of error and the start of what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def main() -> int:
    sys.excepthook = lambda kind, error, trace: print(describe(error), file=sys.stderr)
    fetch_all(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
