"""Advancing shards: run what is missing of a pass on one shard, and commit it.

The only place where stages, plan and ledger meet. A shard is read once for all stages of a pass,
goes through them in slices (so memory is bounded and pictures are decoded once), and each stage's
columns are published when the whole shard is done.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from capfilt.engine.ahead import SHARDS_AT_A_TIME, Ahead
from capfilt.engine.attempts import attempt_of
from capfilt.engine.deaths import Attempts
from capfilt.engine.executors import DoShard
from capfilt.engine.isolation import compute_isolated
from capfilt.engine.plan import Plan, PlannedStage, RunReader, is_barrier
from capfilt.engine.transforms import (
    check_aligned,
    columns_before,
    transformed,
    widened,
)
from capfilt.errors import PlanError
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.source import rows_of
from capfilt.ledger.tally import ORIGIN, Tally, tally
from capfilt.progress import Advance
from capfilt.stage import Transform
from capfilt.stages.decoding import threads_for
from capfilt.store.location import location
from capfilt.store.stores import store_of

# The columns that each stage adds, in slices, and the seconds that it took.
_Outputs = tuple[dict[str, list[pa.RecordBatch]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class PassJob:
    """One pass of a plan, as work that another process can open (see `executors.Job`).

    `devices`: worker i computes on devices[i % len]; ("cpu",) where there is nothing else.
    `workers`: how many processes share the machine.
    """

    root: str
    plan: Plan
    stages: tuple[PlannedStage, ...]
    devices: tuple[str, ...] = ("cpu",)
    workers: int = 1

    @property
    def shards_at_a_time(self) -> int:
        """How many shards a worker is given together: on a GPU it begins with the next ahead."""
        return 1 if self.devices[0] == "cpu" else SHARDS_AT_A_TIME

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[DoShard]:
        """Yield a function that advances one shard. Stages are opened when first needed."""
        with contextlib.ExitStack() as held:
            transforms: dict[str, Transform] = {}

            def opened(planned: PlannedStage) -> Transform:
                if planned.id not in transforms:
                    stage: Any = planned.stage  # a shard stage, by `passes`
                    transforms[planned.id] = held.enter_context(stage.open())
                return transforms[planned.id]

            reader, stages = self._reader(), self._stages_on(worker)
            threads = threads_for(self.devices[worker % len(self.devices)], self.workers)
            pool = held.enter_context(ThreadPoolExecutor(threads)) if threads else None
            ahead = Ahead(reader, pool)

            def do(shard: str, following: str | None = None) -> None:
                ahead.expect(following)
                if self._attempts.is_deadly(self._work(shard)):
                    self.rescue(shard)
                    return
                with self._attempts.noted(self._work(shard)):
                    advance_shard(reader, stages, shard, opened, advance, ahead)

            yield do

    def rescue(self, shard: str) -> None:
        """Advance a shard that has ended its worker; rows that end a process are booked."""
        reader = self._reader()

        def compute(missing: tuple[PlannedStage, ...]) -> _Outputs:
            began = time.perf_counter()
            work = reader.read(shard, columns_before(missing))
            outputs = compute_isolated(missing, work, shard)
            each = (time.perf_counter() - began) / len(missing)
            return outputs, dict.fromkeys(outputs, each)

        _publish_missing(reader, self._stages_on(0), shard, compute)
        self._attempts.forget(self._work(shard))

    @property
    def _attempts(self) -> Attempts:
        return Attempts(store_of(location(self.root)).notes())

    def _work(self, shard: str) -> str:
        return f"{self.stages[0].id}~{shard}"

    def _reader(self) -> RunReader:
        return RunReader(Ledger(location(self.root)), self.plan)

    def _stages_on(self, worker: int) -> tuple[PlannedStage, ...]:
        device = self.devices[worker % len(self.devices)]
        return tuple(_on_device(planned, device) for planned in self.stages)


def advance_shard(
    reader: RunReader,
    stages: tuple[PlannedStage, ...],
    shard: str,
    opened: Callable[[PlannedStage], Transform],
    advance: Advance,
    ahead: Ahead | None = None,
) -> None:
    """Run those stages of a pass that have not done this shard, and commit their columns.

    `ahead` reads the shard; None: it is read here, and nothing is decoded ahead.

    Raises:
        CapfiltError: with the shard and the stage named, whatever a stage raised.
    """

    def compute(missing: tuple[PlannedStage, ...]) -> _Outputs:
        return _computed(missing, shard, opened, advance, ahead or Ahead(reader))

    _publish_missing(reader, stages, shard, compute)


def _publish_missing(
    reader: RunReader,
    stages: tuple[PlannedStage, ...],
    shard: str,
    compute: Callable[[tuple[PlannedStage, ...]], _Outputs],
) -> None:
    """Compute and commit the columns that a shard misses.

    Where another process has published one of them meanwhile, what was computed here from our own
    copy of that column is thrown away: it must be computed from the published one.
    """
    while missing := tuple(p for p in stages if not reader.ledger.has(p.id, shard)):
        outputs, seconds = compute(missing)
        for planned in missing:
            table = pa.Table.from_batches(outputs[planned.id], planned.stage.adds)
            if not commit(reader.ledger, planned, shard, table, seconds[planned.id]):
                break


def _computed(
    missing: tuple[PlannedStage, ...],
    shard: str,
    opened: Callable[[PlannedStage], Transform],
    advance: Advance,
    ahead: Ahead,
) -> _Outputs:
    """Return the columns that each stage adds, in slices, and the seconds that it took."""
    outputs: dict[str, list[pa.RecordBatch]] = {planned.id: [] for planned in missing}
    seconds = dict.fromkeys(outputs, 0.0)
    transforms = [opened(planned) for planned in missing]
    parts = ahead.slices_of(shard, missing, transforms)
    for slice_ in ahead.follow(parts, missing, transforms):
        batch = slice_.rows
        for planned in missing:
            began = time.perf_counter()
            added = transformed(planned, opened(planned), batch, shard, slice_)
            seconds[planned.id] += time.perf_counter() - began
            outputs[planned.id].append(added)
            batch = widened(batch, added)
        advance(batch.num_rows)
        slice_.images = None  # with it go its pixels, and what models keep of them
    return outputs, seconds


def solve_barrier(reader: RunReader, planned: PlannedStage, advance: Advance) -> None:
    """Run a barrier over all shards and commit each shard's columns.

    Raises:
        PlanError: `planned` is not a barrier, or answers with other rows than it was given.
    """
    stage = planned.stage
    if not is_barrier(stage):
        raise PlanError(f"{planned.id} is not a barrier")
    if not reader.plan.missing(reader.ledger, planned):
        return
    began = time.perf_counter()
    tables = (reader.read(shard, stage.needs) for shard in reader.shards)
    for shard, added in zip(reader.shards, stage.solve(tables), strict=True):
        check_aligned(planned, added, rows_of([shard], reader.ledger), shard)
        table = pa.Table.from_batches([added], stage.adds)
        commit(reader.ledger, planned, shard, table, time.perf_counter() - began)
        began = time.perf_counter()
        advance(added.num_rows)


def commit(
    ledger: Ledger, planned: PlannedStage, shard: str, table: pa.Table, seconds: float
) -> bool:
    """Publish a stage's columns of a shard with its receipt; False where a file was there."""
    failed = _tally(ledger, shard, table)
    receipt = Receipt(
        planned.id,
        shard,
        table.num_rows,
        round(seconds, 4),
        _status_counts(table),
        version=planned.stage.version,
        failures=failed.kinds,
        failing_hosts=failed.hosts,
        inputs=_inputs(ledger, planned, shard),
    )
    return ledger.commit(receipt, table)


def _on_device(planned: PlannedStage, device: str) -> PlannedStage:
    """Return a stage set to a worker's device where it has one to set; its identity stays."""
    stage: Any = planned.stage  # dataclasses.replace takes any dataclass
    if any(field.name == "device" for field in dataclasses.fields(stage)):
        return dataclasses.replace(planned, stage=dataclasses.replace(stage, device=device))
    return planned


def _inputs(ledger: Ledger, planned: PlannedStage, shard: str) -> dict[str, str]:
    """Return what a stage's file is computed from: stage id -> SHA-256.

    The name of an input's shard is a digest of its rows; that of an attempt's is not.
    """
    names = [n for n in planned.upstream if n != source.STAGE or attempt_of(shard)]
    return {name: ledger.receipt(name, shard).data_sha256 for name in names}


def _status_counts(table: pa.Table) -> dict[str, int]:
    if "status" not in table.schema.names:
        return {}
    counted = table.column("status").value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def _tally(ledger: Ledger, shard: str, table: pa.Table) -> Tally:
    """Count what failed; hosts are looked up only where there is something to count."""
    failed = tally(table)
    if "failure" not in table.schema.names or not failed.kinds:
        return failed
    return tally(table, ledger.read(source.STAGE, shard, ORIGIN))
