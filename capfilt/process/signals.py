"""Being asked to end: SIGTERM and SIGHUP end a command in the way that Ctrl-C does.

Batch systems, `timeout` and service managers end a process by SIGTERM, and often send it to its
children as well. So the process that a person began decides, and its children leave it to that.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `timeout` sends SIGTERM to the process and then to its group: that is one request.
_ONE_REQUEST_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 3.0  # img2dataset's pool of threads needs it: it never ends by itself


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to end, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@contextlib.contextmanager
def raising(before_forced: Callable[[int], None]) -> Iterator[None]:
    """Raise Stopped in the main thread at the first signal.

    Where that has not ended the process in a few seconds (a library can wait in its clean-up for
    what never comes), and at another signal, it is ended all the same. `before_forced` is called
    before that, with the signal. A signal that is ignored (`nohup`) stays so.
    """
    asked: list[float] = []

    def force(number: int) -> None:
        kill_children(set())
        # In a thread, since this one can hold any lock.
        last = threading.Thread(target=before_forced, args=(number,), daemon=True)
        last.start()
        last.join(_GRACE_SECONDS)
        os._exit(128 + number)

    def watch(number: int) -> None:
        time.sleep(_GRACE_SECONDS)
        force(number)

    def handle(number: int, _: FrameType | None) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            threading.Thread(target=watch, args=(number,), daemon=True).start()
            raise Stopped(number)
        if asked[-1] - asked[0] > _ONE_REQUEST_SECONDS:
            force(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    mine = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in mine}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_parent(but: Sequence[int] = ()) -> None:
    """Ignore the signals in a child, but for some: what they ask for is its parent's to do."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number in but else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Start children that no signal ends before they have called `leave_to_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_children(but: set[multiprocessing.process.BaseProcess]) -> None:
    """Kill the processes that `multiprocessing` began here, but for those that are named."""
    children = set(multiprocessing.active_children()) - but
    for child in children:
        child.kill()
    for child in children:
        child.join(_GRACE_SECONDS)
