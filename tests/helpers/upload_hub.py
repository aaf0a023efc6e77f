"""Hugging Face on loopback: as much of its HTTP as is used to write to a repository and to list it."""

from __future__ import annotations

import base64
import hashlib
import json
from urllib.parse import unquote, urlsplit

from tests.helpers.hubs import Handler, Hub

SHA = "a" * 40
TOKEN = "hf_secretsecret"


class UploadHub(Hub):
    """Repositories that a token may write to.

    private: of each repository; names are "user/name" of models, "datasets/user/name" of data sets
    writes:  whether the token may write
    broken:  commits that fail, from here on
    commits: the first lines of those that were made
    """

    def __init__(self, private: dict[str, bool], *, writes: bool = True) -> None:
        super().__init__({})
        self.private = private
        self.writes = writes
        self.broken = 0
        self.commits: list[str] = []
        self.blobs: dict[str, bytes] = {}

    @property
    def repos(self) -> set[str]:
        return set(self.private)


class UploadHandler(Handler):
    hub: UploadHub

    def answer(self, with_body: bool) -> None:
        parts = self.parts()
        if parts[:1] == ["api"]:
            self.hub.requests.append(self.path)
            return self.api(parts[1:])
        return super().answer(with_body)

    def do_POST(self) -> None:
        self.hub.requests.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.parts()
        if not self.may_write():
            return
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            prefix = "" if asked.get("type", "model") == "model" else f"{asked['type']}s/"
            name = f"{prefix}{asked['organization']}/{asked['name']}"
            self.hub.private[name] = asked["visibility"] == "private"
            return self.json({"url": f"{self.hub.url}/{name}", "name": name})
        if parts[-3:] == ["lfs", "objects", "batch"]:
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.json({"transfer": "basic", "objects": objects})
        if parts[4] == "preupload":
            modes = [
                {"path": each["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                for each in json.loads(body)["files"]
            ]  # fmt: skip
            return self.json({"files": modes})
        return self.commit(self.repo_of(parts[1:]), body)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.blobs[hashlib.sha256(content).hexdigest()] = content
        self.empty(200)

    def commit(self, repo: str, body: bytes) -> None:
        if self.hub.broken:
            self.hub.broken -= 1
            return self.empty(500, X_Error_Message=f"out of order, {self.headers['Authorization']}")
        head, *lines = (json.loads(line) for line in body.splitlines())
        for line in lines:
            value = line["value"]
            stored = self.hub.blobs.get(value.get("oid"))
            content = base64.b64decode(value["content"]) if stored is None else stored
            self.hub.files[f"{repo}/{value['path']}"] = content
        self.hub.commits.append(head["value"]["summary"])
        self.json({"commitUrl": f"{self.hub.url}/{repo}/commit/{SHA}", "commitOid": SHA})

    def api(self, parts: list[str]) -> None:
        if not self.is_known():
            return
        if parts == ["whoami-v2"]:
            return self.json({"name": "me", "type": "user", "orgs": [{"name": "team"}]})
        repo, rest = self.repo_of(parts), parts[3:]
        if repo not in self.hub.repos:
            return self.empty(404, X_Error_Code="RepoNotFound")
        if rest[:1] == ["auth-check"]:
            self.empty(200) if self.hub.writes else self.empty(403)
        elif rest[:1] == ["tree"]:
            inside = {n.removeprefix(f"{repo}/"): c for n, c in self.hub.files.items() if n.startswith(repo)}
            self.json([
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in inside.items()
            ])  # fmt: skip
        else:
            facts = {"id": repo, "sha": SHA, "private": self.hub.private[repo], "siblings": [], "tags": []}
            self.json(facts)

    def is_known(self) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not known:
            self.empty(401, X_Error_Message="Invalid username or password.")
        return known

    def may_write(self) -> bool:
        if self.is_known() and not self.hub.writes:
            self.empty(403)
        return self.is_known() and self.hub.writes

    def parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.split("/") if part]

    @staticmethod
    def repo_of(parts: list[str]) -> str:
        """Of ["models", user, name, ...]."""
        name = "/".join(parts[1:3])
        return name if parts[0] == "models" else f"{parts[0]}/{name}"

    def json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
