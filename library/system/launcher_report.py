"""The user's error as the last words of torchrun and accelerate launch.

What the processes say is followed by the launcher's own traceback and a summary, which ends with the
error that came first, if its process left it in a file. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def is_told_here(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one to tell an error; it is left for the launcher then.

    Of the processes that a launcher started on this computer the first to have the error tells it.
    """
    place = environment.get(ERROR_FILE_VARIABLE, "")
    file = Path(place)
    if not place or place == os.devnull or not file.parent.is_dir():
        return True
    mark = file.parent.parent / f"told-{hashlib.sha256(_bytes(text)).hexdigest()[:16]}"
    try:
        with open(mark, "x"):
            pass
    except FileExistsError:
        return False
    except OSError:
        return True  # nothing can be left for others: better told twice
    # A second earlier than the others, who end without a word: the launcher compares whole seconds.
    content = {"message": text, "extraInfo": {"timestamp": str(int(time.time()) - 1)}}
    with suppress(OSError):  # it is told on standard error in any case
        file.write_bytes(_bytes(json.dumps({"message": content})))
    return True


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
