"""Advancing shards: run what is missing of a pass on one shard, and commit it.

The only place where stages, plan and ledger meet. A shard is read once for all stages of a pass,
goes through them in slices (so memory is bounded and pictures are decoded once), and each stage's
columns are published when the whole shard is done.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa

from capfilt.engine.executors import Advance
from capfilt.engine.plan import Plan, Planned, RunReader, is_barrier
from capfilt.errors import CapfiltError, PlanError
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.source import rows_of
from capfilt.ledger.tally import ORIGIN, Tally, tally
from capfilt.stage import Transform
from capfilt.stages.decoding import ImageTransform, SliceImages, threads_for


@dataclass(frozen=True, slots=True)
class PassJob:
    """One pass of a plan, as work that another process can open (see `executors.Job`).

    `devices`: worker i computes on devices[i % len]; ("cpu",) where there is nothing else.
    """

    root: str
    plan: Plan
    stages: tuple[Planned, ...]
    devices: tuple[str, ...] = ("cpu",)

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[Callable[[str], None]]:
        """Yield a function that advances one shard. Stages are opened when first needed."""
        device = self.devices[worker % len(self.devices)]
        reader = RunReader(Ledger(Path(self.root)), self.plan)
        with contextlib.ExitStack() as held:
            transforms: dict[str, Transform] = {}

            def opened(planned: Planned) -> Transform:
                if planned.id not in transforms:
                    stage: Any = planned.stage  # a shard stage, by `passes`
                    transforms[planned.id] = held.enter_context(stage.open())
                return transforms[planned.id]

            stages = tuple(_on_device(planned, device) for planned in self.stages)
            threads = threads_for(device, len(self.devices))
            pool = held.enter_context(ThreadPoolExecutor(threads)) if threads else None
            yield lambda shard: advance_shard(reader, stages, shard, opened, advance, pool)


def advance_shard(
    reader: RunReader,
    stages: tuple[Planned, ...],
    shard: str,
    opened: Callable[[Planned], Transform],
    advance: Advance,
    pool: Executor | None = None,
) -> None:
    """Run those stages of a pass that have not done this shard, and commit their columns.

    Where another process has published one of them meanwhile, what was computed here from our own
    copy of that column is thrown away: it must be computed from the published one. `pool` decodes
    pictures ahead of their turn; None: nothing does.

    Raises:
        CapfiltError: with the shard and the stage named, whatever a stage raised.
    """
    while missing := tuple(p for p in stages if not reader.ledger.has(p.id, shard)):
        outputs, seconds = _computed(reader, missing, shard, opened, advance, pool)
        for planned in missing:
            table = pa.Table.from_batches(outputs[planned.id], planned.stage.adds)
            if not commit(reader.ledger, planned, shard, table, seconds[planned.id]):
                break


def _computed(
    reader: RunReader,
    missing: tuple[Planned, ...],
    shard: str,
    opened: Callable[[Planned], Transform],
    advance: Advance,
    pool: Executor | None,
) -> tuple[dict[str, list[pa.RecordBatch]], dict[str, float]]:
    """Return the columns that each stage adds, in slices, and the seconds that it took."""
    work = reader.read(shard, _columns_before(missing))
    outputs: dict[str, list[pa.RecordBatch]] = {planned.id: [] for planned in missing}
    seconds = dict.fromkeys(outputs, 0.0)
    parts = [_Slice(part) for part in _slices(work, _slice_rows(missing))]
    for slice_, following in zip_longest(parts, parts[1:]):
        if following is not None and pool is not None:
            _look_ahead([opened(planned) for planned in missing], following, pool)
        batch = slice_.rows
        for planned in missing:
            began = time.perf_counter()
            added = _transformed(planned, opened(planned), batch, slice_, shard)
            seconds[planned.id] += time.perf_counter() - began
            outputs[planned.id].append(added)
            batch = _widened(batch, added)
        advance(batch.num_rows)
        slice_.images = None  # with it go its pixels, and what models keep of them
    return outputs, seconds


def solve_barrier(reader: RunReader, planned: Planned, advance: Advance) -> None:
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
        _check_aligned(planned, added, rows_of([shard], reader.ledger), shard)
        table = pa.Table.from_batches([added], stage.adds)
        commit(reader.ledger, planned, shard, table, time.perf_counter() - began)
        began = time.perf_counter()
        advance(added.num_rows)


def commit(ledger: Ledger, planned: Planned, shard: str, table: pa.Table, seconds: float) -> bool:
    """Publish a stage's columns of a shard with its receipt; False where a file was there."""
    failed = _tally(ledger, shard, table)
    receipt = Receipt(
        planned.id,
        shard,
        table.num_rows,
        round(seconds, 4),
        _status_counts(table),
        failures=failed.kinds,
        failing_hosts=failed.hosts,
    )
    return ledger.commit(receipt, table)


def _transformed(
    planned: Planned, transform: Transform, batch: pa.RecordBatch, slice_: "_Slice", shard: str
) -> pa.RecordBatch:
    stage = planned.stage
    needed = batch.select(list(stage.needs))
    try:
        if isinstance(transform, ImageTransform):
            added = transform(needed, slice_.pictures(needed))
        else:
            added = transform(needed)
    except CapfiltError:
        raise
    except Exception as error:
        raise CapfiltError(
            f"stage {planned.id} failed on shard {shard}: {type(error).__name__}: {error}. "
            "Nothing of this shard was written; other shards are kept"
        ) from error
    _check_aligned(planned, added, batch.num_rows, shard)
    return added


def _check_aligned(planned: Planned, added: pa.RecordBatch, rows: int, shard: str) -> None:
    if added.num_rows != rows or added.schema != planned.stage.adds:
        raise PlanError(
            f"stage {planned.id} returned {added.num_rows} rows of {added.schema.names} for "
            f"{rows} rows of shard {shard}; it must add {planned.stage.adds.names} to each row"
        )


@dataclass(slots=True)
class _Slice:
    """Rows that go through the stages of a pass together, and their pictures."""

    rows: pa.RecordBatch
    images: SliceImages | None = None

    def pictures(self, batch: pa.RecordBatch) -> SliceImages:
        """Return the slice's pictures, which `batch` has."""
        if self.images is None:
            self.images = SliceImages(batch.column("image"))
        return self.images


def _look_ahead(transforms: list[Transform], following: _Slice, pool: Executor) -> None:
    """Begin to decode the next slice's pictures as its stages will want them."""
    if "image" not in following.rows.schema.names:
        return
    for transform in transforms:
        if isinstance(transform, ImageTransform):
            images = following.pictures(following.rows)
            images.begin(transform.side, transform.framing, pool)


def _on_device(planned: Planned, device: str) -> Planned:
    """Return a stage set to a worker's device where it has one to set; its identity stays."""
    stage: Any = planned.stage  # dataclasses.replace takes any dataclass
    if any(field.name == "device" for field in dataclasses.fields(stage)):
        return dataclasses.replace(planned, stage=dataclasses.replace(stage, device=device))
    return planned


def _columns_before(stages: tuple[Planned, ...]) -> list[str]:
    """Return the columns that must be read: needed by a stage, and not added within the pass."""
    wanted: dict[str, None] = {}
    added: set[str] = set()
    for planned in stages:
        wanted.update(dict.fromkeys(n for n in planned.stage.needs if n not in added))
        added.update(planned.stage.adds.names)
    return list(wanted)


def _slice_rows(stages: tuple[Planned, ...]) -> int | None:
    sizes = [getattr(planned.stage, "rows_per_call", None) for planned in stages]
    return None if None in sizes else min(size for size in sizes if size is not None)


def _slices(table: pa.Table, rows: int | None) -> Iterator[pa.RecordBatch]:
    step = rows or max(table.num_rows, 1)
    for start in range(0, table.num_rows, step):
        yield table.slice(start, step).combine_chunks().to_batches()[0]


def _widened(batch: pa.RecordBatch, added: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [*batch.columns, *added.columns], schema=pa.schema([*batch.schema, *added.schema])
    )


def _tally(ledger: Ledger, shard: str, table: pa.Table) -> Tally:
    """Count what failed; hosts are looked up only where there is something to count."""
    failed = tally(table)
    if "failure" not in table.schema.names or not failed.kinds:
        return failed
    return tally(table, ledger.read(source.STAGE, shard, ORIGIN))


def _status_counts(table: pa.Table) -> dict[str, int]:
    if "status" not in table.schema.names:
        return {}
    counted = table.column("status").value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}
