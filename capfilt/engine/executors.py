"""Executors: a map over shards that knows neither stages nor Parquet.

Serial runs in this process; `Processes` runs one process a worker (or a device). A job is opened
once in each process, so a model is loaded once and serves all shards of that worker.
"""

import contextlib
import ctypes
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from capfilt.errors import WorkerError
from capfilt.process import temporary
from capfilt.process.launching import Packed, launching, pack, start_tracker, why_not_begun
from capfilt.process.signals import kill_children, leave_to_parent
from capfilt.process.temporary import private_folder

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

_POLL_SECONDS: Final = 0.2

Advance = Callable[[int], None]  # told how many rows have gone by, as they go


class Job(Protocol):
    """Work that can be sent to another process (it is pickled) and opened there once."""

    def open(self, worker: int, advance: Advance) -> AbstractContextManager[Callable[[str], None]]:
        """Load what it needs; yields a function that does one shard. `worker` counts from 0."""


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
            for shard in shards:
                do(shard)


@dataclass(frozen=True, slots=True)
class Processes:
    """`count` processes, each with the job opened once."""

    count: int

    def run(self, job: Job, shards: Sequence[str], advance: Advance) -> None:
        """Do all shards, in any order.

        Raises:
            WorkerError: a worker process died (killed, or crashed in native code).
        """
        count = min(self.count, len(shards))
        if count <= 1:
            Serial().run(job, shards, advance)
            return
        packed, others = pack(job), set(multiprocessing.active_children())
        start_tracker()
        context = multiprocessing.get_context("spawn")
        ticks = context.Array("q", count, lock=False)  # a slot a worker: no lock to die with
        begun = context.Value("i", 0)
        with private_folder() as folder, _polling(ticks, advance):
            pool = ProcessPoolExecutor(
                count, context, _start_worker, (packed, str(folder), ticks, begun)
            )
            try:
                _drain(pool, shards, 2 * count, packed)
            except BrokenProcessPool as error:
                if not begun.value:
                    raise WorkerError(why_not_begun(packed)) from error
                raise WorkerError(
                    "a worker process died; finished shards are kept. It was killed (out of "
                    "memory is the usual reason: try fewer --workers) or crashed in native code. "
                    "Run the same command again to go on."
                ) from error
            except KeyboardInterrupt:
                kill_children(others)  # what is in flight is not published, so nothing is torn
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def rank_slice(shards: Sequence[str], rank: int, world_size: int) -> list[str]:
    """Return the shards of one job of a job array: every `world_size`-th, from `rank`."""
    return list(shards[rank::world_size])


def _drain(pool: ProcessPoolExecutor, shards: Sequence[str], window: int, packed: Packed) -> None:
    """Keep `window` shards in flight, so that millions of shards make no million futures."""
    pending: set[Future[None]] = set()
    for shard in shards:
        with launching(packed):  # the pool starts its processes when it is given work
            pending.add(pool.submit(_do_shard, shard))
        if len(pending) >= window:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    for future in pending:
        future.result()


@contextlib.contextmanager
def _polling(ticks: "ctypes.Array[ctypes.c_longlong]", advance: Advance) -> Iterator[None]:
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

_work: Final = queue.SimpleQueue[Callable[[str], None]]()  # holds the opened job, once
_open_jobs: Final = contextlib.ExitStack()  # never closed: the process's end frees everything


def _start_worker(
    packed: Packed,
    folder: str,
    ticks: "ctypes.Array[ctypes.c_longlong]",
    counter: "Synchronized[int]",
) -> None:
    leave_to_parent()
    temporary.use(Path(folder))
    threading.Thread(target=_die_with_parent, name="capfilt-parent", daemon=True).start()
    job: Job = packed.unpack()
    with counter.get_lock():
        worker = counter.value
        counter.value += 1

    def advance(rows: int) -> None:
        ticks[worker] += rows

    _work.put(_open_jobs.enter_context(job.open(worker, advance)))


def _die_with_parent() -> None:
    """End this process when the parent is gone: an orphan would hold memory and devices."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do_shard(shard: str) -> None:
    do = _work.get()
    try:
        do(shard)
    finally:
        _work.put(do)
