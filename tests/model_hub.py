"""A small model hub on loopback that answers as the real one does, headers included, and fails on request.

Weights lie on a second server, as on the real hub, to which the first one sends its callers on.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "5d1c09aa0f3a1c52e9b07d445d1c09aa0f3a1c52"
GOOD, STRANGER, WRONG = "hf_good0123456789", "hf_stranger0123456", "hf_wrong012345678"
"""Tokens: of an account that has accepted all terms, of one that has accepted none, and of nobody."""
LFS_BYTES = 100_000
"""Files from this size on are in large-file storage."""


@dataclass
class Repo:
    """A repository: its files, and who may have them. `promised` are hashes that the hub tells instead of the true."""

    files: dict[str, bytes]
    gated: bool = False
    hidden: bool = False
    promised: dict[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    range: str | None
    token: str | None
    storage: bool


@dataclass
class ModelHub:
    """The running hub. The next answers with content stop after `breaks` bytes each, then the next fail as `fails`."""

    url: str = ""
    storage: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    fails: list[int] = field(default_factory=list)
    stalls: threading.Event | None = None
    ignores_ranges: bool = False

    def contents(self) -> list[Asked]:
        """The requests for content."""
        return [asked for asked in self.asked if asked.method == "GET" and "/api/" not in asked.path]

    def sent(self, name: str) -> list[Asked]:
        """The requests for the content of a file that the storage answered."""
        return [asked for asked in self.asked if asked.storage and asked.path.endswith(f"/{name}")]


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    """A hub without any repository yet."""
    hub = ModelHub()
    servers = [_Server(hub, storage=storage) for storage in (False, True)]
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        if hub.stalls:
            hub.stalls.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def git_hash(content: bytes) -> str:
    """A file's hash as git has it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: ModelHub, *, storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.hub = hub
        self.storage = storage

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what some tests are about."""


class _Answer(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        self.server.hub.asked.append(Asked(self.command, path, self.headers["Range"], token, self.server.storage))
        if self.server.storage:
            _, owner, name, file = path.split("/", 3)
            self._content(self.server.hub.repos[f"{owner}/{name}"].files[file])
        elif token not in {None, GOOD, STRANGER}:
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._described(found[1], found[2] or "main", token)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolved(found[1], found[2], found[3], token)
        else:
            self._refuse(404)

    def _repo(self, name: str, token: str | None) -> Repo | None:
        repo = self.server.hub.repos.get(name)
        if repo is None or (repo.hidden and token != GOOD):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _described(self, name: str, revision: str, token: str | None) -> None:
        if (repo := self._repo(name, token)) is None:
            return
        if revision not in {"main", "v1", COMMIT}:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = [_sibling(file, content, repo.promised.get(file)) for file, content in repo.files.items()]
        body = {"id": name, "sha": COMMIT, "gated": "manual" if repo.gated else False, "siblings": siblings}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolved(self, name: str, revision: str, file: str, token: str | None) -> None:
        if (repo := self._repo(name, token)) is None:
            return
        if repo.gated and token != GOOD:
            words = "Access to model is restricted and you are not in the authorized list."
            self._refuse(403 if token else 401, "GatedRepo", words)
            return
        if file not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = repo.files[file]
        headers = {"X-Repo-Commit": COMMIT}
        if len(content) < LFS_BYTES:
            self._content(content, headers | {"ETag": f'"{git_hash(content)}"'})
            return
        promised = repo.promised.get(file, hashlib.sha256(content).hexdigest())
        headers |= {"X-Linked-ETag": f'"{promised}"', "X-Linked-Size": str(len(content))}
        self._send(302, b"", headers | {"Location": f"{self.server.hub.storage}/{name}/{file}"})

    def _content(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        hub = self.server.hub
        if self.command == "GET" and hub.fails and not hub.breaks:
            self._refuse(hub.fails.pop(0))
            return
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(begin[1]) if begin and not hub.ignores_ranges else 0
        said = dict(headers or {})
        if start:
            said["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop = hub.breaks.pop(0) if hub.breaks and self.command == "GET" else None
        self._send(206 if start else 200, content[start:], said, stop)

    def _send(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
            if stop is not None:
                self.wfile.flush()
                if self.server.hub.stalls:
                    self.server.hub.stalls.wait(60)
                self.close_connection = True

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, b"{}", {name: value for name, value in headers.items() if value})


def _sibling(name: str, content: bytes, promised: str | None) -> dict[str, object]:
    if len(content) < LFS_BYTES:
        return {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
    pointer = {
        "sha256": promised or hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "pointerSize": 134,
    }
    return {"rfilename": name, "size": len(content), "blobId": git_hash(b"pointer"), "lfs": pointer}
