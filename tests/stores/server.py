"""A bucket on this machine: a server in a process of its own, that fails, is killed and comes back.

    python -m tests.stores.server FOLDER --port 9000 --faults 0.1

It is `localbucket`, with faults drawn for each request: an answer of 500 or 503 before or after the
work was done, a connection that ends without an answer, a slow one, and a 409 where a name is
created, which says nothing of who won. `--manner` makes it a store that is none for a run:
`careless` lets every writer win, `unable` knows no conditions, `hostile` refuses whatever is asked
and repeats all that it was told, secrets included.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

BUCKET: Final = "web"
KEY_ID: Final = "AKIACAPFILTTEST00001"
SECRET: Final = "keep/this+secret/out+of+all+records00001"
TOKEN: Final = "session-token-that-nobody-may-see"
MANNERS: Final = ("sound", "careless", "unable", "hostile")
_LOST: Final = ("before", "after", "cut", "slow", "conflict")
_STATUS: Final = {  # what is answered in place of the work
    "before": HTTPStatus.SERVICE_UNAVAILABLE,
    "conflict": HTTPStatus.CONFLICT,
    "unable": HTTPStatus.NOT_IMPLEMENTED,
    "hostile": HTTPStatus.FORBIDDEN,
}


class Bucket:
    """A bucket whose server is started, killed and started again at one address."""

    def __init__(
        self, folder: Path, faults: float = 0.0, manner: str = "sound", port: int = 0
    ) -> None:
        self.folder, self.port = folder, port or free_port()
        self._options = ["--faults", str(faults), "--manner", manner]
        (folder / BUCKET).mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it: the environment's own chain, and nothing else."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_REGION": "us-east-1",
        }

    def place(self, name: str) -> str:
        """Return the address of a folder in the bucket."""
        return f"s3://{BUCKET}/{name}"

    def files(self, name: str) -> list[Path]:
        """Return the objects below a folder, as files of this machine, sorted."""
        return sorted(p for p in (self.folder / BUCKET / name).rglob("*") if p.is_file())

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        command = [sys.executable, "-m", "tests.stores.server", str(self.folder)]
        command += ["--port", str(self.port), *self._options]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        await_port(self.port, self._process)

    def kill(self) -> None:
        """Kill it: nobody answers any more."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self.kills += 1


@contextmanager
def serving(folder: Path, faults: float = 0.0, manner: str = "sound") -> Iterator[Bucket]:
    """Serve a bucket whose objects lie in a folder."""
    bucket = Bucket(folder, faults, manner)
    bucket.start()
    try:
        yield bucket
    finally:
        bucket.kill()


@contextmanager
def outages(bucket: Bucket, seed: int = 0) -> Iterator[None]:
    """Kill the server now and then, and start it again a moment later."""
    rng, over = random.Random(seed), threading.Event()

    def disturb() -> None:
        while not over.wait(rng.uniform(1.0, 4.0)):
            bucket.kill()
            over.wait(rng.uniform(0.1, 1.5))
            bucket.start()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def await_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until somebody listens at a port, or the process that should is gone."""
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"the server ended with {process.returncode}")


def _handler(faults: float, manner: str, seed: int) -> type:
    import localbucket

    rng, lock = random.Random(seed), threading.Lock()

    def draw() -> str:
        with lock:
            return rng.choice(_LOST) if rng.random() < faults else ""

    class Faulty(localbucket.S3Handler):  # type: ignore[misc]  # ships no types
        wfile: Any  # a stream

        def _dispatch(self, action: Any) -> None:
            creates = bool(self.headers.get("If-None-Match"))
            if manner == "careless":
                del self.headers["If-None-Match"]
            fault = draw() if manner != "hostile" else "hostile"
            if manner == "unable" and creates:
                fault = "unable"
            if fault in _STATUS:
                self._read_body()
                found = _STATUS[fault if creates or fault != "conflict" else "before"]
                told = f"{self.path} {self.headers}" if fault == "hostile" else "by chance"
                self._send_error(localbucket.S3Error(found, "Refused", told))
            elif fault in {"after", "cut"}:
                self._silently(action)
                if fault == "after":
                    failed = HTTPStatus.INTERNAL_SERVER_ERROR
                    self._send_error(localbucket.S3Error(failed, "InternalError", "by chance"))
            else:
                time.sleep(0.3 if fault == "slow" else 0)
                super()._dispatch(action)

        def _silently(self, action: Any) -> None:
            """Do what is asked, and say nothing."""
            answer = self.wfile
            with open(os.devnull, "wb") as self.wfile:
                super()._dispatch(action)
            self.wfile = answer
            self.close_connection = True

    return Faulty


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.stores.server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--manner", choices=MANNERS, default="sound")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    handler: Any = _handler(options.faults, options.manner, options.seed)
    handler.data_root = options.folder.resolve()

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    Server(("127.0.0.1", options.port), handler).serve_forever()


if __name__ == "__main__":
    main()
