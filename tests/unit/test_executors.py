import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from capfilt.engine.executors import Advance, Processes, Serial, rank_slice
from capfilt.errors import WorkerError


@dataclass(frozen=True)
class Note:
    """Writes each shard's name and the process that did it; dies on request."""

    folder: str
    die_at: str = ""

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[Callable[[str], None]]:
        (Path(self.folder) / f"opened-{worker}-{os.getpid()}").touch()

        def do(shard: str) -> None:
            if shard == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if shard == "bad":
                raise ValueError("a bad shard")
            with open(Path(self.folder) / shard, "x") as out:
                out.write(str(os.getpid()))
            advance(10)

        yield do


@pytest.mark.parametrize("executor", [Serial(), Processes(2)])
def test_every_shard_once_and_every_worker_opened_once(
    executor: Serial | Processes, tmp_path: Path
) -> None:
    shards = [f"s{i}" for i in range(9)]
    rows: list[int] = []
    executor.run(Note(str(tmp_path)), shards, rows.append)
    assert sum(rows) == 90
    assert {p.name for p in tmp_path.glob("s*")} == set(shards)
    opened = [p.name.split("-")[1:] for p in tmp_path.glob("opened-*")]
    doers = {(tmp_path / shard).read_text() for shard in shards}
    assert doers <= {pid for _, pid in opened}
    assert len(opened) == (1 if isinstance(executor, Serial) else 2)


def test_no_shards_open_nothing(tmp_path: Path) -> None:
    Serial().run(Note(str(tmp_path)), [], lambda _: None)
    Processes(2).run(Note(str(tmp_path)), [], lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("executor", [Serial(), Processes(2)])
def test_a_failing_shard_is_an_error(executor: Serial | Processes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bad shard"):
        executor.run(Note(str(tmp_path)), ["a", "bad", "b"], lambda _: None)


def test_a_killed_worker_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="Run the same command again"):
        Processes(2).run(
            Note(str(tmp_path), die_at="s3"), [f"s{i}" for i in range(6)], lambda _: None
        )


_PARENT = """
import sys, time
from tests.unit.test_executors import Note, Sleeper
from capfilt.engine.executors import Processes
if __name__ == "__main__":
    Processes(2).run(Sleeper(sys.argv[1]), ["a", "b"], lambda _: None)
"""


@dataclass(frozen=True)
class Sleeper:
    folder: str

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[Callable[[str], None]]:
        def do(shard: str) -> None:
            (Path(self.folder) / f"pid-{os.getpid()}").touch()
            time.sleep(60)

        yield do


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)}
    )
    pids = _wait_for(lambda: [int(p.name[4:]) for p in tmp_path.glob("pid-*")], 2)
    parent.kill()
    parent.wait()
    _wait_for(lambda: [pid for pid in pids if not _runs(pid)], 2)


def _wait_for(found: Callable[[], list[int]], count: int) -> list[int]:
    for _ in range(600):
        if len(found()) >= count:
            return found()
        time.sleep(0.1)
    raise AssertionError(f"{found()} after a minute")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_ranks_share_the_shards_without_overlap() -> None:
    shards = [str(i) for i in range(11)]
    slices = [rank_slice(shards, rank, 3) for rank in range(3)]
    assert sorted((shard for own in slices for shard in own), key=int) == shards
