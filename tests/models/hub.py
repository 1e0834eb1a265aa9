"""A hub on loopback for huggingface_hub's own client: commits, branches, LFS, and its refusals."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

LARGE = 50_000  # bytes from which a file lies in LFS, behind a redirect
Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits by their ids, and what branches and tags name."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None  # status and X-Error-Code of every answer

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add a commit to a branch; returns its id."""
        told = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        sha = hashlib.sha1(f"{len(self.commits)} {told}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha

    def commit_folder(self, folder: Path, more: Files | None = None) -> str:
        """Add a commit of the files of a folder to main."""
        found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}
        return self.commit({**files, **(more or {})})


@dataclass
class Hub:
    """The server's state: repositories, what was asked for, and what is torn once."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path
    ranges: list[str] = field(default_factory=list)  # of what was begun before
    tear: str | None = None  # the file that is sent half when it is next asked for
    endpoint: str = ""
    store: str = ""  # where large files lie: another host for the client, as on the real hub

    def repository(self, name: str, refusal: tuple[int, str] | None = None) -> Repository:
        """Return the repository of a name, new where there is none."""
        return self.repositories.setdefault(name, Repository(refusal=refusal))

    def fetched(self) -> set[str]:
        """Return the names of the files whose content was sent."""
        parts = [urlparse(path).path.split("/") for method, path in self.asked if method == "GET"]
        return {"/".join(part[5:]) for part in parts if part[3:4] == ["resolve"]}


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port of 127.0.0.1."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.store = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.state.asked.append((self.command, self.path))
        part = [unquote(each) for each in urlparse(self.path).path.strip("/").split("/")]
        if part[0] == "lfs":
            self._large("/".join(part[1:3]), part[3], "/".join(part[4:]))
            return
        api = part[:2] == ["api", "models"]
        part = part[2:] if api else part
        name = "/".join(part[:2])
        repository = self.state.repositories.get(name)
        refusal = (401, "RepoNotFound") if repository is None else repository.refusal
        if repository is None or refusal is not None:
            status, code = refusal or (401, "RepoNotFound")
            told = f"line one about {name}\nline two"
            self._send(status, told.encode(), {"X-Error-Code": code} if code else {})
            return
        revision = part[3] if len(part) > 3 else "main"
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            self._send(404, b"Invalid rev id", {"X-Error-Code": "RevisionNotFound"})
        elif api and part[2:3] == ["tree"]:
            self._json([_entry(*each) for each in repository.commits[sha].items()])
        elif api:
            siblings = [{"rfilename": each} for each in repository.commits[sha]]
            told_of = {"_id": "1", "id": name, "modelId": name, "sha": sha, "private": False}
            self._json({**told_of, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})
        else:
            self._file(name, sha, "/".join(part[4:]))

    def _file(self, name: str, sha: str, path: str) -> None:
        data = self.state.repositories[name].commits[sha].get(path)
        commit = {"X-Repo-Commit": sha}
        if data is None:
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", **commit})
        elif len(data) < LARGE:
            self._send(200, data, {"ETag": f'"{_blob_id(data)}"', **commit})
        else:
            linked = {"X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
            place = f"{self.state.store}/lfs/{name}/{sha}/{path}"
            self._send(302, b"", {"Location": place, **linked, **commit})

    def _large(self, name: str, sha: str, path: str) -> None:
        data = self.state.repositories[name].commits[sha][path]
        headers = {"ETag": f'"{_sha256(data)}"', "Accept-Ranges": "bytes"}
        wanted, status, start = self.headers.get("Range"), 200, 0
        if wanted:
            self.state.ranges.append(wanted)
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        torn = self.state.tear == path and self.command == "GET"
        self.state.tear = None if torn else self.state.tear
        self._send(status, data[start:], headers, only=len(data) // 2 if torn else None)

    def _json(self, told: Any) -> None:
        self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], only: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:only])
        self.close_connection = self.close_connection or only is not None


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)}
    if len(data) < LARGE:
        return entry
    return {**entry, "lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 134}}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(data) + data).hexdigest()
