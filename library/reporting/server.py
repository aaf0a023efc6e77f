"""The live page, served from the process that trains: to this machine alone, and to who has the token.

Threads of the standard library's server read the record; the loop never waits for them. The page hears
of changes by server-sent events. Two buttons write the files that a run looks for (see
library/saving/stopping.py); nothing else can be changed from here.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from library.errors import ConfigError, Problem
from library.reporting.page import page
from library.reporting.record import RunRecord
from library.reporting.settings import text
from library.saving.stopping import REQUEST_FILES

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
FIRST_PORT, PORTS_TRIED = 8765, 50
HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names by which this machine is asked, also through a tunnel; any other is a rebound name."""
TICK = 1.0
QUIET = 15.0
"""Seconds between looks at a run, and after which an event without news keeps a connection."""
SLOWEST = 30.0
MOST_READERS = 20
LAST_WAIT = 1.5
"""Seconds that the end of a run waits for readers to hear of it."""


@dataclass(frozen=True)
class Source:
    """What is served. folder: of the files that ask for something; step: updates done, at any moment"""

    record: RunRecord
    folder: Path
    step: Callable[[], int]


class LiveServer(ThreadingHTTPServer):
    """Serves a run's page until it is closed."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = sys.platform != "win32"  # there, it would share a port that is in use

    def __init__(self, port: int, source: Source) -> None:
        """Raises OSError where the port is in use."""
        self.source = source
        self.token = secrets.token_urlsafe(24)
        self.readers = threading.Semaphore(MOST_READERS)
        self.open_readers = 0
        self.is_over = False
        super().__init__((HOST, port), Handler)
        self.source.record.is_watched = True
        serve = threading.Thread(target=self.serve_forever, args=(0.1,), name="live page", daemon=True)
        serve.start()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def server_bind(self) -> None:
        """As of a plain server: http.server would ask for this machine's full name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that went away, or a request that is none, is no matter of the run."""
        logger.debug("live page: a request from %s failed", client_address)

    def close(self) -> None:
        """Let readers hear of the end for a moment, then stop."""
        self.is_over = True
        with self.source.record.lock:
            self.source.record.lock.notify_all()
        until = time.monotonic() + LAST_WAIT
        while self.open_readers and time.monotonic() < until:
            time.sleep(0.02)
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request. Its address is /<token>/<what>."""

    server: LiveServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "live", ""
    timeout = SLOWEST

    def do_GET(self) -> None:
        what = self.asked_for()
        if what == "":
            record = self.server.source.record
            blocks = {"record": record.document()}
            self.answer(page(record.outline.name, "run.js", blocks, live=True), "text/html")
        elif what == "events":
            self.send_events()
        elif what is not None:
            self.refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        what = self.asked_for()
        if what is None:
            return
        if what not in REQUEST_FILES:
            self.refuse(HTTPStatus.NOT_FOUND)
        elif not self.is_own(self.headers.get("Origin")):
            self.refuse(HTTPStatus.FORBIDDEN)
        else:
            self.ask(what)

    def asked_for(self) -> str | None:
        """What follows the token; None, answered already, where it is wrong or the name is not ours."""
        host = (self.headers.get("Host") or "").rpartition(":")
        name = host[0] if host[1] and host[2].isdecimal() else (self.headers.get("Host") or "")
        token, _, what = urlsplit(self.path).path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if name.lower() not in HOSTS or not known:
            self.refuse(HTTPStatus.FORBIDDEN)
            return None
        return what

    def is_own(self, origin: str | None) -> bool:
        """Whether a button was pressed on this page, and not on another site's."""
        return origin is None or origin == f"http://{self.headers.get('Host')}"

    def ask(self, name: str) -> None:
        """As the user does who makes a file of this name."""
        file = self.server.source.folder / name
        try:
            file.touch()
        except OSError as error:
            self.answer(json.dumps({"error": f"{text(str(file))}: {error.strerror}"}), "application/json")
            return
        logger.info("%s was asked for on the live page.", name)
        self.answer("{}", "application/json")

    def send_events(self) -> None:
        if not self.server.readers.acquire(blocking=False):
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.server.open_readers += 1
        try:
            self.head(HTTPStatus.OK, "text/event-stream", None)
            with contextlib.suppress(OSError):  # the reader went away
                self.follow()
        finally:
            self.server.open_readers -= 1
            self.server.readers.release()

    def follow(self) -> None:
        """Send what changes, until the end of the run or of the reader."""
        asked = parse_qs(urlsplit(self.path).query).get("after", [""])[0]
        asked = self.headers.get("Last-Event-ID") or asked
        version = int(asked) if asked.isascii() and asked.isdecimal() else -1
        source, said, at = self.server.source, "", time.monotonic()
        while True:
            is_over = self.server.is_over
            version, changes = source.record.changes_since(version, 0 if is_over else TICK)
            if changes is None:
                self.say("event: again\ndata: {}\n\n")
                return
            self.say("".join(f"data: {json.dumps(each, allow_nan=False)}\n\n" for each in changes))
            now = json.dumps(source.record.moment(source.step()), allow_nan=False)
            if changes or now != said or time.monotonic() - at > QUIET:
                self.say(f"id: {version}\nevent: moment\ndata: {now}\n\n")
                said, at = now, time.monotonic()
            if is_over:
                self.say("event: over\ndata: {}\n\n")
                return

    def say(self, events: str) -> None:
        if events:
            self.wfile.write(events.encode())

    def answer(self, content: str, kind: str) -> None:
        body = content.encode("utf-8", "replace")
        self.head(HTTPStatus.OK, kind, len(body))
        self.wfile.write(body)

    def refuse(self, status: HTTPStatus) -> None:
        body = f"{status.phrase}\n".encode()
        self.head(status, "text/plain", len(body))
        self.wfile.write(body)

    def head(self, status: HTTPStatus, kind: str, length: int | None) -> None:
        """Every answer ends its connection, so that what else a request holds is never read as one."""
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the token would stand in the log."""


def start(port: int | None, source: Source) -> LiveServer:
    """A server at the port, or at the first free one from 8765 on; raises ConfigError."""
    ports = [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED)
    for each in ports:
        try:
            server = LiveServer(each, source)
        except OSError:
            continue
        if not port and each != FIRST_PORT:
            logger.info("port %d is taken: the live page is at %d", FIRST_PORT, each)
        return server
    raise ConfigError(port_problem(port))


def port_problem(port: int | None) -> Problem:
    if port:
        message = f"port {port} is in use, or not allowed. Choose another, or --live without a number."
    else:
        message = f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} is free. Name one."
    return Problem(message, "live")


def check_port(port: int | None) -> list[Problem]:
    """Whether a port that was asked for by number can be had."""
    if not port:
        return []
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return [port_problem(port)]
    return []
