"""What the simulated web answers: a `Reply` is data, made by a pure function of the fault.

The server only sends it, so every fault can be read here in one place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus

from capfilt.simweb.faults import Fault

MOVED = "/moved"  # a redirected picture lies below this prefix, and is fine there
METADATA_URL = "http://169.254.169.254/latest/meta-data/"
_PAGE = b"<!doctype html><title>Not what you asked for</title><p>This picture has moved.</p>\n"


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """How bad the faults are. Times are in seconds."""

    delay_s: float = 0.5  # SLOW: the pause before the answer
    drip_s: float = 0.05  # DRIP: the pause between two pieces
    drip_bytes: int = 512  # DRIP: the size of a piece
    failures: int = 1  # FLAKY: requests that get a 500 before the first good answer
    huge_bytes: int = 8 << 30  # HUGE and ENDLESS: zeros after the picture
    elsewhere: str = "http://elsewhere.invalid"  # REDIRECT_ELSEWHERE: scheme and host


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: `body`, then `padding` zero bytes.

    `missing` bytes are promised in Content-Length and never sent; with `drip_bytes` the body
    goes out in pieces of that size; `reset` means that the connection is reset instead.
    """

    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "image/jpeg"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    padding: int = 0
    missing: int = 0
    states_length: bool = True
    delay_s: float = 0.0
    drip_bytes: int = 0
    drip_s: float = 0.0
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """One request: the path without its query, the query, and how often it came (from 1)."""

    path: str
    query: str
    attempt: int
    settings: FaultSettings


Picture = Callable[[], Reply]  # lazy: a 404 does not render anything


def reply_to(visit: Visit, fault: Fault, picture: Picture) -> Reply:
    """Answer `visit` under `fault`; `picture()` is the answer that a healthy server gives."""
    if fault in _STATUSES:
        return status_page(_STATUSES[fault])
    if fault in _LOCATIONS:
        return _redirect(_LOCATIONS[fault](visit))
    if fault is Fault.FLAKY and visit.attempt <= visit.settings.failures:
        return status_page(HTTPStatus.INTERNAL_SERVER_ERROR)
    if fault in _DAMAGES:
        return _DAMAGES[fault](picture(), visit.settings)
    return picture()


def status_page(status: HTTPStatus) -> Reply:
    """Answer with `status` and a page of a line; 429 says when to come back."""
    wait = (("Retry-After", "1"),) if status is HTTPStatus.TOO_MANY_REQUESTS else ()
    body = f"<!doctype html><title>{status.value} {status.phrase}</title>\n".encode()
    return Reply(status, "text/html; charset=utf-8", wait, body)


def _redirect(location: str) -> Reply:
    return replace(status_page(HTTPStatus.FOUND), headers=(("Location", location),))


def _next_hop(visit: Visit) -> str:
    hop = int(visit.query) if visit.query.isdecimal() and len(visit.query) < 9 else 0
    return f"{visit.path}?{hop + 1}"


_STATUSES = {
    Fault.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Fault.GONE: HTTPStatus.GONE,
    Fault.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Fault.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    Fault.BROKEN_SERVER: HTTPStatus.SERVICE_UNAVAILABLE,
}

_LOCATIONS: dict[Fault, Callable[[Visit], str]] = {
    Fault.REDIRECT: lambda visit: MOVED + visit.path,
    Fault.REDIRECT_LOOP: lambda visit: visit.path + ("" if visit.query else "?again"),
    Fault.REDIRECT_CHAIN: _next_hop,
    Fault.REDIRECT_ELSEWHERE: lambda visit: visit.settings.elsewhere + visit.path,
    Fault.REDIRECT_FILE: lambda _: "file:///etc/passwd",
    Fault.REDIRECT_METADATA: lambda _: METADATA_URL,
}


def _truncated(good: Reply, _: FaultSettings) -> Reply:
    half = len(good.body) // 2
    return replace(good, body=good.body[:half], missing=len(good.body) - half)


def _drip(good: Reply, settings: FaultSettings) -> Reply:
    return replace(good, drip_bytes=settings.drip_bytes, drip_s=settings.drip_s)


_DAMAGES: dict[Fault, Callable[[Reply, FaultSettings], Reply]] = {
    Fault.SLOW: lambda good, settings: replace(good, delay_s=settings.delay_s),
    Fault.DRIP: _drip,
    Fault.TRUNCATED: _truncated,
    Fault.RESET: lambda good, _: replace(good, reset=True),
    Fault.TEXT_PLAIN: lambda good, _: replace(good, content_type="text/plain"),
    Fault.NO_AI: lambda good, _: replace(good, headers=(("X-Robots-Tag", "noai"),)),
    Fault.HTML: lambda good, _: replace(good, content_type="text/html", body=_PAGE),
    Fault.EMPTY: lambda good, _: replace(good, body=b""),
    # A JPEG's tables take its first 260 to 620 bytes: 200 leave no scan to decode.
    Fault.BROKEN_JPEG: lambda good, _: replace(
        good, body=good.body[: min(200, len(good.body) // 2)]
    ),
    Fault.HALF_JPEG: lambda good, _: replace(good, body=good.body[: len(good.body) * 2 // 3]),
    Fault.HUGE: lambda good, settings: replace(good, padding=settings.huge_bytes),
    Fault.ENDLESS: lambda good, settings: replace(
        good, padding=settings.huge_bytes, states_length=False
    ),
}
