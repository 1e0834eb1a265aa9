"""Connections: to checked addresses, each wait bounded, and all of a request's waits together.

The address that is about to be connected to is looked at, not the name: so neither a redirect nor
a name that resolves differently the second time leads to a cloud's metadata service.
"""

import http.client
import io
import queue
import socket
import ssl
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from capfilt.stages.download.faults import Failed
from capfilt.stages.download.guard import is_private_literal, is_public
from capfilt.stages.download.proxy import Proxy

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Deadline:
    """`wait`: seconds for each wait; `end`: when all is over, on time.monotonic()."""

    wait: float
    end: float
    total: float

    def left(self) -> float:
        """Return how long the next wait may last.

        Raises:
            TimeoutError: the end has come.
        """
        rest = self.end - time.monotonic()
        if rest <= 0:
            raise TimeoutError(f"timed out: not done after {self.total:g} s")
        return min(self.wait, rest)

    def put_off(self, seconds: float) -> "Deadline":
        """Return the same with a later end."""
        return replace(self, end=self.end + seconds)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an address lies: scheme, host (no brackets) and port. `name` is as in a Host header."""

    scheme: str
    host: str
    port: int
    name: str

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Read a normalised address."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        name = shown if parts.port is None else f"{shown}:{parts.port}"
        return cls(parts.scheme, host, parts.port or _PORTS[parts.scheme], name)


class Connection(http.client.HTTPConnection):
    """One request's way to its origin, directly or through a proxy."""

    def __init__(
        self,
        origin: Origin,
        deadline: Deadline,
        tls: ssl.SSLContext,
        allow_private: bool,
        proxy: Proxy | None,
    ) -> None:
        at = (origin.host, origin.port) if proxy is None else (proxy.host, proxy.port)
        super().__init__(*at)
        self._origin, self._deadline, self._tls = origin, deadline, tls
        self._allow_private, self._proxy = allow_private, proxy
        self.response_class = self._response  # type: ignore[assignment]  # a factory serves as well
        if proxy is not None and origin.scheme == "https":
            bracketed = f"[{origin.host}]" if ":" in origin.host else origin.host
            self.set_tunnel(bracketed, origin.port, proxy.headers())

    def connect(self) -> None:
        """Connect, through the proxy's tunnel where there is one, and speak TLS for https.

        Raises:
            Failed: the address is refused, or the proxy fails.
            OSError: there is no connection to be had.
        """
        if self._proxy is None:
            self.sock = open_socket(self.host, self.port, self._deadline, self._allow_private)
        else:
            self._connect_proxy(self._proxy)
        if self._origin.scheme == "https":
            self.sock.settimeout(self._deadline.left())
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._origin.host)
        self.sock.settimeout(self._deadline.left())

    def _connect_proxy(self, proxy: Proxy) -> None:
        if not self._allow_private and is_private_literal(self._origin.host):
            raise _refused(self._origin.host, self._origin.host)
        try:
            self.sock = open_socket(self.host, self.port, self._deadline, allow_private=True)
        except OSError as error:
            raise proxy.unreachable(error) from error
        if self._tunnel_host:  # type: ignore[attr-defined]  # set by set_tunnel
            try:
                self._tunnel()  # type: ignore[attr-defined]  # http.client's own
            except (OSError, http.client.HTTPException) as error:
                raise proxy.refused(error) from error

    def _response(self, sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        """Return http.client's response, which reads `sock` within the deadline."""
        bounded: Any = _Bounded(sock, self._deadline)  # all that a response asks of a socket
        return http.client.HTTPResponse(bounded, *args, **kwargs)


def open_socket(host: str, port: int, deadline: Deadline, allow_private: bool) -> socket.socket:
    """Connect to the first reachable address of a name, all of which must be permitted.

    Raises:
        Failed: one of the addresses is not public.
        OSError: the name is unknown, or none of its addresses answers.
    """
    if port == 0:
        raise ConnectionRefusedError("nobody listens at port 0")
    found = _looked_up(host, port, deadline)
    if not allow_private:
        for *_, peer in found:
            if not is_public(str(peer[0])):
                raise _refused(host, str(peer[0]))
    failure: OSError | None = None
    for family, kind, protocol, _, peer in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(deadline.left())
            sock.connect(peer)
            return sock
        except OSError as error:
            sock.close()
            failure = failure or error  # the resolver's order is the one that is recommended
    raise failure or OSError(f"{host} resolves to no address")


def _looked_up(host: str, port: int, deadline: Deadline) -> list[Any]:
    """Look a name up within the deadline; the system's resolver has its own, longer patience.

    A look-up cannot be ended, so it runs in a thread that is left behind where it takes too long.
    """
    answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(look_up(host, port))
        except Exception as error:  # noqa: BLE001  # raised again where the answer is waited for
            answers.put(error)

    threading.Thread(target=ask, name="capfilt-name", daemon=True).start()
    seconds = deadline.left()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        words = f"the name service gave no answer within {seconds:.1f} s"
        raise Failed("dns_unavailable", words) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def look_up(host: str, port: int) -> list[Any]:
    """Return what getaddrinfo says; the one place where names are resolved."""
    # As bytes: the name is in its ASCII form already, and Python's own IDNA is an older standard.
    return socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)


def _refused(host: str, address: str) -> Failed:
    return Failed(
        "private_address", f"refused: {host} resolves to {address}, which is not a public address"
    )


class _Reader(io.RawIOBase):
    """Reads a socket; an answer that drips, never too slow for one wait, ends at the deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._sock, self._deadline = sock, deadline
        # It holds the socket open: http.client closes its own as soon as the headers are read.
        self._raw: Any = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # a writable buffer
        self._sock.settimeout(self._deadline.left())
        return int(self._raw.readinto(buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()


@dataclass(frozen=True, slots=True)
class _Bounded:
    sock: socket.socket
    deadline: Deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self.sock, self.deadline))
