"""library.anima_runtime.hub_download, where every pause between tries is a thousandth of what it was.

python -m tests.helpers.hurried_download REQUEST
"""

import sys
import time
from threading import Event

from library.anima_runtime import hub_download

FASTER = 1000
sleep, wait = time.sleep, Event.wait


def hurry() -> None:
    """Both libraries pause by these two, and so do we; how long an answer may take is not touched."""
    time.sleep = lambda seconds: sleep(seconds / FASTER)
    Event.wait = lambda event, timeout=None: wait(event, timeout and timeout / FASTER)


if __name__ == "__main__":
    hurry()
    sys.exit(hub_download.main())
