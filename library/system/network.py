"""Whether a server answers at all: libraries try for minutes before they give up."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

CONNECT_TIMEOUT = 5  # seconds


def why_unreachable(address: str) -> str | None:
    """Why the server of an http address cannot be reached; None where it can, or behind a proxy."""
    url = urlsplit(address)
    if getproxies().get(url.scheme) and not proxy_bypass(url.hostname or ""):
        return None
    port = url.port or {"https": 443, "http": 80}[url.scheme]
    found: list[str] = []

    def connect() -> None:  # in a thread, since looking up a name has no time limit
        try:
            socket.create_connection((url.hostname, port), timeout=CONNECT_TIMEOUT).close()
            found.append("")
        except OSError as error:
            found.append(str(error))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    reason = (found or [f"no answer within {CONNECT_TIMEOUT} s"])[0]
    return f"{url.hostname} cannot be reached ({reason})." if reason else None
