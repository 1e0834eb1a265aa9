"""Proxies: which one is used, what is told of it, and real requests through a real one."""

import base64
import io
import re
import socket
import socketserver
from contextlib import AbstractContextManager

import pytest
from PIL import Image

from capfilt import schema
from capfilt.errors import InputError, MachineError
from capfilt.fingerprint import fingerprint
from capfilt.plain import to_plain
from capfilt.stages.download import Download, stage
from capfilt.stages.download.health import FEWEST, Probes
from capfilt.stages.download.notes import fetch_notes
from capfilt.stages.download.proxy import Proxies, Proxy, choose_proxies, proxy_notes
from tests.stages.servers import running
from tests.stages.test_download import batch, fetch

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
UNKNOWN = {"dns", "dns_unavailable"}  # as the name service of this machine has it
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_PICTURE = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(_PICTURE, "JPEG")
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(_PICTURE.getvalue())
) + _PICTURE.getvalue()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class FakeProxy(socketserver.ThreadingTCPServer):
    """Answers every request itself; keeps the heads of all that it was asked."""

    daemon_threads = True

    def __init__(self, answer: bytes = ANSWER) -> None:
        self.heads: list[str] = []
        self.answer = answer
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, FakeProxy)
        lines = iter(self.rfile.readline, b"\r\n")
        self.server.heads.append(b"".join(lines).decode())
        self.wfile.write(self.server.answer)


def proxy(answer: bytes = ANSWER) -> AbstractContextManager[FakeProxy]:
    return running(FakeProxy(answer))


def row_of(url: str, **how: object) -> dict[str, object]:
    stage = Download(timeout=2.0, total_timeout=4.0, **how)  # type: ignore[arg-type]  # the fields'
    (row,) = fetch(stage, batch([url]))
    return row


def test_a_picture_comes_through_a_proxy_that_resolves_the_name() -> None:
    with proxy() as server:
        row = row_of(
            "http://pictures.invalid/a b.jpg?c", proxy=f"http://us:p%40ss@{server.address}"
        )
    assert row["status"] == schema.SUCCESS
    (head,) = server.heads
    assert head.startswith("GET http://pictures.invalid/a%20b.jpg?c HTTP/1.1\r\n")
    assert "\r\nHost: pictures.invalid\r\n" in head
    token = base64.b64encode(b"us:p@ss").decode()
    assert f"Proxy-Authorization: Basic {token}\r\n" in head


def test_https_goes_through_a_tunnel_and_tells_the_proxy_alone_who_we_are() -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    with proxy(refusal) as server:
        row = row_of("https://pictures.invalid/a.jpg", proxy=f"http://us:pw@{server.address}")
    (head,) = server.heads
    assert head.startswith("CONNECT pictures.invalid:443 HTTP/1.")
    assert "Proxy-Authorization: Basic " in head
    assert "a.jpg" not in head
    assert (row["failure"], row["status"]) == ("proxy_refused", schema.FAILED_TO_DOWNLOAD)
    assert "403" in str(row["error_message"])
    assert "pw" not in str(row["error_message"])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_or_is_not_there_is_the_failure(scheme: str) -> None:
    with proxy(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n") as server:
        row = row_of(f"{scheme}://pictures.invalid/a.jpg", proxy=server.address)
        assert row["failure"] == "proxy"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    row = row_of(f"{scheme}://pictures.invalid/a.jpg", proxy=f"http://me:secret@127.0.0.1:{port}")
    assert row["failure"] == "proxy"
    assert "secret" not in str(row["error_message"])
    assert f"127.0.0.1:{port}" in str(row["error_message"])


@pytest.mark.parametrize(
    ("answer", "stops"),
    [
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", False),
        (b"", False),
    ],
)
def test_a_proxy_that_fails_at_every_address_stops_the_run(answer: bytes, stops: bool) -> None:
    urls: list[str | None] = [f"https://h{n}.example/x" for n in range(FEWEST + 5)]
    with proxy(answer) as server:
        stage = Download(proxy=server.address, threads=2)
        if stops:
            with pytest.raises(MachineError, match="proxy"):
                fetch(stage, batch(urls))
            return
        assert {row["failure"] for row in fetch(stage, batch(urls))} == {"proxy_refused"}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_private_address_as_a_number_is_refused_before_the_proxy_is_asked(
    host: str, scheme: str
) -> None:
    with proxy() as server:
        row = row_of(f"{scheme}://{host}/a.jpg", proxy=server.address)
    assert row["failure"] == "private_address"
    assert server.heads == []


def test_the_environment_is_used_where_it_is_allowed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    well = Probes(names=lambda: True, route=lambda: True)
    monkeypatch.setattr(stage, "machine_probes", lambda _: well)
    with proxy() as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://{server.address}")
        monkeypatch.setenv("NO_PROXY", "direct.invalid")
        assert row_of("http://pictures.invalid/a.jpg")["failure"] in UNKNOWN
        assert server.heads == []
        assert row_of("http://pictures.invalid/a.jpg", proxy="env")["status"] == schema.SUCCESS
        assert row_of("http://www.direct.invalid/a.jpg", proxy="env")["failure"] in UNKNOWN
    assert len(server.heads) == 1


def test_a_mistyped_word_is_no_host() -> None:
    with pytest.raises(InputError, match="--proxy envv: give env, none, or http://host:port"):
        choose_proxies("envv")


@pytest.mark.parametrize(
    ("variables", "http", "https"),
    [
        ({"http_proxy": "http://a:1"}, "http://a:1", None),
        ({"HTTPS_PROXY": "a:1"}, None, "http://a:1"),
        ({"ALL_PROXY": "http://a"}, "http://a:80", "http://a:80"),
        ({"ALL_PROXY": "http://a:1", "https_proxy": "http://b:2"}, "http://a:1", "http://b:2"),
        ({"http_proxy": "", "ALL_PROXY": "http://[::1]:3"}, "http://[::1]:3", "http://[::1]:3"),
        ({}, None, None),
    ],
)
def test_variables(
    variables: dict[str, str],
    http: str | None,
    https: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    proxies = choose_proxies("env")
    found = [proxies.of(scheme, "x.example", 80) for scheme in ("http", "https")]
    assert [None if one is None else one.shown for one in found] == [http, https]
    assert choose_proxies("none").of("http", "x.example", 80) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct", "through"),
    [
        ("*", ["a.example", "10.0.0.1"], []),
        ("a.example", ["a.example", "A.EXAMPLE.", "www.a.example"], ["ba.example", "example"]),
        (".a.example, b.example", ["www.a.example", "a.example", "b.example"], ["c.example"]),
        ("*.a.example", ["www.a.example"], ["xa.example"]),
        ("10.0.0.0/8,::1,fd00::/8", ["10.1.2.3", "::1", "fd00::1"], ["11.0.0.1", "::2"]),
        ("10.0.0.1", ["10.0.0.1"], ["10.0.0.11"]),
        ("a.example:81,[::1]:81", [], ["a.example", "::1"]),
        ("a.example:80,[::1]:80", ["a.example", "::1"], []),
        ("", [], ["a.example"]),
        (" , ", [], ["a.example"]),
    ],
)
def test_no_proxy(no_proxy: str, direct: list[str], through: list[str]) -> None:
    proxies = Proxies({"http": Proxy("proxy.example", 3128)}, no_proxy)
    assert [proxies.of("http", host, 80) for host in direct] == [None] * len(direct)
    assert None not in [proxies.of("http", host, 80) for host in through]


@pytest.mark.parametrize(
    "text",
    [
        *("socks5://me:secret@a:1", "https://me:secret@a", "http://", "http://me:secret@:80"),
        *("http://me:secret@a:99999", "http://me:secret@[::1", "ftp://a"),
    ],
)
def test_what_is_no_http_proxy_is_refused_before_any_work(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="http://host:port") as refused:
        Download(proxy=text)
    monkeypatch.setenv("ALL_PROXY", text)
    with pytest.raises(InputError, match="ALL_PROXY"):
        fetch_notes(Download(proxy="env"))
    assert "secret" not in str(refused.value)


def test_each_run_is_told_once_and_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_notes("none") == []
    assert "no proxy is set" in proxy_notes("env")[0]
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@a.example:3128")
    (unused,) = proxy_notes("none")
    assert re.search(r"HTTPS_PROXY: .*not used.*--proxy env", unused)
    (used,) = proxy_notes("env")
    assert "http://a.example:3128" in used
    assert "private addresses" in used
    (given,) = proxy_notes("http://me:secret@b.example")
    assert "secret" not in unused + used + given


def test_a_proxy_is_of_the_machine_and_in_no_record() -> None:
    stage = Download(proxy="http://me:secret@a.example:3128")
    assert "secret" not in repr(stage) + repr(to_plain(stage)) + repr(choose_proxies(stage.proxy))
    assert stage == Download()
    assert fingerprint(stage) == fingerprint(Download())
