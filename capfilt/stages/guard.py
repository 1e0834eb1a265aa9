"""The door to the web: what an address from a stranger's list may reach, and for how long.

img2dataset fetches by `urllib.request.urlopen`, which uses the process's installed opener. The
one installed here speaks http and https alone, and looks at the address that it is about to
connect to, not at the name: so neither a redirect nor a name that resolves differently the
second time leads to a cloud's metadata service. It also ends endless and dripping answers.
"""

import contextlib
import http.client
import ipaddress
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_READ_BYTES: Final = 1 << 16
_REAP_SECONDS: Final = 0.25


class RefusedAddress(OSError):
    """The name resolves to a private, loopback, link-local or otherwise not public address."""


class BodyTooLarge(OSError):
    """The answer is longer than the configured limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may reach and spend.

    `total_seconds` bounds the whole request, headers and body; `max_bytes` bounds the body.
    """

    allow_private_hosts: bool
    total_seconds: float
    max_bytes: int


@contextlib.contextmanager
def guarded_urlopen(limits: Limits) -> Iterator[None]:
    """Make `urllib.request.urlopen` obey `limits` in this process until the context is left."""
    before = urllib.request._opener  # type: ignore[attr-defined]  # there is no public getter
    with _Reaper() as reaper:
        urllib.request.install_opener(_opener(limits, reaper))
        try:
            yield
        finally:
            urllib.request.install_opener(before)


def is_public(address: str) -> bool:
    """Say whether an IP address is one that the public internet routes to.

    IPv4 addresses inside IPv6 ones (mapped, 6to4, NAT64) are judged by the IPv4 address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or _nat64(ip)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def _opener(limits: Limits, reaper: "_Reaper") -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        _HTTP(limits, reaper),
        _HTTPS(limits, reaper),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener


class _SecureConnection(http.client.HTTPSConnection):
    """TLS takes the socket over, so the deadline must be set on what it returns."""

    reaper: "_Reaper"
    seconds: float

    def connect(self) -> None:
        super().connect()
        self.reaper.watch(self.sock, self.seconds)


def _guard(connection: http.client.HTTPConnection, limits: Limits, reaper: "_Reaper") -> None:
    """Make a connection check what it connects to, and bound what it answers."""
    deadline = time.monotonic() + limits.total_seconds

    def connect(
        address: tuple[str, int], timeout: float, source: tuple[str, int] | None = None
    ) -> socket.socket:
        sock = _connect(address, timeout, limits.allow_private_hosts)
        reaper.watch(sock, limits.total_seconds)
        return sock

    def response(sock: socket.socket, *args: Any, **kwargs: Any) -> _Response:  # http.client's own
        return _Response(sock, *args, limits=limits, deadline=deadline, **kwargs)

    # http.client has no public seam between resolving a name and connecting to its address.
    connection._create_connection = connect  # type: ignore[attr-defined]
    connection.response_class = response  # type: ignore[assignment]  # a factory serves as well


class _HTTP(urllib.request.HTTPHandler):
    def __init__(self, limits: Limits, reaper: "_Reaper") -> None:
        super().__init__()
        self._limits, self._reaper = limits, reaper

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, **kwargs: Any) -> http.client.HTTPConnection:  # urllib's own
            made = http.client.HTTPConnection(host, **kwargs)
            _guard(made, self._limits, self._reaper)
            return made

        return self.do_open(connection, request)


class _HTTPS(urllib.request.HTTPSHandler):
    def __init__(self, limits: Limits, reaper: "_Reaper") -> None:
        super().__init__()
        self._limits, self._reaper = limits, reaper

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, **kwargs: Any) -> http.client.HTTPConnection:  # urllib's own
            made = _SecureConnection(host, **kwargs)
            made.reaper, made.seconds = self._reaper, self._limits.total_seconds
            _guard(made, self._limits, self._reaper)
            return made

        return self.do_open(connection, request)


def _connect(address: tuple[str, int], timeout: float, allow_private: bool) -> socket.socket:
    """Connect to the first reachable address of a name, all of which must be permitted."""
    host, port = address
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not allow_private:
        for *_, peer in found:
            if not is_public(str(peer[0])):
                raise RefusedAddress(
                    f"refused: {host} resolves to {peer[0]}, which is not a public address"
                )
    failure: OSError = OSError(f"{host} resolves to no address")
    for family, kind, protocol, _, peer in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            sock.connect(peer)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


class _Response(http.client.HTTPResponse):
    """An answer whose body is read in pieces, so that its length and duration are bounded."""

    def __init__(
        self, sock: socket.socket, *args: Any, limits: Limits, deadline: float, **kwargs: Any
    ) -> None:
        super().__init__(sock, *args, **kwargs)
        self._limits, self._deadline = limits, deadline

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        pieces: list[bytes] = []
        size = 0
        while piece := super().read(_READ_BYTES):
            size += len(piece)
            if size > self._limits.max_bytes:
                self.close()
                raise BodyTooLarge(f"the body is longer than {self._limits.max_bytes} bytes")
            pieces.append(piece)
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"timed out: not done after {self._limits.total_seconds} s")
        if self.length:
            raise http.client.IncompleteRead(b"".join(pieces), self.length)
        return b"".join(pieces)


class _Reaper:
    """Shuts down sockets whose time is up: a recv that drips never times out by itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: list[tuple[float, socket.socket]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capfilt-deadlines", daemon=True)

    def __enter__(self) -> "_Reaper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def watch(self, sock: socket.socket, seconds: float) -> None:
        """Shut `sock` down in `seconds`, unless it is closed by then."""
        with self._lock:
            self._watched.append((time.monotonic() + seconds, sock))

    def _run(self) -> None:
        while not self._stop.wait(_REAP_SECONDS):
            now = time.monotonic()
            with self._lock:
                due = [sock for deadline, sock in self._watched if deadline <= now]
                self._watched = [
                    (deadline, sock)
                    for deadline, sock in self._watched
                    if deadline > now and sock.fileno() >= 0
                ]
            for sock in due:
                with contextlib.suppress(OSError):  # it ended in time after all
                    # Not SSLSocket.shutdown: it would pull TLS away under the reading thread.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
