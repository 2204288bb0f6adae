"""A model hub on this machine: the routes that pulling asks, with a second server as its content network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "5" * 40
_LARGE_BYTES = 4096


@dataclass
class Repository:
    """Files at one commit. `gated` asks for the token."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False


@dataclass
class Hub:
    """What is published, and how the server misbehaves."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    url: str = ""
    network_url: str = ""
    token: str = "hf_secret"
    break_off_at: int = 0
    """The next large file ends after so many bytes; connections that resume it are whole."""
    refuse_resuming: bool = False
    """While set, nothing behind a break arrives either."""
    corrupt: str = ""
    """A file whose contents are not those that are listed."""
    stalled: bool = False
    """Large files stop arriving in the middle, and the connection stays open until the server ends."""
    ended: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """(file, first byte) of each download."""
    tokens_seen: list[tuple[str, str]] = field(default_factory=list)
    """(address, Authorization header)."""


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        self.hub.tokens_seen.append((path, self.headers.get("Authorization", "")))
        if path.startswith("/network/"):
            return self._content(*path.removeprefix("/network/").split("//"))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        repository = self.hub.repositories.get(name)
        revision = parts[5] if api and len(parts) > 5 else parts[3] if not api and len(parts) > 3 else "main"
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        if repository.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(403, "GatedRepo")
        if revision not in ("main", repository.commit):
            return self._refuse(404, "RevisionNotFound")
        if api:
            return self._reply(200, json.dumps(self._described(name, repository)).encode())
        file = "/".join(parts[4:])
        content = repository.files[file]
        common = {"X-Repo-Commit": repository.commit, "ETag": f'"{git_sha1(content)}"'}
        if len(content) < _LARGE_BYTES:
            return self._reply(200, content, common)
        digest = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        location = f"{self.hub.network_url}/network/{name}//{file}"
        return self._reply(302, b"", {**common, **linked, "Location": location})

    def _described(self, name: str, repository: Repository) -> dict[str, object]:
        siblings = []
        for file, content in repository.files.items():
            row: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": git_sha1(content)}
            if len(content) >= _LARGE_BYTES:
                digest = hashlib.sha256(content).hexdigest()
                row |= {"blobId": git_sha1(digest.encode())}
                row |= {"lfs": {"sha256": digest, "size": len(content), "pointerSize": 130}}
            siblings.append(row)
        return {"id": name, "sha": repository.commit, "siblings": siblings, "tags": [], "downloads": 0}

    def _content(self, name: str, file: str) -> None:
        content = self.hub.repositories[name].files[file]
        if file == self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.hub.ranges.append((file, first))
        if first and self.hub.refuse_resuming:
            return self._refuse(503, "Busy")
        headers = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if first else {}
        sent = content[first:]
        broken = 0 < self.hub.break_off_at < len(sent)
        self._reply(206 if first else 200, sent, headers, self.hub.break_off_at if broken else 0)
        if broken and not self.hub.refuse_resuming:
            self.hub.break_off_at = 0

    def _refuse(self, status: int, code: str) -> None:
        self._reply(status, b"{}", {"X-Error-Code": code})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            half = len(body) // 2 if self.hub.stalled and self.path.startswith("/network/") else 0
            self.wfile.write(body[: half or cut or None])
            if half:
                self.hub.ended.wait()
        self.close_connection = self.close_connection or bool(cut)


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as front,
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as back,
    ):
        hub.url, hub.network_url = (f"http://127.0.0.1:{each.server_address[1]}" for each in (front, back))
        for each in (front, back):
            threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.ended.set()
            front.shutdown()
            back.shutdown()
