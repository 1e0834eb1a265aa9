"""A hub on loopback for huggingface_hub's own client: commits, branches, LFS, and its refusals."""

import base64
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
    private: bool = False
    objects: Files = field(default_factory=dict)  # what lies in LFS, by SHA-256

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
    sent: list[str] = field(default_factory=list)  # SHA-256 of every object that was uploaded
    fails_after: int | None = None  # uploads of objects, from which on the store answers 503
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

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _write(self) -> None:
        """Answer what the client asks to upload a dataset."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.state.asked.append((self.command, self.path))
        part = [unquote(each) for each in urlparse(self.path).path.strip("/").split("/")]
        if self.command == "PUT":
            self._stored(part, body)
        elif part == ["api", "repos", "create"]:
            self._created(json.loads(body))
        elif part == ["api", "validate-yaml"]:  # of a card
            self._json({"errors": [], "warnings": []})
        elif part[-3:] == ["lfs", "objects", "batch"]:
            self._batch("/".join(part[:3]).removesuffix(".git"), json.loads(body))
        elif part[4] == "preupload":
            files = json.loads(body)["files"]
            modes = [("lfs" if f["size"] >= LARGE else "regular", f["path"]) for f in files]
            told = [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]
            self._json({"files": told})
        else:
            self._commit("/".join(part[1:4]), [json.loads(line) for line in body.splitlines()])

    def _created(self, asked: dict[str, Any]) -> None:
        own = asked.get("organization") or "org"
        name = f"{asked['type']}s/{own}/{asked['name']}"
        there = self.state.repositories.get(name)
        if there is not None and there.refusal is not None:
            self._send(there.refusal[0], b"{}", {"X-Error-Code": there.refusal[1]})
            return
        if there is None:
            private = asked.get("private", asked.get("visibility") == "private")
            self.state.repository(name).private = private
            self.state.repository(name).commit({".gitattributes": b""})
        told = {"url": f"{self.state.endpoint}/{name}", "name": f"{own}/{asked['name']}"}
        self._send(200 if there is None else 409, json.dumps(told).encode(), {})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        objects = self.state.repositories[name].objects
        told = []
        for each in asked["objects"]:
            action = {"upload": {"href": f"{self.state.store}/put/{name}/{each['oid']}"}}
            there = each["oid"] in objects
            told.append({**each, **({} if there else {"actions": action})})
        self._json({"transfer": "basic", "objects": told})

    def _stored(self, part: list[str], body: bytes) -> None:
        if self.state.fails_after is not None and len(self.state.sent) >= self.state.fails_after:
            self._send(503, b"", {})
            return
        assert _sha256(body) == part[4]
        self.state.sent.append(part[4])
        self.state.repositories["/".join(part[1:4])].objects[part[4]] = body
        self._send(200, b"", {})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.state.repositories[name]
        files = dict(repository.commits[repository.refs["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = repository.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        told = {"commitUrl": f"{self.state.endpoint}/{name}/commit/{sha}", "commitOid": sha}
        self._json(told)

    def _answer(self) -> None:
        self.state.asked.append((self.command, self.path))
        part = [unquote(each) for each in urlparse(self.path).path.strip("/").split("/")]
        if part[0] == "lfs":
            kind = 4 if part[1] == "datasets" else 3
            self._large("/".join(part[1:kind]), part[kind], "/".join(part[kind + 1 :]))
            return
        api = part[:2] in (["api", "models"], ["api", "datasets"])
        datasets = "datasets" in part[:2]
        part = part[2:] if api else part[datasets:]
        name = ("datasets/" if datasets else "") + "/".join(part[:2])
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
        if self.command != "HEAD":
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
