"""The order in which rows are fetched, so that no host is hammered and no thread waits for one.

Hosts take turns, each with a few requests at a time. A host that asks for a pause gets it, within
reason; its rows wait in their queue and not in a thread.
"""

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

LONGEST_PAUSE: Final = 30.0  # seconds that a host may have us wait, all its pauses together
MOST_REPEATS: Final = 2  # how often a row is asked for again after a pause


@dataclass(slots=True)
class Job:
    """One row to fetch: its place, its address, the host that it keeps a slot of just now."""

    place: int
    url: str
    host: str
    end: float | None = None  # when its time is over, from when it was first begun
    repeats: int = 0


@dataclass(slots=True)
class _Host:
    queue: deque[Job] = field(default_factory=deque)
    active: int = 0
    listed: bool = False  # in `ready`, or among those that pause
    not_before: float = 0.0
    paused: float = 0.0


class Schedule:
    """Hands out jobs to threads. `at_once`: requests at a time to one host."""

    def __init__(
        self, jobs: Iterable[Job], at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at_once, self._clock = at_once, clock
        self._hosts: dict[str, _Host] = {}
        self._ready: deque[str] = deque()
        self._pausing: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        for job in jobs:
            self._host(job.host).queue.append(job)
        for name in self._hosts:
            self._offer(name)  # no thread knows of this schedule yet

    def take(self) -> Job:
        """Return the next job of a host that has a free slot; waits until there is one.

        Each thread takes as often as it brings a job to its end, so there is one for each.
        """
        with self._changed:
            while True:
                self._wake_due()
                name = self._next_ready()
                if name is not None:
                    host = self._hosts[name]
                    host.active += 1
                    job = host.queue.popleft()
                    self._offer(name)
                    return job
                self._changed.wait(self._until_due())

    def done(self, job: Job) -> None:
        """Give the job's slot back."""
        with self._changed:
            self._leave(job)

    def postpone(self, job: Job, seconds: float) -> bool:
        """Let a job's host pause and put the job back, its slot too; False: that is too long."""
        with self._changed:
            host, now = self._host(job.host), self._clock()
            more = max(0.0, now + seconds - max(now, host.not_before))
            late = job.end is not None and now + seconds >= job.end
            if late or job.repeats >= MOST_REPEATS or host.paused + more > LONGEST_PAUSE:
                return False
            host.paused += more
            host.not_before = max(host.not_before, now + seconds)
            job.repeats += 1
            host.queue.appendleft(job)
            self._leave(job)
            return True

    def move(self, job: Job, name: str) -> float:
        """Change a job's slot for one of another host, before a redirect is followed there.

        Returns the seconds that it waited for one: our own doing, so the job gets them back. It
        holds no slot meanwhile, and those who do come to their end, so there is no deadlock.
        """
        if name == job.host:
            return 0.0
        began = self._clock()
        with self._changed:
            self._leave(job)
            job.host = name
            host = self._host(name)
            self._changed.wait_for(lambda: host.active < self._at_once)
            host.active += 1
        waited = self._clock() - began
        if job.end is not None:
            job.end += waited
        return waited

    def _next_ready(self) -> str | None:
        """Take a host off the list that has work, a slot, and no pause; all may have changed."""
        while self._ready:
            name = self._ready.popleft()
            host = self._hosts[name]
            host.listed = False
            if host.queue and host.active < self._at_once and host.not_before <= self._clock():
                return name
            self._offer(name)
        return None

    def _leave(self, job: Job) -> None:
        self._host(job.host).active -= 1
        self._offer(job.host)
        self._changed.notify_all()

    def _offer(self, name: str) -> None:
        """List a host that has work and a free slot, once."""
        host = self._hosts[name]
        if host.listed or not host.queue or host.active >= self._at_once:
            return
        host.listed = True
        if host.not_before > self._clock():
            heapq.heappush(self._pausing, (host.not_before, name))
        else:
            self._ready.append(name)

    def _until_due(self) -> float | None:
        return max(0.0, self._pausing[0][0] - self._clock()) if self._pausing else None

    def _wake_due(self) -> None:
        while self._pausing and self._pausing[0][0] <= self._clock():
            name = heapq.heappop(self._pausing)[1]
            self._hosts[name].listed = False
            self._offer(name)

    def _host(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host())
