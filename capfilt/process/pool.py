"""A pool of worker processes for tasks that are alike: a function, and what it is called with."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Final, TypeVar

from capfilt.errors import WorkerError
from capfilt.process import temporary
from capfilt.process.launching import launching, pack, start_tracker
from capfilt.process.signals import kill_children, leave_to_parent

Task = TypeVar("Task")
Result = TypeVar("Result")
_AHEAD: Final = 2  # tasks that wait for each process
_DIED: Final = (
    "a worker process died; what is finished is kept. It was killed (out of memory is the usual "
    "reason: try fewer --workers). Run the same command again to go on."
)


class Pool:
    """`processes` processes that start with the first task; 1: this process does all itself."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._executor: ProcessPoolExecutor | None = None
        self._held = contextlib.ExitStack()
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> "Pool":
        """Begin; the processes end with the context."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the processes: at once, where what they do is wanted no more."""
        if self._executor is not None:
            if kind is not None:
                kill_children(self._others)
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._held.close()

    def each(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield what the tasks come to, in any order.

        Raises:
            WorkerError: a process died.
            PlanError: `work` cannot be sent to another process.
        """
        if self._processes == 1 or len(tasks) <= 1:
            yield from map(work, tasks)
            return
        try:
            yield from self._spread(work, tasks)
        except BrokenProcessPool as error:
            raise WorkerError(_DIED) from error

    def _spread(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        executor, packed = self._started(), pack(work)
        pending: set[Future[Result]] = set()
        for task in tasks:
            with launching(packed):  # processes start when they are given work
                pending.add(executor.submit(work, task))
            if len(pending) >= _AHEAD * self._processes:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            start_tracker()
            folder = self._held.enter_context(temporary.private_folder())
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(
                self._processes, context, _start_worker, (str(folder),)
            )
        return self._executor


def _start_worker(folder: str) -> None:
    leave_to_parent()
    temporary.use(Path(folder))
    die_with_parent()


def die_with_parent() -> None:
    """End this process when its parent is gone: an orphan would hold memory and devices."""
    threading.Thread(target=_wait_for_parent, name="capfilt-parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
