import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from capfilt.engine.executors import DoShard, Processes, Serial, runs_of
from capfilt.errors import PlanError, WorkerError
from capfilt.process import signals
from capfilt.progress import Advance


@dataclass(frozen=True)
class Note:
    """Writes each shard's name and the process that did it; dies on request."""

    folder: str
    die_at: str = ""
    shards_at_a_time: int = 1

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[DoShard]:
        (Path(self.folder) / f"opened-{worker}-{os.getpid()}").touch()

        def do(shard: str, following: str | None = None) -> None:
            if shard == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if shard == "bad":
                raise ValueError("a bad shard")
            with open(Path(self.folder) / shard, "x") as out:
                out.write(f"{os.getpid()} {following}")
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
    doers = {(tmp_path / shard).read_text().split()[0] for shard in shards}
    assert doers <= {pid for _, pid in opened}
    assert len(opened) == (1 if isinstance(executor, Serial) else 2)


@pytest.mark.parametrize("executor", [Serial(), Processes(2)])
def test_a_worker_is_told_of_its_next_shard(executor: Serial | Processes, tmp_path: Path) -> None:
    shards = [f"s{i}" for i in range(20)]
    executor.run(Note(str(tmp_path), shards_at_a_time=3), shards, lambda _: None)
    told = {shard: (tmp_path / shard).read_text().split()[1] for shard in shards}
    known = {shard: name for shard, name in told.items() if name != "None"}
    assert all(name == f"s{int(shard[1:]) + 1}" for shard, name in known.items())
    assert len(known) == (19 if isinstance(executor, Serial) else 8)


def test_runs_get_shorter_towards_the_end() -> None:
    shards = [f"s{i}" for i in range(40)]
    runs = list(runs_of(shards, 2, 4))
    assert [placed for run in runs for placed in run] == list(enumerate(shards, start=1))
    assert [len(run) for run in runs] == [4, 4, 4, 4, 4, 4, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1]
    assert {len(run) for run in runs_of(shards, 2, 1)} == {1}


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
    shards_at_a_time: int = 1

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[DoShard]:
        def do(shard: str, following: str | None = None) -> None:
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


# A script that does its work in whatever way it is run, with a job of its own or of a module.
_SCRIPT = """
import contextlib, sys
from dataclasses import dataclass
from pathlib import Path
from capfilt.engine.executors import Processes
from tests.unit.test_executors import Note

@dataclass(frozen=True)
class Own(Note):
    pass

{guard}Processes(2).run({job}(sys.argv[1]), ["a", "b", "c"], lambda _: None)
"""


def script(
    tmp_path: Path, job: str, guard: str = "", stdin: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run the script from a file, or from standard input."""
    file, root = tmp_path / "script.py", Path(__file__).parents[2]
    (tmp_path / "out").mkdir()
    file.write_text(_SCRIPT.format(job=job, guard=guard))
    return subprocess.run(
        [sys.executable, "-" if stdin else str(file), str(tmp_path / "out")],
        input=file.read_text() if stdin else None,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


@pytest.mark.parametrize("stdin", [False, True])
def test_a_script_without_a_main_guard_runs(tmp_path: Path, stdin: bool) -> None:
    ran = script(tmp_path, "Note", stdin=stdin)
    assert ran.returncode == 0, ran.stderr
    assert {p.name for p in (tmp_path / "out").iterdir() if len(p.name) == 1} == {"a", "b", "c"}


def test_a_job_that_a_guarded_script_defines_runs(tmp_path: Path) -> None:
    ran = script(tmp_path, "Own", guard='if __name__ == "__main__": ')
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("stdin", "why"),
    [
        (False, 'Guard what it does: if __name__ == "__main__":'),
        (True, "cannot import what is defined on standard input or in a notebook"),
    ],
)
def test_a_worker_that_cannot_begin_is_told_as_that(tmp_path: Path, stdin: bool, why: str) -> None:
    ran = script(tmp_path, "Own", stdin=stdin)
    last = ran.stderr.strip().splitlines()[-1]
    assert why in last
    assert "out of memory" not in last


def test_a_job_that_cannot_be_sent_is_told_before_any_process(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Inner(Note):
        pass

    with pytest.raises(PlanError, match="cannot be sent to worker processes"):
        Processes(2).run(Inner(str(tmp_path)), ["a", "b"], lambda _: None)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Littering:
    """Leaves temporary files as libraries do, and ignores that it is asked to end."""

    folder: str
    shards_at_a_time: int = 1

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[DoShard]:
        handlers = [signal.getsignal(number) for number in signals.ENDING]

        def do(shard: str, following: str | None = None) -> None:
            place = Path(tempfile.mkdtemp())
            assert handlers == [signal.SIG_IGN] * len(handlers)
            assert place.parent != Path(self.folder)
            (Path(self.folder) / shard).write_text(str(place))

        yield do


def test_temporary_files_of_workers_go_with_them(tmp_path: Path) -> None:
    Processes(2).run(Littering(str(tmp_path)), ["a", "b", "c"], lambda _: None)
    places = [Path(file.read_text()) for file in tmp_path.iterdir()]
    assert len(places) == 3
    assert not any(place.exists() or place.parent.exists() for place in places)
