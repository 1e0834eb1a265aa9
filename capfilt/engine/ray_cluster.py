"""Running a pass on a Ray cluster: a fixed pool of actors, each handed one shard at a time.

Ray Core and not Ray Data, since the ledger knows what is done: a lost node, a killed actor or a
worker out of memory costs the shards that were in flight, which go to another actor. Near the end
an idle actor does an open shard once more, since a straggler may never end; publishing is
first-wins. The configuration travels, weights never do: each actor loads its own.
"""

import contextlib
import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from capfilt.engine.executors import Job
from capfilt.errors import CapfiltError, InputError, WorkerError
from capfilt.process.launching import Packed, pack
from capfilt.progress import Advance

_TRIES: Final = 3  # of a shard whose actor died
_MOST_HOST_WORKERS: Final = 16  # a node: each downloads with dozens of threads
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class RayCluster:
    """What a Ray cluster has."""

    nodes: int
    cpus: int
    gpus: int

    def devices(self, wanted: str) -> tuple[str, ...]:
        """Return the device that each actor sees; Ray hands them out.

        Raises:
            InputError: a device is named, or GPUs are wanted and there are none.
        """
        if wanted not in {"auto", "cpu", "cuda"}:
            raise InputError(f"--device {wanted}: Ray hands out devices; give auto, cpu or cuda")
        if wanted == "cuda" and not self.gpus:
            raise InputError("--device cuda: this Ray cluster has no GPU; use --device cpu")
        return ("cuda:0",) if self.gpus and wanted != "cpu" else ("cpu",)

    def workers(self, wanted: int | None, devices: Sequence[str]) -> int:
        """Return the number of actors for models: one a GPU, or one a core."""
        return wanted or max(1, self.cpus if devices[0] == "cpu" else self.gpus)

    def host_workers(self, wanted: int | None) -> int:
        """Return the number of actors for the other passes."""
        return wanted or max(1, min(self.cpus, self.nodes * _MOST_HOST_WORKERS))


def connect() -> RayCluster:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install 'capfilt[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS", "a cluster on this machine")
            raise InputError(f"--engine ray: no answer from {address}: {error}") from error
    has = ray.cluster_resources()
    alive = sum(1 for node in ray.nodes() if node["Alive"])
    return RayCluster(alive, int(has.get("CPU", 1)), int(has.get("GPU", 0)))


@dataclass(frozen=True, slots=True)
class RayActors:
    """`count` actors, each with the job opened once and `gpus` of a GPU."""

    count: int
    gpus: float = 0.0

    def run(self, job: Job, shards: Sequence[str], advance: Advance) -> None:
        """Do all shards, in any order.

        Raises:
            WorkerError: some shards lost their actor three times; all others are done.
        """
        if not shards:
            return
        pool = _Pool(pack(job), min(self.count, len(shards)), self.gpus, deque(shards))
        try:
            pool.run(advance)
        finally:
            pool.close()
        if pool.lost:
            shown = ", ".join(pool.lost[:_SHOWN]) + (", …" if len(pool.lost) > _SHOWN else "")
            raise WorkerError(
                f"{len(pool.lost)} shards lost their Ray actor {_TRIES} times each ({shown}); all "
                "others are done. A node without memory is the usual reason: try fewer --workers"
            )


class _Opened:
    """What an actor holds: the job, opened once."""

    def __init__(self, packed: Packed, number: int) -> None:
        self._packed, self._number, self._rows = packed, number, 0
        self._held = contextlib.ExitStack()
        self._do: Any = None  # a job's function

    def open(self) -> None:
        """Open the job; not at the start, so that its errors come back as they are."""
        job: Job = self._packed.unpack()
        self._do = self._held.enter_context(job.open(self._number, self._heard))

    def do(self, shard: str) -> int:
        """Do a shard; returns how many rows it came to."""
        before = self._rows
        self._do(shard)
        return self._rows - before

    def _heard(self, rows: int) -> None:
        self._rows += rows


@dataclass(slots=True)
class _Pool:
    """The actors, what each is at, and what is left to do."""

    packed: Packed
    count: int
    gpus: float
    waiting: deque[str]
    lost: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    tries: Counter[str] = field(default_factory=Counter)
    actors: dict[int, Any] = field(default_factory=dict)  # Ray's handles are untyped
    at: dict[Any, tuple[int, str | None]] = field(default_factory=dict)  # None: it opens
    idle: list[int] = field(default_factory=list)

    def run(self, advance: Advance) -> None:
        """Hand out shards until each is done or lost."""
        for number in range(self.count):
            self._start(number)
        while self.waiting or any(shard for _, shard in self.at.values()):
            self._heard_of(self._next(), advance)

    def close(self) -> None:
        """End the actors, whatever they are at."""
        import ray

        for actor in self.actors.values():
            ray.kill(actor)

    def _start(self, number: int) -> None:
        """Ask Ray for an actor; it is given work when it has opened the job."""
        import ray

        made = ray.remote(_Opened).options(
            num_cpus=1, num_gpus=self.gpus, max_restarts=0, max_task_retries=0
        )
        self.actors[number] = made.remote(self.packed, number)
        self.at[self.actors[number].open.remote()] = (number, None)

    def _next(self) -> Any:  # a reference of Ray's
        import ray

        [ready], _ = ray.wait(list(self.at), num_returns=1)
        return ready

    def _heard_of(self, ready: Any, advance: Advance) -> None:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        number, shard = self.at.pop(ready)
        try:
            rows = ray.get(ready)
        except RayTaskError as error:
            raise _cause(error) from None
        except (RayActorError, RayError):
            self._died(number, shard)
            return
        if shard is not None and shard not in self.done:
            self.done.add(shard)
            advance(rows)
        self._give(number)

    def _died(self, number: int, shard: str | None) -> None:
        """Put a shard back, and start another actor; Ray finds a node for it."""
        if shard is not None and shard not in self.done:
            self.tries[shard] += 1
            elsewhere = any(shard == other for _, other in self.at.values())
            if not elsewhere:
                (self.lost if self.tries[shard] >= _TRIES else self.waiting).append(shard)
        self._start(number)
        if self.idle:
            self._give(self.idle.pop())

    def _give(self, number: int) -> None:
        """Give an idle actor a shard that waits, or the one that has been open longest."""
        shard = self.waiting.popleft() if self.waiting else self._slowest()
        if shard is None:
            self.idle.append(number)
        else:
            self.at[self.actors[number].do.remote(shard)] = (number, shard)

    def _slowest(self) -> str | None:
        counted = Counter(shard for _, shard in self.at.values() if shard is not None)
        alone = (s for s, times in counted.items() if times == 1 and s not in self.done)
        return next(alone, None)


def _cause(error: Any) -> BaseException:  # Ray's error around what an actor raised
    """Return what was raised in an actor: our own errors as they are."""
    cause = error.cause
    if isinstance(cause, CapfiltError):
        return cause
    return WorkerError(f"a Ray actor failed: {type(cause).__name__}: {cause}")
