"""A loopback HTTP server for the simulated web and for folders of real pictures.

    with WebServer(web=SimulatedWeb(seed=0)) as server:
        urllib.request.urlopen(server.base_url + "/img/000000000.jpg")
        assert server.hits["/img/000000000.jpg"] == 1

or, as a process of its own that prints one JSON line with its address and ends on SIGTERM or
when its standard input, if that is a pipe, is closed:

    python -m capfilt.simweb.server --rows 1000 --port 0
"""

import argparse
import contextlib
import json
import mimetypes
import os
import select
import signal
import socket
import socketserver
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import quote, unquote

from capfilt.errors import CapfiltError, InputError
from capfilt.simweb.corruption import Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.pictures import Picture
from capfilt.simweb.replies import MOVED, FaultSettings, Reply, Visit, reply_to, status_page
from capfilt.simweb.web import SimulatedWeb

HITS_PATH = "/-/hits"  # JSON object path -> requests, for those who run the server as a process
_ZEROS = bytes(1 << 16)


class Web(Protocol):
    """What the server needs of a simulated web."""

    def picture_at(self, path: str) -> Picture | None:
        """Return the picture that the web keeps under `path`, if any."""

    def image_bytes(self, picture: Picture) -> bytes:
        """Render the picture as a JPEG file."""


class WebServer:
    """Serves `web`, `folder` or both on 127.0.0.1 until closed; a file of `folder` goes first.

    `faults` maps a path ("/img/000000007.jpg") to a fault and overrides the web's own. `hits`
    counts the requests by path, without their query. `port` 0 takes a free one. Raises
    InputError where `folder` is no folder or the port cannot be had.
    """

    def __init__(
        self,
        web: Web | None = None,
        folder: Path | None = None,
        faults: Mapping[str, Fault] | None = None,
        settings: FaultSettings | None = None,
        port: int = 0,
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: not a folder; give one whose files are to be served")
        self._site = _Site(web, folder, dict(faults or {}), settings or FaultSettings())
        try:
            self._http = _HttpServer(("127.0.0.1", port), self._site)
        except OSError as error:
            reason = error.strerror
            raise InputError(f"port {port} on 127.0.0.1: {reason}; 0 takes a free one") from error
        self._loop = Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def hits(self) -> Counter[str]:
        """A copy of the counts so far: requests by path."""
        return self._site.visits.copy()

    def url(self, path: str) -> str:
        """Return the address of a path of the web or of a file's name in the folder, quoted."""
        return f"{self.base_url}/{quote(path.lstrip('/'))}"

    def __enter__(self) -> Self:
        self._loop.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop at once, also in the middle of answers; returns when every thread has ended."""
        self._site.stopping.set()
        if self._loop.is_alive():
            self._http.shutdown()
            self._loop.join()
        self._http.hang_up()
        self._http.server_close()


class _Site:
    """What is served, and the counts; shared by the threads of all connections."""

    def __init__(
        self,
        web: Web | None,
        folder: Path | None,
        faults: dict[str, Fault],
        settings: FaultSettings,
    ) -> None:
        self.web, self.folder, self.faults, self.settings = web, folder, faults, settings
        self.visits = _Visits()
        self.stopping = Event()
        self._jpeg = lru_cache(maxsize=256)(web.image_bytes) if web else None

    def answer(self, target: str) -> Reply:
        """Answer one request; `target` is the request line's path and query, still quoted."""
        quoted, _, query = target.partition("?")
        path = unquote(quoted)
        if path == HITS_PATH:
            return Reply(content_type="application/json", body=self.visits.as_json())
        visit = Visit(quoted, query, self.visits.add(path), self.settings)
        place = path.removeprefix(MOVED)
        file = _file_below(self.folder, place) if self.folder else None
        picture = self.web.picture_at(place) if self.web and not file else None
        if file is None and picture is None and place not in self.faults:
            return status_page(HTTPStatus.NOT_FOUND)
        own = picture.fault if picture else Fault.NONE
        fault = Fault.NONE if place != path else self.faults.get(place, own)
        return reply_to(visit, fault, lambda: self._healthy(file, picture))

    def _healthy(self, file: Path | None, picture: Picture | None) -> Reply:
        if file is not None:
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            return Reply(content_type=kind, body=file.read_bytes())
        if picture is None or self._jpeg is None:
            return status_page(HTTPStatus.NOT_FOUND)
        return Reply(body=self._jpeg(picture))


def _file_below(folder: Path, path: str) -> Path | None:
    """Return the regular file that `path` names inside `folder`, never one outside it."""
    if "\0" in path:
        return None
    root = folder.resolve()
    try:
        file = (root / path.lstrip("/")).resolve()  # follows links, so that none leads out
        return file if file.is_relative_to(root) and file.is_file() else None
    except OSError:  # a name that is too long, a loop of links, a folder without permission
        return None


class _Visits:
    """A counter that many threads may add to."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, path: str) -> int:
        """Count one more request and return how many there were, with this one."""
        with self._lock:
            self._counts[path] += 1
            return self._counts[path]

    def copy(self) -> Counter[str]:
        with self._lock:
            return Counter(self._counts)

    def as_json(self) -> bytes:
        return json.dumps(self.copy(), sort_keys=True).encode()


class _HttpServer(ThreadingHTTPServer):
    """A thread per connection; all of them are joined when the server closes."""

    daemon_threads = False  # the base class joins only threads that are not daemons
    request_queue_size = 512  # the default of 5 makes a burst of clients wait a second each

    def __init__(self, address: tuple[str, int], site: _Site) -> None:
        self.site = site
        self._open: set[socket.socket] = set()
        self._lock = Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's reverse look-up of the address, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, client = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, client

    def close_request(self, request: object) -> None:
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.discard(request)
        super().close_request(request)

    def hang_up(self) -> None:
        """Wake the threads that wait for a client."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away; anything else is a defect and is printed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type] # unused there


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60  # seconds that an idle kept-alive connection may hold its thread
    server: _HttpServer

    def do_GET(self) -> None:
        self._send(self.server.site.answer(self.path))

    def log_message(self, format: str, *args: object) -> None:
        """Keep standard error for the client under test."""

    def _send(self, reply: Reply) -> None:
        stopping = self.server.site.stopping
        if reply.reset:
            self._reset()
            return
        if reply.delay_s and stopping.wait(reply.delay_s):
            return
        self._send_head(reply)
        for piece, pause in _pieces(reply):
            if stopping.is_set():
                break
            self.wfile.write(piece)
            if pause and stopping.wait(pause):
                break

    def _send_head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        for name, value in reply.headers:
            self.send_header(name, value)
        if reply.states_length:
            length = len(reply.body) + reply.padding + reply.missing
            self.send_header("Content-Length", str(length))
        if reply.missing or not reply.states_length:
            self.send_header("Connection", "close")  # this also makes the handler hang up
        self.end_headers()

    def _reset(self) -> None:
        """Close with RST, not FIN: the client sees "connection reset by peer"."""
        self.close_connection = True
        now = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)  # struct linger
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        os.close(self.connection.detach())


def _pieces(reply: Reply) -> Iterator[tuple[bytes, float]]:
    """Yield the body as (bytes, seconds to wait after them), without ever holding the padding."""
    step = reply.drip_bytes or max(1, len(reply.body))
    for start in range(0, len(reply.body), step):
        yield reply.body[start : start + step], reply.drip_s
    for start in range(0, reply.padding, len(_ZEROS)):
        yield _ZEROS[: reply.padding - start], 0.0


def _on_signals() -> int:
    """Turn SIGTERM and SIGINT into a byte to read; returns the descriptor to read it from."""
    wake, waker = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(waker, b"."))
    return wake


def _wait_for_the_end(wake: int) -> None:
    """Return on a signal, or when standard input is a pipe and its writer closes it."""
    # /dev/null and terminals are no sign that somebody watches over this process.
    parent = [0] if stat.S_ISFIFO(os.fstat(0).st_mode) else []
    while True:
        ready = select.select([wake, *parent], [], [])[0]
        if wake in ready or not os.read(0, 4096):
            return


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="python -m capfilt.simweb.server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, help="rows of the simulated web (default: no end)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=1.0, help="scale of the noise, 0 to 1")
    parser.add_argument("--folder", type=Path, help="serve the files of this folder too")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options = parser.parse_args(arguments)
    wake = _on_signals()  # first: whoever has read the address may send SIGTERM
    try:
        web = SimulatedWeb(options.seed, options.rows, Noise().scaled(options.noise))
        with WebServer(web, options.folder, port=options.port) as server:
            print(json.dumps({"base_url": server.base_url, "pid": os.getpid()}), flush=True)
            _wait_for_the_end(wake)
    except CapfiltError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
