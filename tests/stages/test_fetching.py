"""What the downloader says, follows, decodes and waits for; and whose fault a failure is."""

import contextlib
import email.utils
import errno
import gzip
import io
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image

from capfilt import schema
from capfilt.cli.console import progress_bar
from capfilt.commands import folder as commands
from capfilt.commands.hardware import Hardware
from capfilt.commands.run import run as run_round
from capfilt.engine.attempts import cures_of
from capfilt.errors import InputError, MachineError
from capfilt.fingerprint import fingerprint, identity_fields
from capfilt.inputs import InputSpec
from capfilt.recipe.options import RoundOptions
from capfilt.stages.download import Download, connect, fetch, stage
from capfilt.stages.download.health import FEWEST, Health, Probes
from capfilt.stages.failures import FAILURES, can_pass
from tests.stages.servers import running
from tests.stages.test_download import batch
from tests.stages.test_download import fetch as rows_of

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
_BUFFER = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(_BUFFER, "JPEG")
JPEG = _BUFFER.getvalue()
OPEN = Download(allow_private_hosts=True, timeout=5.0, total_timeout=10.0, max_bytes=100_000)
Headers = list[tuple[str, str]]


class Server(ThreadingHTTPServer):
    """Answers by a function; keeps the paths that it was asked for."""

    request_queue_size = 200
    daemon_threads = True

    def __init__(self, reply: "Callable[[Handler], None]") -> None:
        self.reply = reply
        self.asked: list[str] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up here on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked.append(self.path)
        self.close_connection = True
        self.server.reply(self)

    def send(self, body: bytes = JPEG, code: int = 200, headers: Headers | None = None) -> None:
        self.send_response(code)
        for name, value in headers or []:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serving(reply: Callable[[Handler], None]) -> AbstractContextManager[Server]:
    return running(Server(reply))


def outcome(how: Download, reply: Callable[[Handler], None], path: str = "/x.jpg") -> Any:
    """Return (failure, paths asked for) of one address."""
    with serving(reply) as server:
        (row,) = rows_of(how, batch([server.root + path]))
    assert (row["failure"] is None) == (row["status"] == schema.SUCCESS)
    assert row["failure"] is None or row["error_message"]
    return row["failure"], server.asked


def always(body: bytes, *headers: tuple[str, str]) -> Callable[[Handler], None]:
    return lambda handler: handler.send(body, 200, list(headers))


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


# --- bodies


def gzipped(body: bytes) -> bytes:
    """Return a body whose bytes are the same in every process: its time is part of a gzip."""
    return gzip.compress(body, mtime=0)


@pytest.mark.parametrize(
    ("coding", "body", "failure"),
    [
        ("gzip", gzipped(JPEG), None),
        ("X-GZip", gzipped(JPEG), None),
        ("gzip", gzipped(JPEG[:100]) + gzipped(JPEG[100:]), None),
        ("gzip", JPEG, None),  # named, and not done
        ("deflate", zlib.compress(JPEG), None),
        ("deflate", raw_deflate(JPEG), None),
        ("deflate, gzip", gzipped(zlib.compress(JPEG)), None),
        ("identity", JPEG, None),
        ("", JPEG, None),
        ("gzip", gzipped(JPEG)[:-20], "incomplete_body"),
        ("gzip", gzipped(JPEG)[:10] + b"\xff" * 90, "bad_response"),
        ("deflate", b"\x78\x9c" + b"\xff" * 90, "bad_response"),
        ("gzip", gzipped(bytes(50_000_000)), "too_large"),
        ("deflate", zlib.compress(bytes(50_000_000)), "too_large"),
        ("gzip, gzip", gzipped(gzipped(bytes(50_000_000))), "too_large"),
        ("gzip, gzip, gzip, gzip", JPEG, "bad_response"),
        ("br", JPEG, "bad_response"),
    ],
)
def test_codings_that_nobody_asked_for(coding: str, body: bytes, failure: str | None) -> None:
    found, _ = outcome(OPEN, always(body, ("Content-Encoding", coding)))
    assert found == failure


def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()

    assert outcome(OPEN, reply)[0] == "too_large"


# --- redirects


def test_a_cookie_wall_is_passed_and_a_circle_is_not() -> None:
    def wall(handler: Handler) -> None:
        if "seen=1" in handler.headers.get("Cookie", ""):
            handler.send()
        else:
            handler.send(b"", 302, [("Location", handler.path), ("Set-Cookie", "seen=1; Path=/")])

    assert outcome(OPEN, wall) == (None, ["/x.jpg", "/x.jpg"])
    failure, asked = outcome(OPEN, lambda h: h.send(b"", 302, [("Location", "/x.jpg")]))
    assert (failure, len(asked)) == ("bad_redirect", 1)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("ok.jpg", "/dir/ok.jpg"),
        ("/a b.jpg", "/a%20b.jpg"),
        ("/写.jpg".encode().decode("latin-1"), "/%E5%86%99.jpg"),
        ("\\ok.jpg", "/ok.jpg"),
    ],
)
def test_redirects(code: int, location: str, place: str) -> None:
    def reply(handler: Handler) -> None:
        here = handler.path == "/dir/x.jpg"
        handler.send(b"", code, [("Location", location)]) if here else handler.send()

    assert outcome(OPEN, reply, "/dir/x.jpg") == (None, ["/dir/x.jpg", place])


@pytest.mark.parametrize("location", ["file:///etc/passwd", "data:,x", "http://[", "ftp://a/b"])
def test_redirects_out_of_the_web(location: str) -> None:
    failure, asked = outcome(OPEN, lambda h: h.send(b"", 302, [("Location", location)]))
    assert (failure, len(asked)) == ("bad_redirect", 1)


def test_a_chain_has_an_end() -> None:
    failure, asked = outcome(OPEN, lambda h: h.send(b"", 302, [("Location", h.path + "x")]))
    assert (failure, len(asked)) == ("bad_redirect", 11)


def test_total_timeout_is_for_all_redirects_together() -> None:
    def reply(handler: Handler) -> None:
        time.sleep(0.3)
        handler.send(b"", 302, [("Location", handler.path + "x")])

    how = Download(allow_private_hosts=True, timeout=5.0, total_timeout=1.0)
    failure, asked = outcome(how, reply)
    assert failure == "timeout"
    assert len(asked) <= 4  # of the eleven that a chain may have


def test_a_redirect_that_leads_to_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = "http://169.254.169.254/latest/"
    with serving(lambda h: h.send(b"", 302, [("Location", target)])) as server:
        monkeypatch.setattr(connect, "is_public", lambda address: address == "127.0.0.1")
        (row,) = rows_of(Download(timeout=2.0), batch([server.root + "/x"]))
    assert row["failure"] == "private_address"
    assert "169.254.169.254" in str(row["error_message"])


# --- what is sent


def sent(how: Download, path: str = "/x.jpg", user: str = "") -> Any:  # an HTTPMessage
    heads: list[Any] = []

    def reply(handler: Handler) -> None:
        heads.append(handler.headers)
        handler.send()

    with serving(reply) as server:
        rows_of(how, batch([server.root.replace("//", f"//{user}") + path]))
    return heads[0]


def test_headers() -> None:
    plain = sent(OPEN)
    assert plain["Accept"].startswith("image/")
    assert "Mozilla" in plain["User-Agent"]  # img2dataset's own
    assert plain["Referer"] is None
    assert plain["Authorization"] is None
    own = sent(Download(allow_private_hosts=True, user_agent="us/1 (+mail)", referer="origin"))
    assert own["User-Agent"] == "us/1 (+mail)"
    assert own["Referer"] == f"http://{own['Host']}/"
    page = "https://page.example/a"
    assert sent(Download(allow_private_hosts=True, referer=page))["Referer"] == page
    named = sent(OPEN, user="us%20er:p%40ss@")
    assert named["Authorization"] == "Basic dXMgZXI6cEBzcw=="
    assert "@" not in named["Host"]


def test_a_password_is_not_sent_on_to_where_a_redirect_leads() -> None:
    heads: list[Any] = []

    def reply(handler: Handler) -> None:
        heads.append(handler.headers)
        other = f"http://localhost:{handler.server.server_port}/y"
        handler.send() if handler.path == "/y" else handler.send(b"", 302, [("Location", other)])

    with serving(reply) as server:
        rows_of(OPEN, batch([server.root.replace("//", "//me:secret@") + "/x"]))
    assert [head["Authorization"] is None for head in heads] == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"referer": "somewhere"},
        {"user_agent": "a\r\nX-Evil: 1"},
        {"user_agent": "ünicode"},
        {"referer": "http://a.example/\r\nX: y"},
        {"host_requests": 0},
        {"max_bytes": 0},
    ],
)
def test_what_cannot_be_sent_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Download(**wrong)


def test_opt_outs_are_read_from_all_headers() -> None:
    tag = "X-Robots-Tag"
    valued = (tag, "max-image-preview:large, noai")
    assert outcome(OPEN, always(JPEG, (tag, "index"), valued))[0] == "opted_out"
    assert outcome(OPEN, always(JPEG, (tag, "otherbot: noai")))[0] is None
    token = Download(allow_private_hosts=True, user_agent_token="OtherBot")
    assert outcome(token, always(JPEG, (tag, "otherbot: noai")))[0] == "opted_out"
    free = Download(allow_private_hosts=True, disallowed_header_directives=())
    assert outcome(free, always(JPEG, (tag, "noai")))[0] is None


# --- hosts


def test_a_host_gets_no_more_than_its_share_of_requests() -> None:
    active: list[str] = []
    most: list[int] = []

    def reply(handler: Handler) -> None:
        active.append(handler.path)
        time.sleep(0.05)
        most.append(len(active))
        active.remove(handler.path)  # before the client can know that it is done
        handler.send()

    with serving(reply) as server:
        how = Download(allow_private_hosts=True, threads=16, host_requests=3)
        rows = rows_of(how, batch([f"{server.root}/{n}" for n in range(30)]))
    assert [row["status"] for row in rows] == [schema.SUCCESS] * 30
    assert max(most) <= 3


def test_a_slow_host_does_not_hold_up_the_others() -> None:
    """Two threads, and a host that answers only when the other host's rows are all there."""
    others = threading.Semaphore(0)

    def reply(handler: Handler) -> None:
        if handler.headers["Host"].startswith("127.0.0.1"):
            assert all(others.acquire(timeout=5) for _ in range(6))
            for _ in range(6):
                others.release()
        else:
            others.release()
        handler.send()

    with serving(reply) as server:
        slow = [f"{server.root}/{n}" for n in range(6)]
        fast = [f"http://localhost:{server.server_port}/{n}" for n in range(6)]
        how = Download(allow_private_hosts=True, threads=2, host_requests=1, timeout=9.0)
        rows = rows_of(how, batch([*slow, *fast]))
    assert [row["status"] for row in rows] == [schema.SUCCESS] * 12


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_honoured(code: int, dated: bool) -> None:
    first = threading.Event()
    times: list[float] = []

    def reply(handler: Handler) -> None:
        times.append(time.time())
        if first.is_set():
            handler.send()
            return
        first.set()
        when = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else "1"
        handler.send(b"", code, [("Retry-After", when)])

    failure, asked = outcome(OPEN, reply)
    assert (failure, len(asked)) == (None, 2)
    assert times[1] - times[0] >= 0.9  # the least that it may be, however slow the machine is


@pytest.mark.parametrize("value", ["3600", "never", "-1", "Fri, 31 Dec 9999 23:59:59 GMT", ""])
def test_a_pause_that_is_too_long_or_no_time_is_not_waited_for(value: str) -> None:
    failure, asked = outcome(OPEN, lambda h: h.send(b"", 429, [("Retry-After", value)]))
    assert (failure, len(asked)) == ("http_429", 1)


def test_a_host_that_always_asks_to_wait_is_asked_a_few_times() -> None:
    failure, asked = outcome(OPEN, lambda h: h.send(b"", 503, [("Retry-After", "0")]))
    assert (failure, len(asked)) == ("http_503", 3)


# --- kinds


def cut_chunk(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(JPEG) + JPEG[:200])


def cut_length(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(JPEG) + 9))
    handler.end_headers()
    handler.wfile.write(JPEG)


def endless_headers(handler: Handler) -> None:
    handler.send_response(200)
    for number in range(300):
        handler.send_header(f"X-{number}", "x")
    handler.send()


def drip(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100):
        handler.wfile.write(b"X-%d: x\r\n" % number)
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (lambda h: h.send(b"", 404), "http_404"),
        (lambda h: h.send(b"", 500), "http_500"),
        (lambda h: h.send(b"", 304), "http_304"),
        (lambda h: h.send(b"", 302), "http_302"),  # without a Location
        (lambda h: h.send(b"<html>"), "not_an_image"),
        (lambda h: h.wfile.write(b"SSH-2.0-x\r\n\r\n"), "bad_response"),
        (lambda h: h.wfile.write(b""), "reset"),
        (endless_headers, "bad_response"),
        (cut_chunk, "incomplete_body"),
        (cut_length, "incomplete_body"),
        (drip, "timeout"),
        (lambda h: time.sleep(1.5), "timeout"),
    ],
)
def test_what_servers_do_has_its_kind(reply: Callable[[Handler], None], failure: str) -> None:
    how = Download(allow_private_hosts=True, timeout=0.8, total_timeout=1.2)
    assert outcome(how, reply)[0] == failure
    assert failure in FAILURES or failure.startswith("http_")


def test_a_plain_server_at_an_https_address() -> None:
    with serving(lambda h: h.send()) as server:
        (row,) = rows_of(OPEN, batch([server.root.replace("http", "https") + "/x"]))
    assert row["failure"] == "tls"


def name_error(number: int) -> socket.gaierror:
    return socket.gaierror(number, "no")


@pytest.mark.parametrize(
    ("error", "failure", "passes"),
    [
        (OSError(errno.EMFILE, "x"), "machine", True),
        (OSError(errno.ENFILE, "x"), "machine", True),
        (OSError(errno.ENOMEM, "x"), "machine", True),
        (OSError(errno.ENOBUFS, "x"), "machine", True),
        (OSError(errno.EADDRNOTAVAIL, "x"), "machine", True),
        (MemoryError(), "machine", True),
        (RuntimeError("can't start new thread"), "machine", True),
        (name_error(socket.EAI_MEMORY), "machine", True),
        (name_error(socket.EAI_AGAIN), "dns_unavailable", True),
        (name_error(socket.EAI_NONAME), "dns", False),
        (OSError(errno.ENETUNREACH, "x"), "unreachable", True),
        (OSError(errno.EHOSTUNREACH, "x"), "unreachable", True),
        (OSError(errno.EAFNOSUPPORT, "x"), "unreachable", True),
        (OSError(errno.ECONNREFUSED, "x"), "refused", True),
        (OSError(errno.ETIMEDOUT, "x"), "timeout", True),
        (OSError(errno.ECONNRESET, "x"), "reset", True),
        (OSError(errno.EPIPE, "x"), "reset", True),
    ],
    ids=repr,
)
def test_whose_fault_it_is(
    error: Exception, failure: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(connect, "look_up", fails)
    (row,) = rows_of(OPEN, batch(["http://a.example/x"]))
    assert (row["failure"], can_pass(str(row["failure"]))) == (failure, passes)
    assert "Errno" not in str(row["error_message"])


WELL: Final = Probes(names=lambda: True, route=lambda: True)


def test_a_name_service_that_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = threading.Event()
    monkeypatch.setattr(connect, "look_up", lambda *_: never.wait(60))
    monkeypatch.setattr(stage, "machine_probes", lambda _: WELL)
    try:
        (row,) = rows_of(Download(timeout=0.2, total_timeout=1.0), batch(["http://a.example/x"]))
    finally:
        never.set()
    assert row["failure"] == "dns_unavailable"


# --- a machine that cannot fetch


MANY: list[str | None] = [f"http://h{n}.example/x" for n in range(FEWEST * 3)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "x"), "open files"),
        (MemoryError(), "memory"),
        (name_error(socket.EAI_AGAIN), "name service"),
        (name_error(socket.EAI_NONAME), "name service"),
        (OSError(errno.ENETUNREACH, "x"), "no route"),
    ],
    ids=repr,
)
def test_where_most_requests_fail_by_the_machine_nothing_is_booked(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def fails(*what: object) -> None:
        asked.append(what)
        raise error

    monkeypatch.setattr(connect, "look_up", fails)
    ill = Probes(names=lambda: False, route=lambda: False)
    monkeypatch.setattr(stage, "machine_probes", lambda _: ill)
    with pytest.raises(MachineError, match=words):
        rows_of(Download(threads=2), batch(MANY))
    assert FEWEST <= len(asked) < len(MANY)  # it stops when it is sure, not at the end


@pytest.mark.parametrize("error", [name_error(socket.EAI_AGAIN), OSError(errno.ENETUNREACH, "x")])
def test_pages_that_are_gone_stop_nothing_where_the_machine_is_well(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(connect, "look_up", fails)
    monkeypatch.setattr(stage, "machine_probes", lambda _: WELL)
    rows = rows_of(Download(threads=2), batch(MANY))
    assert {row["status"] for row in rows} == {schema.FAILED_TO_DOWNLOAD}


@pytest.mark.parametrize("count", [1, FEWEST - 1])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (name_error(socket.EAI_AGAIN), "gives no answers"),
        (name_error(socket.EAI_NONAME), "gives no answers"),
        (OSError(errno.ENETUNREACH, "x"), "no route"),
    ],
)
def test_a_shard_of_few_rows_is_not_booked_by_a_machine_that_is_offline(
    count: int, error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = connect.look_up

    def fails(host: str, port: int) -> list[Any]:
        if host == "127.0.0.1":
            return real(host, port)
        raise error

    monkeypatch.setattr(connect, "look_up", fails)
    ill = Probes(names=lambda: False, route=lambda: False)
    monkeypatch.setattr(stage, "machine_probes", lambda _: ill)
    with (
        serving(lambda h: h.send()) as server,
        Download(allow_private_hosts=True, threads=2).open() as transform,
    ):
        well = transform(batch([f"{server.root}/{n}" for n in range(200)]))
        assert set(well.column("status").to_pylist()) == {schema.SUCCESS}
        with pytest.raises(MachineError, match=told):
            transform(batch(MANY[:count]))


def test_a_shortage_now_and_then_is_booked_for_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = connect.look_up, Counter[str]()

    def sometimes(host: str, port: int) -> list[Any]:
        count["asked"] += 1
        if count["asked"] % 3 == 0:
            raise OSError(errno.EMFILE, "x")
        return real(host, port)

    monkeypatch.setattr(connect, "look_up", sometimes)
    with serving(lambda h: h.send()) as server:
        rows = rows_of(OPEN, batch([f"{server.root}/{n}" for n in range(60)]))
    assert Counter(row["failure"] for row in rows) == {None: 40, "machine": 20}


def test_health_asks_its_probes_only_when_it_must() -> None:
    calls = Counter[str]()

    def probe() -> bool:
        calls["asked"] += 1
        return True

    health = Health(Probes(probe, probe))
    for _ in range(FEWEST * 2):
        health.note("http_404")
        health.note(None)
        health.note("dns")
    assert calls["asked"] == 0
    for _ in range(1000):
        health.note("dns_unavailable")
    health.check()
    assert 0 < calls["asked"] <= 1000 // FEWEST


@pytest.mark.parametrize("what", ["thread", "disk"])
def test_no_thread_and_no_disk_to_work_with(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with OPEN.open() as transform, monkeypatch.context() as short:
        if what == "thread":
            short.setattr(threading.Thread, "start", no_thread)
        else:
            short.setattr(fetch, "_write_feather", no_disk)
        with pytest.raises(MachineError, match=r"cannot fetch.*again to go on"):
            transform(batch(["http://127.0.0.1:1/x"]))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_shard_is_left_at_once(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more rows than fit into the downloader's queues, and none that is handled any more."""

    class Interrupted:
        def __call__(self, *_: object) -> None:
            raise error

        def check(self) -> None:
            pass

    monkeypatch.setattr(stage, "decoder_process", lambda _: contextlib.nullcontext(Interrupted()))
    how = Download(allow_private_hosts=True, threads=2)
    left: list[type[BaseException]] = []

    def run(urls: list[str | None]) -> None:
        try:
            rows_of(how, batch(urls))
        except (KeyboardInterrupt, SystemExit) as raised:
            left.append(type(raised))

    with serving(lambda h: h.send()) as server:
        urls: list[str | None] = [f"{server.root}/{n}" for n in range(50)]
        thread = threading.Thread(target=run, args=(urls,), daemon=True)
        thread.start()
        thread.join(60)  # seconds; a pool that hangs does so for ever
    assert left == [error]


LITTLE = """
import resource, sys
soft, hard = map(int, sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from capfilt.stages.download.limits import bearable, make_room, shortage_hint
print(make_room(100), bearable(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(shortage_hint(100))
"""


@pytest.mark.parametrize(("soft", "hard", "all_borne"), [(64, 4096, True), (64, 64, False)])
def test_the_limit_of_open_files_is_raised_or_threads_are_fewer(
    soft: int, hard: int, all_borne: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE, str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    numbers, hint = done.stdout.splitlines()
    made, borne, limit = map(int, numbers.split())
    assert made == borne
    assert (borne == 100) == all_borne
    assert soft <= limit <= hard
    assert borne < limit
    assert (hint == "None") == all_borne


# --- identity


@pytest.mark.parametrize(
    "given_",
    [
        {"allow_private_hosts": True},
        {"timeout": 1.0},
        {"total_timeout": 1.0},
        {"threads": 1},
        {"host_requests": 1},
        {"proxy": "http://a.example:1"},
        {"user_agent": "us"},
        {"referer": "origin"},
    ],
)
def test_how_a_picture_is_fetched_is_no_part_of_what_it_is(given_: dict[str, Any]) -> None:
    assert fingerprint(Download(**given_)) == fingerprint(Download())


@pytest.mark.parametrize(
    "given_",
    [{"max_bytes": 9}, {"user_agent_token": "us"}, {"disallowed_header_directives": ("noai",)}],
)
def test_what_may_be_had_is(given_: dict[str, Any]) -> None:
    assert fingerprint(Download(**given_)) != fingerprint(Download())


def test_every_field_is_one_or_the_other() -> None:
    kept = set(identity_fields(Download()))
    assert kept == {"resize", "max_bytes", "user_agent_token", "disallowed_header_directives"}


# --- what commands make of it


class Run:
    """A run over a few addresses, in this process; `said` is what a user is told."""

    def __init__(self, folder: Path, urls: list[str]) -> None:
        self.pairs, self.folder, self.said = folder / "pairs.csv", folder / "run", list[str]()
        lines = [f"{url},text {number}" for number, url in enumerate(urls)]
        self.pairs.write_text("\n".join(["url,caption", *lines]), encoding="utf-8")

    def run(self, **options: Any) -> str:
        spec = InputSpec(paths=(str(self.pairs),))
        given = RoundOptions(policy="raw", dedup="none", **options)
        return run_round(spec, given, self.folder, WORK, progress_bar(True), self.say).text()

    def retry(self, **how: Any) -> str:
        bar = progress_bar(True)
        return commands.retry(self.folder, how, False, WORK, bar, self.say).text()

    def say(self, line: str) -> None:
        self.said.append(line)


WORK = Hardware(workers=1)


def test_rows_that_the_guard_refused_are_had_by_retry(tmp_path: Path) -> None:
    with serving(lambda h: h.send()) as server:
        run = Run(tmp_path, [f"{server.root}/{n}.jpg" for n in range(4)])
        run.run()
        run.retry()
        assert "retry: 0 rows to fetch again" in run.said
        assert server.asked == []
        assert "4 pairs kept" in run.retry(allow_private_hosts=True)
        assert len(server.asked) == 4
        assert "4 pairs kept" in run.run(allow_private_hosts=True, timeout=3.0, threads=2)
        assert "4 pairs kept" in run.run()
        assert len(server.asked) == 4  # nothing is fetched again


def test_what_a_server_forbids_is_asked_for_again_with_a_referer(tmp_path: Path) -> None:
    def hotlinked(handler: Handler) -> None:
        handler.send() if handler.headers["Referer"] else handler.send(b"", 403)

    with serving(hotlinked) as server:
        run = Run(tmp_path, [f"{server.root}/{n}.jpg" for n in range(3)])
        run.run(allow_private_hosts=True)
        run.retry()
        assert len(server.asked) == 3
        assert "3 pairs kept" in run.retry(referer="origin")


@pytest.mark.parametrize(
    ("given_", "kinds"),
    [
        ({}, set()),
        ({"timeout": 9.0, "threads": 1}, set()),
        ({"allow_private_hosts": True}, {"private_address"}),
        ({"referer": "origin"}, {"http_401", "http_403", "http_406"}),
        ({"user_agent": "us"}, {"http_401", "http_403", "http_406"}),
        ({"proxy": "env"}, {"dns"}),
        ({"proxy": "env", "allow_private_hosts": True}, {"dns", "private_address"}),
    ],
)
def test_what_is_given_to_retry_decides_what_it_takes(
    given_: dict[str, Any], kinds: set[str]
) -> None:
    assert cures_of(given_) == kinds
    assert not any(can_pass(kind) for kind in kinds)  # those are taken anyway


def test_gc_says_which_pictures_it_would_take_the_only_copy_of(tmp_path: Path) -> None:
    gone = ["/1.jpg"]

    def reply(handler: Handler) -> None:
        handler.send(b"", 404) if handler.path in gone else handler.send()

    with serving(reply) as server:
        run = Run(tmp_path, [f"{server.root}/{n}.jpg" for n in range(4)])
        run.run(allow_private_hosts=True)
        gone += ["/2.jpg", "/3.jpg"]
        run.run(allow_private_hosts=True, max_aspect_ratio=9)
        listed = commands.gc(run.folder, 1, False).text()
        assert "2 pictures in it came from the web, and this is their only copy" in listed
        assert listed.count("only copy") == 1
        assert "only copy" not in commands.gc(run.folder, 2, False).text()
        run.run(allow_private_hosts=True, image_size=20)
    listed = commands.gc(run.folder, 1, False).text()  # a smaller one is no copy
    assert "3 pictures in it came from the web" in listed


def test_a_run_is_told_of_proxies_that_it_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:1")
    with serving(lambda h: h.send()) as server:
        run = Run(tmp_path, [f"{server.root}/{n}.jpg" for n in range(2)])
        assert "2 pairs kept" in run.run(allow_private_hosts=True)
        told = [line for line in run.said if "HTTP_PROXY" in line]
        assert len(told) == 1
        assert "secret" not in told[0]
        monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
        with pytest.raises(InputError, match="HTTP_PROXY"):
            run.run(proxy="env")
    recorded = "".join(p.read_text() for p in run.folder.rglob("*.json"))
    assert "secret" not in recorded
