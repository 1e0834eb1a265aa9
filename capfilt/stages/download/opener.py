"""The opener that img2dataset's `urllib.request.urlopen` uses: the door to the web.

It speaks http and https alone, follows redirects with cookies as browsers do, and returns answers
whose bodies are read already, so that everything that can fail fails in one place, with its kind.
"""

import base64
import contextlib
import email.utils
import http.client
import io
import ssl
import threading
import time
import urllib.request
import urllib.response
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar
from typing import Any, Final

from capfilt.inputs import urls as addresses
from capfilt.stages.download.body import read_body
from capfilt.stages.download.connect import Connection, Deadline, Origin
from capfilt.stages.download.faults import Failed, as_failed, http_failed
from capfilt.stages.download.proxy import NONE, Proxy, choose_proxies
from capfilt.stages.download.robots import is_opted_out

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS: Final = 10
# Formats are not named: those that name webp or avif get their pictures squeezed into these.
_ACCEPT: Final = "image/*,*/*;q=0.8"
_PYTHON: Final = "Python-urllib"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may reach and spend, and what it says of itself.

    `total_seconds` bounds the whole request, redirects, headers and body; `max_bytes` the body.
    `referer`: `none`, `origin` (that of the address itself) or an address. `opt_outs`: rules of
    X-Robots-Tag that are honoured, for everybody or for `token`.
    """

    allow_private_hosts: bool
    total_seconds: float
    max_bytes: int
    proxy: str = NONE
    user_agent: str | None = None
    referer: str = "none"
    token: str | None = None
    opt_outs: tuple[str, ...] = ()


@dataclass(slots=True)
class Trip:
    """One row's way through the web: when it must end, and whom to ask before each hop.

    `before_hop` is told the host, and returns by how many seconds the end is put off.
    """

    end: float
    before_hop: Callable[[str], float] = lambda _host: 0.0


class Opener(urllib.request.OpenerDirector):
    """Opens addresses within limits. One for all threads; each thread may be on a `Trip`."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._proxies = choose_proxies(limits.proxy)
        self._tls = ssl.create_default_context()
        self._on = threading.local()

    @contextlib.contextmanager
    def on_trip(self, trip: Trip) -> Iterator[None]:
        """Make what this thread opens a part of `trip`."""
        self._on.trip = trip
        try:
            yield
        finally:
            del self._on.trip

    def open(
        self,
        fullurl: str | urllib.request.Request,
        data: Any = None,  # as the base class has it; nothing is ever sent
        timeout: float | None = None,
    ) -> Any:  # what urlopen returns: an addinfourl
        """Fetch an address; returns the answer with its whole body.

        Raises:
            Failed: whatever went wrong, as a URLError with its kind.
        """
        if isinstance(fullurl, str):
            fullurl = urllib.request.Request(fullurl)
        total = self._limits.total_seconds
        trip: Trip = getattr(self._on, "trip", None) or Trip(time.monotonic() + total)
        wait = timeout if isinstance(timeout, int | float) else total
        try:
            url = _address(fullurl.full_url)
            return self._visit(url, self._agent(fullurl), Deadline(wait, trip.end, total), trip)
        except Exception as error:  # strangers' answers, of any kind; each gets its kind
            raise as_failed(error) from error

    def _agent(self, request: urllib.request.Request) -> str:
        given = self._limits.user_agent or request.get_header("User-agent")
        return str(given or _PYTHON)

    def _visit(self, url: str, agent: str, deadline: Deadline, trip: Trip) -> Any:  # as open
        """Follow redirects to an answer. Cookies live for this one visit, for cookie walls."""
        jar, seen = CookieJar(), set()
        for _ in range(_MOST_REDIRECTS + 1):
            request = self._request(url, agent)
            jar.add_cookie_header(request)
            mark = (url, request.get_header("Cookie"))
            if mark in seen:
                raise Failed("bad_redirect", "it redirects in a circle")
            seen.add(mark)
            deadline = deadline.put_off(trip.before_hop(addresses.host_of(url)))
            answer = self._exchange(request, deadline)
            jar.extract_cookies(answer, request)
            location = answer.headers.get("Location")
            if answer.code not in _REDIRECTS or location is None:
                return answer
            url = _target(url, location)
        raise Failed("bad_redirect", f"more than {_MOST_REDIRECTS} redirects")

    def _request(self, url: str, agent: str) -> urllib.request.Request:
        headers = {"User-Agent": agent, "Accept": _ACCEPT, "Connection": "close"}
        origin = Origin.of(url)
        if self._limits.referer == "origin":
            headers["Referer"] = f"{origin.scheme}://{origin.name}/"
        elif self._limits.referer != "none":
            headers["Referer"] = self._limits.referer
        if named := addresses.credentials_of(url):
            token = base64.b64encode(":".join(named).encode("utf-8")).decode("ascii")
            headers["Authorization"] = f"Basic {token}"
        return urllib.request.Request(_without_credentials(url, origin), headers=headers)

    def _exchange(self, request: urllib.request.Request, deadline: Deadline) -> Any:  # as open
        """Make one request and read its answer: a redirect, or a whole body of a success."""
        origin = Origin.of(request.full_url)
        proxy = self._proxies.of(origin.scheme, origin.host, origin.port)
        private = self._limits.allow_private_hosts
        connection = Connection(origin, deadline, self._tls, private, proxy)
        with contextlib.closing(connection):
            self._send(connection, request, origin, proxy)
            response = connection.getresponse()
            with contextlib.closing(response):
                body = self._body(response, through=proxy)
        url, code = request.full_url, response.status
        return urllib.response.addinfourl(io.BytesIO(body), response.headers, url, code)

    def _send(
        self,
        connection: Connection,
        request: urllib.request.Request,
        origin: Origin,
        proxy: Proxy | None,
    ) -> None:
        headers = dict(request.header_items())
        target = request.selector or "/"
        if proxy is not None and origin.scheme == "http":
            target = request.full_url
            headers.update(proxy.headers())
        # Not request(): it would write the proxy's name as the Host.
        connection.putrequest("GET", target, skip_host=True)
        connection.putheader("Host", origin.name)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()

    def _body(self, response: http.client.HTTPResponse, through: Proxy | None) -> bytes:
        code = response.status
        if code in _REDIRECTS and response.headers.get("Location") is not None:
            return b""
        if through is not None and code == 407:
            raise Failed("proxy", f"the proxy {through.shown} asks for user and password")
        if not 200 <= code < 300:
            raise http_failed(code, response.reason, _retry_after(response.headers))
        limits = self._limits
        tags = response.headers.get_all("X-Robots-Tag", [])
        if tags and is_opted_out(tags, limits.token, limits.opt_outs):
            raise Failed("opted_out", "Use of image disallowed by X-Robots-Tag directive")
        return read_body(response, limits.max_bytes)


@contextlib.contextmanager
def guarded_urlopen(limits: Limits) -> Iterator[Opener]:
    """Make `urllib.request.urlopen` obey `limits` in this process until the context is left."""
    before = urllib.request._opener  # type: ignore[attr-defined]  # there is no public getter
    opener = Opener(limits)
    urllib.request.install_opener(opener)
    try:
        yield opener
    finally:
        urllib.request.install_opener(before)


def _address(url: str) -> str:
    scheme = url.partition(":")[0].lower()
    if scheme not in {"http", "https"}:
        raise Failed("invalid_url", f"unknown url type: {scheme[:20]}")
    try:
        return addresses.normalise(url)
    except ValueError as error:
        raise Failed("invalid_url", str(error)) from error


def _target(base: str, location: str) -> str:
    try:
        # http.client reads headers as Latin-1; browsers read them as UTF-8.
        text = location.encode("latin-1").decode("utf-8", "replace")
        return addresses.join(base, text)
    except ValueError as error:
        raise Failed("bad_redirect", f"it redirects to what is no address: {error}") from error


def _without_credentials(url: str, origin: Origin) -> str:
    rest = url.partition("://")[2].partition("/")[2]
    return f"{origin.scheme}://{origin.name}/{rest}"


def _retry_after(headers: Any) -> float | None:  # an HTTPMessage
    """Return the seconds that a server asks to wait, by number or date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
