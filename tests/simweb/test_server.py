"""The loopback server: every fault over real HTTP, counts, safety of paths, clean endings."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, UnidentifiedImageError

from capfilt.errors import InputError
from capfilt.simweb.corruption import Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.pictures import Picture
from capfilt.simweb.replies import FaultSettings, Reply, Visit, reply_to
from capfilt.simweb.server import HITS_PATH, WebServer
from capfilt.simweb.web import SimulatedWeb

WEB = SimulatedWeb(seed=5, rows=20, noise=Noise().scaled(0))
SETTINGS = FaultSettings(delay_s=0.05, drip_s=0.001, huge_bytes=1 << 30)
PATHS = {fault: f"/img/{number:09d}.jpg" for number, fault in enumerate(Fault) if number < 20}
PATHS |= {fault: f"/{fault}.jpg" for fault in Fault if fault not in PATHS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for path in PATHS.values():
        if not path.startswith("/img/"):
            (folder / path[1:]).write_bytes(jpeg_of_row(0))
    return folder


@pytest.fixture(scope="module")
def server(pictures: Path) -> Iterator[WebServer]:
    faults = {path: fault for fault, path in PATHS.items()}
    with WebServer(WEB, pictures, faults, SETTINGS) as running:
        yield running


def jpeg_of_row(index: int) -> bytes:
    return WEB.image_bytes(WEB.row(index).picture)


def fetch(server: WebServer, path: str) -> tuple[Any, bytes]:
    with urllib.request.urlopen(server.url(path), timeout=20) as answer:
        return answer, answer.read()


def without_following(server: WebServer, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


@pytest.mark.parametrize(
    "fault", [Fault.NONE, Fault.SLOW, Fault.DRIP, Fault.REDIRECT, Fault.TEXT_PLAIN, Fault.NO_AI]
)
def test_harmless_faults_deliver_the_whole_picture(server: WebServer, fault: Fault) -> None:
    answer, body = fetch(server, PATHS[fault])
    expected = "text/plain" if fault is Fault.TEXT_PLAIN else "image/jpeg"
    assert answer.headers["Content-Type"] == expected
    assert answer.headers["X-Robots-Tag"] == ("noai" if fault is Fault.NO_AI else None)
    assert answer.url.endswith("/moved" + PATHS[fault]) == (fault is Fault.REDIRECT)
    number = PATHS[fault].removesuffix(".jpg")[-9:]
    assert body == jpeg_of_row(int(number) if number.isdecimal() else 0)
    Image.open(io.BytesIO(body)).load()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.NOT_FOUND, 404),
        (Fault.GONE, 410),
        (Fault.FORBIDDEN, 403),
        (Fault.TOO_MANY, 429),
        (Fault.BROKEN_SERVER, 503),
    ],
)
def test_statuses(server: WebServer, fault: Fault, status: int) -> None:
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as caught:
            fetch(server, PATHS[fault])
        assert caught.value.code == status
        assert (caught.value.headers["Retry-After"] is not None) == (status == 429)
        caught.value.close()


def test_flaky_answers_500_and_then_the_picture(pictures: Path) -> None:
    path = PATHS[Fault.NONE]
    settings = FaultSettings(failures=2)
    with WebServer(WEB, pictures, {path: Fault.FLAKY}, settings) as server:
        codes = [without_following(server, path).status for _ in range(4)]
        assert server.hits[path] == 4
    assert codes == [500, 500, 200, 200]


@pytest.mark.parametrize("fault", [Fault.REDIRECT_LOOP, Fault.REDIRECT_CHAIN])
def test_endless_redirects_are_given_up_by_the_client(server: WebServer, fault: Fault) -> None:
    with pytest.raises(urllib.error.HTTPError, match="infinite loop") as caught:
        fetch(server, PATHS[fault])
    caught.value.close()
    assert 2 <= server.hits[PATHS[fault]] <= 11


@pytest.mark.parametrize(
    ("fault", "location"),
    [
        (Fault.REDIRECT_ELSEWHERE, "http://elsewhere.invalid"),
        (Fault.REDIRECT_FILE, "file:///etc/passwd"),
        (Fault.REDIRECT_METADATA, "http://169.254.169.254/latest/meta-data/"),
    ],
)
def test_redirects_to_where_no_client_should_go(
    server: WebServer, fault: Fault, location: str
) -> None:
    answer = without_following(server, PATHS[fault])
    assert answer.status == 302
    assert answer.headers["Location"].startswith(location)


def test_truncated_body_closes_before_its_stated_length(server: WebServer) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        fetch(server, PATHS[Fault.TRUNCATED])
    assert len(caught.value.partial) > 0
    assert caught.value.expected is not None
    assert caught.value.expected > 0


def test_reset_is_a_reset_and_not_a_polite_end(server: WebServer) -> None:
    with socket.create_connection(("127.0.0.1", int(server.base_url.rpartition(":")[2]))) as line:
        line.sendall(f"GET {PATHS[Fault.RESET]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            line.recv(100)


@pytest.mark.parametrize("fault", [Fault.HTML, Fault.EMPTY, Fault.BROKEN_JPEG, Fault.HALF_JPEG])
def test_wrong_bytes_are_delivered_whole_and_are_no_picture(
    server: WebServer, fault: Fault
) -> None:
    answer, body = fetch(server, PATHS[fault])
    assert answer.status == 200
    assert len(body) == int(answer.headers["Content-Length"])
    assert (answer.headers["Content-Type"] == "text/html") == (fault is Fault.HTML)
    with pytest.raises((UnidentifiedImageError, OSError)):
        Image.open(io.BytesIO(body)).load()


@pytest.mark.parametrize("fault", [Fault.HUGE, Fault.ENDLESS])
def test_huge_bodies_begin_with_a_picture_and_go_on(server: WebServer, fault: Fault) -> None:
    with urllib.request.urlopen(server.url(PATHS[fault]), timeout=20) as answer:
        start = answer.read(1 << 20)
        length = answer.headers["Content-Length"]
    Image.open(io.BytesIO(start)).load()
    assert start.endswith(bytes(1000))
    assert len(start) == 1 << 20
    assert (length is None) == (fault is Fault.ENDLESS)
    if length is not None:
        assert int(length) > SETTINGS.huge_bytes


def test_endless_body_ends_after_its_padding() -> None:
    path = "/img/000000001.jpg"
    settings = FaultSettings(huge_bytes=200_001)
    with WebServer(WEB, faults={path: Fault.ENDLESS}, settings=settings) as server:
        body = fetch(server, path)[1]
    assert body == jpeg_of_row(1) + bytes(200_001)


def test_every_fault_changes_the_answer() -> None:
    healthy = Reply(body=jpeg_of_row(0))
    visit = Visit(path="/a.jpg", query="", attempt=1, settings=SETTINGS)
    same = {fault for fault in Fault if reply_to(visit, fault, lambda: healthy) == healthy}
    assert same == {Fault.NONE, Fault.REFUSED}  # nobody is there to answer the latter


def test_hits_count_every_request_once_also_under_concurrency() -> None:
    paths = [f"/img/{number % 7:09d}.jpg" for number in range(70)]
    with WebServer(WEB) as server:
        with ThreadPoolExecutor(16) as pool:
            bodies = list(pool.map(lambda path: fetch(server, path)[1], paths))
        hits = server.hits
        remote = json.loads(fetch(server, HITS_PATH)[1])
        assert server.hits == hits
    assert set(hits.values()) == {10}
    assert dict(hits) == remote
    assert bodies == [jpeg_of_row(number % 7) for number in range(70)]


def test_addresses_outside_the_web_are_404(server: WebServer) -> None:
    for path in ("/", "/img/", "/img/000000020.jpg", "/img/5.jpg", "/img/x", "/cdn/000000001.jpg"):
        assert without_following(server, path).status == 404, path


def test_the_web_plays_its_own_faults() -> None:
    web = SimulatedWeb(seed=1, rows=10, noise=Noise(faults=((Fault.GONE, 1.0),)))
    with WebServer(web) as server:
        assert without_following(server, "/img/000000000.jpg").status == 410


def test_folder_serves_files_by_name_and_type(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a b%é.png").write_bytes(b"png")
    (tmp_path / "noext").write_bytes(b"raw")
    with WebServer(folder=tmp_path) as server:
        answer, body = fetch(server, "deep/a b%é.png")
        assert (answer.headers["Content-Type"], body) == ("image/png", b"png")
        answer, body = fetch(server, "noext")
        assert (answer.headers["Content-Type"], body) == ("application/octet-stream", b"raw")
        assert server.hits == {"/deep/a b%é.png": 1, "/noext": 1}


def test_nothing_outside_the_folder_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "open-too").mkdir()
    (tmp_path / "open-too" / "x.jpg").write_bytes(b"secret")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    hostile = [
        "/../secret.jpg",
        "/%2e%2e/secret.jpg",
        "/..%2fsecret.jpg",
        "/a/../../secret.jpg",
        "/../open-too/x.jpg",
        f"//{tmp_path}/secret.jpg",
        f"/%2f{tmp_path}/secret.jpg",
        "/link.jpg",
        "/moved/../secret.jpg",
        "/secret.jpg%00.jpg",
        "/.",
        "/" + "a" * 5000,
        "/%ff%fe",
    ]
    with WebServer(folder=folder) as server:
        assert [without_following(server, path).status for path in hostile] == [404] * len(hostile)


def test_missing_folder_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        WebServer(folder=tmp_path / "nowhere")


def test_connections_are_kept_alive() -> None:
    with WebServer(WEB) as server:
        connection = http.client.HTTPConnection(server.base_url.removeprefix("http://"), timeout=20)
        for number in range(3):
            connection.request("GET", f"/img/{number:09d}.jpg")
            assert connection.getresponse().read() == jpeg_of_row(number)
        port = connection.sock.getsockname()[1]
        connection.request("GET", "/missing")
        connection.getresponse().read()
        assert connection.sock.getsockname()[1] == port
        connection.close()


def test_a_port_in_use_is_told() -> None:
    with WebServer(WEB) as server, pytest.raises(InputError, match="in use; 0 takes"):
        WebServer(WEB, port=int(server.base_url.rpartition(":")[2]))


def test_closing_ends_every_thread_even_in_the_middle_of_answers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths = [f"/img/{number:09d}.jpg" for number in range(4)]
    faults = dict(zip(paths, (Fault.SLOW, Fault.DRIP, Fault.ENDLESS, Fault.NONE), strict=True))
    settings = FaultSettings(delay_s=600, drip_s=600, drip_bytes=1)
    before = set(threading.enumerate())
    lines = []
    with WebServer(WEB, faults=faults, settings=settings) as server:
        for path in paths:
            line = socket.create_connection(("127.0.0.1", int(server.base_url.rpartition(":")[2])))
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            lines.append(line)
        for line in lines[1:]:
            assert line.recv(1)
    assert set(threading.enumerate()) <= before
    for line in lines:
        line.close()
    assert capfd.readouterr() == ("", "")


class BrokenWeb:
    """A web with a defect."""

    def picture_at(self, path: str) -> Picture | None:
        return WEB.picture_at(path)

    def image_bytes(self, picture: Picture) -> bytes:
        raise ZeroDivisionError(picture.path)


def test_a_defect_of_the_server_itself_is_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    with WebServer(BrokenWeb()) as server, pytest.raises(http.client.RemoteDisconnected):
        without_following(server, "/img/000000001.jpg")
    assert "ZeroDivisionError: /img/000000001.jpg" in capfd.readouterr().err


def start_process(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "capfilt.simweb.server", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("ending", ["sigterm", "stdin"])
def test_process_prints_its_address_and_ends_when_told(ending: str) -> None:
    with start_process("--rows", "20", "--seed", "5", "--noise", "0") as process:
        assert process.stdout is not None
        hello = json.loads(process.stdout.readline())
        assert hello["pid"] == process.pid
        with urllib.request.urlopen(hello["base_url"] + "/img/000000003.jpg") as answer:
            assert answer.read() == jpeg_of_row(3)
        if ending == "sigterm":
            os.kill(process.pid, signal.SIGTERM)
            process.wait(timeout=20)
        out, err = process.communicate(timeout=20)  # closes standard input
    assert (process.returncode, out, err) == (0, "", "")


def test_process_says_what_is_wrong_with_its_options(tmp_path: Path) -> None:
    with start_process("--folder", str(tmp_path / "none")) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    assert err == f"{tmp_path / 'none'}: not a folder; give one whose files are to be served\n"
