"""Being ended by signals, with real processes: what is kept, what is said, what is left."""

import contextlib
import http.server
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.models.checkpoints import EMBEDDED
from tests.waiting import wait_for

CAPFILT = (sys.executable, "-m", "capfilt")


@dataclass
class Gate:
    """A server of pictures that answers `open_for` requests, and lets all others wait."""

    address: str
    open_for: int
    lock: threading.Lock

    def passes(self) -> bool:
        with self.lock:
            self.open_for -= 1
            return self.open_for >= 0


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def gate() -> Iterator[Gate]:
    body = picture("red")
    shut = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not found.passes():
                shut.wait(120)
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Gate(f"http://127.0.0.1:{server.server_port}", 10**9, threading.Lock())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    shut.set()
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Command:
    """A command in a session of its own, with a temporary folder of its own."""

    process: "subprocess.Popen[str]"
    temporary: Path

    def ended(self) -> str:
        """Wait for its end, see that it left nothing behind; returns its standard error."""
        _, said = self.process.communicate(timeout=60)
        wait_for(lambda: not self.members())  # the last one closes its pipes just before it is gone
        assert list(self.temporary.iterdir()) == []
        return said

    def members(self) -> list[int]:
        """Return the processes of its session that run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(pid)]

    def _has(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            state, _, _, session = (
                Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
            )
            return int(session) == self.process.pid and state != "Z"
        return False


@contextlib.contextmanager
def begun(folder: Path, *command: str | Path) -> Iterator[Command]:
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    try:
        yield Command(process, temporary)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_command(folder: Path, gate: Gate, workers: int) -> list[str | Path]:
    urls = folder / "urls.csv"
    rows = [f"{gate.address}/{number}.jpg,word {number}" for number in range(60)]
    urls.write_text("\n".join(["url,caption", *rows]))
    sizes = ["--workers", str(workers), "--threads", "4", "--shard-rows", "10"]
    policy = ["--policy", "raw", "--dedup", "none", "--allow-private-hosts", "--quiet"]
    waits = ["--timeout", "100", "--total-timeout", "100"]
    return [*CAPFILT, "run", urls, "--run", folder / "run", *policy, *sizes, *waits]


def downloaded(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run/stages").glob("download-*/*.parquet")}


@pytest.mark.parametrize(
    ("number", "to_group", "workers"),
    [
        (signal.SIGTERM, True, 2),  # as systemd and many batch systems send it
        (signal.SIGHUP, True, 1),
    ],
)
def test_a_signal_keeps_what_is_finished_and_leaves_nothing_else(
    tmp_path: Path, gate: Gate, number: int, to_group: bool, workers: int
) -> None:
    gate.open_for = 30
    command = run_command(tmp_path, gate, workers)
    with begun(tmp_path, *command) as ran:
        wait_for(lambda: gate.open_for < -3 and downloaded(tmp_path))
        assert list(ran.temporary.iterdir()) != []
        (os.killpg if to_group else os.kill)(ran.process.pid, number)
        *_, last = ran.ended().splitlines()
    word = {2: "interrupted", 15: "terminated", 1: "hung up"}[number]
    assert ran.process.returncode == 128 + number
    assert last == (
        f"capfilt: {word}; what is finished is kept; run the same command again to go on"
    )
    assert list((tmp_path / "run/.tmp").iterdir()) == []
    kept = downloaded(tmp_path)
    assert kept
    if workers == 1:
        return
    gate.open_for = 60 - 10 * len(kept)  # not one request more
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "60 pairs kept" in done.stdout
    assert gate.open_for == 0


def test_timeout_signals_twice_and_means_one_request(tmp_path: Path, gate: Gate) -> None:
    gate.open_for = 0
    with begun(tmp_path, "timeout", "4", *run_command(tmp_path, gate, 2)) as ran:
        said = ran.ended()
    assert ran.process.returncode == 124  # of `timeout` itself
    assert said.splitlines()[-1].startswith("capfilt: terminated; ")


def test_a_second_signal_ends_all_at_once(tmp_path: Path, gate: Gate) -> None:
    program = (
        "import sys, time\n"
        "from capfilt.cli import console\n"
        "def app():\n"
        "    try:\n"
        "        print('begun', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('ending', flush=True); time.sleep(60)\n"
        "console.main(app)\n"
    )
    with begun(tmp_path, sys.executable, "-c", program) as ran:
        assert ran.process.stdout is not None
        assert ran.process.stdout.readline() == "begun\n"
        ran.process.send_signal(signal.SIGTERM)
        assert ran.process.stdout.readline() == "ending\n"
        while ran.process.poll() is None:
            time.sleep(0.3)
            ran.process.send_signal(signal.SIGINT)
        ran.ended()
    assert ran.process.returncode == 128 + signal.SIGINT


def test_what_a_killed_command_left_in_the_temporary_folder_goes_with_the_next(
    tmp_path: Path, gate: Gate
) -> None:
    gate.open_for = 0
    with begun(tmp_path, *run_command(tmp_path, gate, 2)) as ran:
        wait_for(lambda: gate.open_for < -3)
        ran.process.kill()
        wait_for(lambda: not ran.members())
        assert list(ran.temporary.iterdir()) != []
    with begun(tmp_path, *CAPFILT, "status", tmp_path / "run") as after:
        after.ended()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of forty pictures, for trainings."""
    folder = tmp_path_factory.mktemp("pairs")
    colours = ("red", "green", "blue", "white")
    rows = [
        {
            "key": str(number),
            "image": {"bytes": picture(colours[number % 4]), "path": f"{number}.jpg"},
            "text": f"a {colours[number % 4]} picture",
        }
        for number in range(40)
    ]
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/train-00000-of-00001.parquet")
    return folder


def trained_steps(out: Path) -> bool:
    return any(out.rglob("checkpoints/step-*"))


def test_a_training_ends_in_the_same_way(tmp_path: Path, pairs: Path) -> None:
    options: list[str | Path] = [
        "--like",
        EMBEDDED,
        "--steps",
        "100000",
        "--batch-size",
        "2",
        "--every",
        "1",
    ]
    command: list[str | Path] = [
        *CAPFILT,
        "train",
        "captioner",
        pairs,
        "--out",
        tmp_path / "out",
        *options,
    ]
    with begun(tmp_path, *command, "--quiet", "--device", "cpu") as ran:
        wait_for(lambda: trained_steps(tmp_path / "out") or ran.process.poll() is not None)
        ran.process.send_signal(signal.SIGTERM)
        said = ran.ended()
    assert ran.process.returncode == 143
    assert said.splitlines()[-1].startswith("capfilt: terminated; what is finished is kept")
    assert list((tmp_path / "out/.tmp").iterdir()) == []


@pytest.mark.parametrize(("processes", "to_group"), [(1, True), (2, False)])
def test_rounds_end_with_their_trainings(
    tmp_path: Path, pairs: Path, gate: Gate, processes: int, to_group: bool
) -> None:
    urls = run_command(tmp_path, gate, 1)[4]
    options: list[str | Path] = [
        "--like",
        EMBEDDED,
        "--human",
        pairs,
        "--steps",
        "100000",
        "--batch-size",
        "4",
    ]
    work = ["--processes", str(processes), "--device", "cpu", "--every", "1", "--queue-size", "16"]
    command: list[str | Path] = [
        *CAPFILT,
        "rounds",
        "1",
        urls,
        "--out",
        tmp_path / "out",
        "--allow-private-hosts",
    ]
    with begun(tmp_path, *command, *options, *work) as ran:
        wait_for(lambda: trained_steps(tmp_path / "out") or ran.process.poll() is not None)
        (os.killpg if to_group else os.kill)(ran.process.pid, signal.SIGTERM)
        said = ran.ended()
    assert ran.process.returncode == 143, said
    assert "capfilt: terminated; what is finished is kept" in said
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "out").rglob(".tmp/*")]
