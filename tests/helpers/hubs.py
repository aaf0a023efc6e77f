"""Both hubs on loopback: as much of their HTTP as huggingface_hub and modelscope use for a file."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Hub:
    """A server with files by "repo/path"; trouble: what goes wrong for every file.

    trouble: "gated", "cut", "page", "slow", "broken", "flaky" (the first answer of each file fails)
    """

    def __init__(self, files: dict[str, bytes], trouble: str = "") -> None:
        self.files = files
        self.trouble = trouble
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.url = ""

    @property
    def repos(self) -> set[str]:
        return {"/".join(name.split("/")[:2]) for name in self.files}

    def requested(self) -> list[str]:
        return [
            request for request in self.requests if "/resolve/" in request or "FilePath" in request
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        hub = self.hub
        hub.requests.append(self.path)
        hub.tokens.add(self.headers.get("Authorization") or "")
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.split("/") if part]
        asked = parse_qs(url.query)
        if "FilePath" in asked:
            repo = "/".join(parts[3:5])
            return self.file(f"{repo}/{asked['FilePath'][0]}", repo, with_body)
        if "resolve" in parts[2:3]:
            return self.file("/".join([*parts[:2], *parts[4:]]), "/".join(parts[:2]), with_body)
        return self.empty(404)

    def empty(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def file(self, name: str, repo: str, with_body: bool) -> None:
        trouble = self.hub.trouble
        if repo not in self.hub.repos:
            return self.empty(404, X_Error_Code="RepoNotFound")
        if trouble == "gated":
            return self.empty(403, X_Error_Code="GatedRepo", X_Error_Message="ask for access")
        if trouble == "broken":
            return self.empty(500)
        if trouble == "slow":
            time.sleep(30)
        if name not in self.hub.files:
            return self.empty(404, X_Error_Code="EntryNotFound")
        if trouble == "flaky" and self.hub.requests.count(self.path) == 1:
            self.close_connection = True
            return self.connection.close()
        body = self.hub.files[name]
        if trouble == "page":
            body = b"<!DOCTYPE html><html>Sign in to continue</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if with_body:
            if trouble == "cut":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(body)
        return None


@contextmanager
def serve(hub: Hub, kind: type[Handler] = Handler):
    """The hub at hub.url while inside. kind: what answers for it"""
    handler = type("HubHandler", (kind,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
