"""Executors: a map over shards that knows neither stages nor Parquet.

Serial runs in this process; `Processes` runs one process a worker (or a device). A job is opened
once in each process, so a model is loaded once and serves all shards of that worker.
"""

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, runtime_checkable

from capfilt.errors import WorkerError
from capfilt.process import temporary
from capfilt.process.launching import Packed, launching, pack, start_tracker, why_not_begun
from capfilt.process.pool import die_with_parent
from capfilt.process.signals import kill_children, leave_to_parent
from capfilt.process.temporary import private_folder
from capfilt.progress import Advance

if TYPE_CHECKING:
    import ctypes
    from multiprocessing.sharedctypes import Synchronized

_POLL_SECONDS: Final = 0.2
_DIED: Final = (
    "a worker process died; finished shards are kept. It was killed (out of memory is the usual "
    "reason: try fewer --workers) or crashed in native code. Run the same command again to go on."
)

_Numbers: TypeAlias = "ctypes.Array[ctypes.c_longlong]"
_Placed: TypeAlias = tuple[int, str]  # a shard's place, counted from 1, and its name


class DoShard(Protocol):
    """Does one shard; `following` is the one after it, where that is known."""

    def __call__(self, shard: str, following: str | None = None, /) -> None:
        """Do it."""


class Job(Protocol):
    """Work that can be sent to another process (it is pickled) and opened there once.

    `shards_at_a_time`: how many shards a worker is given together, so that it knows the next one.
    """

    @property
    def shards_at_a_time(self) -> int:
        """1, or more where a shard is begun while the one before it is done."""

    def open(self, worker: int, advance: Advance) -> AbstractContextManager[DoShard]:
        """Load what it needs; yields a function that does one shard. `worker` counts from 0."""


@runtime_checkable
class Rescuable(Protocol):
    """A job that can do a shard again which has ended its worker."""

    def rescue(self, shard: str) -> None:
        """Do the shard, whatever there is in it that ends a process."""


class Executor(Protocol):
    """Runs a job on every shard."""

    def run(self, job: Job, shards: Sequence[str], advance: Advance) -> None:
        """Do all shards; returns when the last is done, raises at the first failure."""


@dataclass(frozen=True, slots=True)
class Serial:
    """One shard after the other, in this process."""

    def run(self, job: Job, shards: Sequence[str], advance: Advance) -> None:
        """Do all shards in order."""
        if not shards:
            return
        with job.open(0, advance) as do:
            for shard, following in zip_longest(shards, shards[1:]):
                do(shard, following)


@dataclass(frozen=True, slots=True)
class Processes:
    """`count` processes, each with the job opened once."""

    count: int

    def run(self, job: Job, shards: Sequence[str], advance: Advance) -> None:
        """Do all shards, in any order. A shard that ends its worker is rescued by the job.

        Raises:
            WorkerError: a worker process died (killed, or crashed in native code), and the job
                cannot do its shard another way.
        """
        if min(self.count, len(shards)) <= 1:
            Serial().run(job, shards, advance)
            return
        packed, left = pack(job), list(shards)
        start_tracker()
        while left:
            left = self._run_to_a_death(job, packed, left, advance)

    def _run_to_a_death(
        self, job: Job, packed: Packed, shards: Sequence[str], advance: Advance
    ) -> list[str]:
        """Run a pool to its end, or to the first death; returns the shards that are left then.

        A pool that has lost a worker ends the others. What each of them was at is rescued, and
        all but one succeed at once.
        """
        count, others = min(self.count, len(shards)), set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        ticks = context.Array("q", count, lock=False)  # a slot a worker: no lock to die with
        held = context.Array("q", count, lock=False)  # which shard each is at, counted from 1
        begun = context.Value("i", 0)
        done: set[str] = set()
        with private_folder() as folder, _polling(ticks, advance):
            pool = ProcessPoolExecutor(
                count, context, _start_worker, (packed, str(folder), ticks, held, begun)
            )
            try:
                runs = runs_of(shards, count, job.shards_at_a_time)
                _drain(pool, runs, 2 * count, packed, done)
                return []
            except BrokenProcessPool as error:
                if not begun.value:
                    raise WorkerError(why_not_begun(packed)) from error
                if not any(held) or not isinstance(job, Rescuable):
                    raise WorkerError(_DIED) from error
            except KeyboardInterrupt:
                kill_children(others)  # what is in flight is not published, so nothing is torn
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        suspects = [shards[place - 1] for place in held if place]
        for shard in suspects:
            job.rescue(shard)
        return [shard for shard in shards if shard not in done and shard not in suspects]


def runs_of(shards: Sequence[str], workers: int, longest: int) -> Iterator[list[_Placed]]:
    """Cut shards into runs for a worker each, shorter towards the end: so workers end together.

    Each shard has its place with it, counted from 1.
    """
    start = 0
    while start < len(shards):
        length = max(1, min(longest, (len(shards) - start) // (2 * workers)))
        yield list(enumerate(shards[start : start + length], start=start + 1))
        start += length


def _drain(
    pool: ProcessPoolExecutor,
    runs: Iterable[list[_Placed]],
    window: int,
    packed: Packed,
    done: set[str],
) -> None:
    """Keep `window` runs in flight, so that millions of shards make no million futures."""
    pending: dict[Future[None], list[_Placed]] = {}
    for run in runs:
        with launching(packed):  # the pool starts its processes when it is given work
            pending[pool.submit(_do_run, run)] = run
        if len(pending) >= window:
            _collect(pending, done, FIRST_COMPLETED)
    _collect(pending, done, FIRST_EXCEPTION)


def _collect(pending: dict[Future[None], list[_Placed]], done: set[str], when: str) -> None:
    """Wait, and move what has succeeded from `pending` to `done`."""
    for future in wait(pending, return_when=when).done:
        future.result()
        done.update(shard for _, shard in pending.pop(future))


@contextlib.contextmanager
def _polling(ticks: _Numbers, advance: Advance) -> Iterator[None]:
    """Pass what workers count to `advance`, from a thread of this process."""
    stop = threading.Event()

    def poll() -> None:
        told = 0
        while True:
            ended = stop.wait(_POLL_SECONDS)
            total = sum(ticks)
            if total > told:
                advance(total - told)
                told = total
            if ended:
                return

    thread = threading.Thread(target=poll, name="capfilt-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# --- in the worker process

_work: Final = queue.SimpleQueue[Callable[[list[_Placed]], None]]()  # holds the opened job, once
_open_jobs: Final = contextlib.ExitStack()


def _start_worker(
    packed: Packed, folder: str, ticks: _Numbers, held: _Numbers, counter: "Synchronized[int]"
) -> None:
    leave_to_parent()
    temporary.use(Path(folder))
    die_with_parent()
    job: Job = packed.unpack()
    with counter.get_lock():
        worker = counter.value
        counter.value += 1

    def advance(rows: int) -> None:
        ticks[worker] += rows

    do = _open_jobs.enter_context(job.open(worker, advance))
    # While modules are still whole: the interpreter's own end takes them apart first.
    util.Finalize(None, _open_jobs.close, exitpriority=10)

    def do_and_tell(run: list[_Placed]) -> None:
        for (place, shard), following in zip_longest(run, run[1:]):
            held[worker] = place
            do(shard, None if following is None else following[1])
            held[worker] = 0

    _work.put(do_and_tell)


def _do_run(run: list[_Placed]) -> None:
    do = _work.get()
    try:
        do(run)
    finally:
        _work.put(do)
