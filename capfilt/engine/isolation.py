"""A shard that ended its worker: done again in a process of its own, halved down to the row.

Stage by stage, the rows go to a child process. Where it dies (a native crash, the kernel's
out-of-memory killer), the rows are halved, and a row that ends two processes all by itself is
booked: it keeps its place, with nulls and a reason of `crashed_decoder`. Where no row does that,
such as when the whole shard was too much for the memory, the halves succeed and nothing is booked.
"""

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

import pyarrow as pa

from capfilt.engine.plan import PlannedStage
from capfilt.engine.transforms import slice_rows, slices, transformed, widened
from capfilt.errors import CapfiltError, WorkerError, ended
from capfilt.process.launching import Packed, launching, pack, start_tracker
from capfilt.process.signals import leave_to_parent
from capfilt.stage import Transform

_TRIES: Final = 2  # of a single row
# More rows than this that each end a process are no accident of pictures: a broken driver is.
_MOST_BOOKED: Final = 10
_OPENED: Final = "opened"


class _Died(Exception):
    """The child's process has ended; the message says how."""


def compute_isolated(
    stages: tuple[PlannedStage, ...], work: pa.Table, shard: str
) -> dict[str, list[pa.RecordBatch]]:
    """Return the columns that each stage adds to `work`, computed where a crash costs a row.

    Raises:
        WorkerError: a stage cannot be opened, or too many rows end their process.
        CapfiltError: what a stage raised.
    """
    outputs: dict[str, list[pa.RecordBatch]] = {}
    batch = next(slices(work, None), None)
    with _children(stages, shard) as child:
        for place, planned in enumerate(stages):
            added = [] if batch is None else [child.rescued(place, batch)]
            outputs[planned.id] = added
            batch = None if batch is None else widened(batch, added[0])
    return outputs


class _Children:
    """One child process after the other; a new one is started when the last has died."""

    def __init__(self, stages: tuple[PlannedStage, ...], shard: str) -> None:
        self._stages, self._shard = stages, shard
        self._booked = 0
        self._process: Any = None  # of the spawn context, whose type has no public name
        self._connection: Connection[Any, Any] | None = None

    def rescued(self, place: int, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return what a stage adds to these rows, with rows that end their process booked."""
        death = ""
        for _ in range(_TRIES if rows.num_rows == 1 else 1):
            try:
                return self._asked(place, rows)
            except _Died as died:
                death = str(died)
        if rows.num_rows == 1:
            return self._book(place, death)
        half = rows.num_rows // 2
        parts = (rows.slice(0, half), rows.slice(half))
        added = pa.Table.from_batches([self.rescued(place, part) for part in parts])
        return next(slices(added, None))

    def close(self) -> None:
        """End the child."""
        if self._connection is not None:
            self._connection.close()
            self._process.join()
        self._connection = None

    def _asked(self, place: int, rows: pa.RecordBatch) -> pa.RecordBatch:
        connection = self._connection or self._start()
        opened = False
        try:
            connection.send((place, rows))
            while (answer := connection.recv()) == _OPENED:
                opened = True
        except (EOFError, OSError) as error:
            self.close()
            how = ended(self._process.exitcode)
            if not opened:
                stage = self._stages[place].id
                raise WorkerError(f"stage {stage} ends its process when it opens: {how}") from error
            raise _Died(how) from error
        if isinstance(answer, CapfiltError):
            raise answer
        return answer

    def _start(self) -> "Connection[Any, Any]":
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, packed := pack(self._stages), self._shard)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        start_tracker()
        with launching(packed):
            self._process.start()
        theirs.close()
        self._connection = ours
        return ours

    def _book(self, place: int, how: str) -> pa.RecordBatch:
        self._booked += 1
        planned = self._stages[place]
        if self._booked > _MOST_BOOKED:
            raise WorkerError(
                f"more than {_MOST_BOOKED} rows of shard {self._shard} end the process of stage "
                f"{planned.id} ({how}): that is no fault of single pictures. Finished shards are "
                "kept; mend the machine and run the same command again"
            )
        return booked(planned, how)


def booked(planned: PlannedStage, how: str) -> pa.RecordBatch:
    """Return the columns of a row that ended its process: nulls, and the reason where one goes.

    A stage that must say more has `crashed`, which returns these columns by name.
    """
    stage: Any = planned.stage  # `crashed` is no part of what a stage must have
    reason = f"crashed_decoder: {how}"
    errors = {name: reason for name in stage.adds.names if name.endswith("_error")}
    values = stage.crashed(how) if hasattr(stage, "crashed") else errors
    unsaid = [f.name for f in stage.adds if not f.nullable and f.name not in values]
    if unsaid:
        raise WorkerError(f"stage {planned.id} ends its process ({how}); {unsaid} cannot be null")
    arrays = [pa.array([values.get(field.name)], field.type) for field in stage.adds]
    return pa.record_batch(arrays, schema=stage.adds)


@contextlib.contextmanager
def _children(stages: tuple[PlannedStage, ...], shard: str) -> Iterator[_Children]:
    child = _Children(stages, shard)
    try:
        yield child
    finally:
        child.close()


# --- in the child process


def _serve(connection: "Connection[Any, Any]", packed: Packed, shard: str) -> None:
    """Answer (place of a stage, rows) until the parent closes the connection or is gone."""
    leave_to_parent()
    stages: tuple[PlannedStage, ...] = packed.unpack()
    opened: dict[int, Transform] = {}
    with contextlib.ExitStack() as held:
        while True:
            try:
                place, rows = connection.recv()
            except EOFError:
                return
            planned = stages[place]
            stage: Any = planned.stage  # a shard stage, by `passes`
            try:
                if place not in opened:
                    opened[place] = held.enter_context(stage.open())
                connection.send(_OPENED)
                connection.send(_added(planned, opened[place], rows, shard))
            except CapfiltError as error:
                connection.send(error)


def _added(
    planned: PlannedStage, transform: Transform, rows: pa.RecordBatch, shard: str
) -> pa.RecordBatch:
    table = pa.Table.from_batches([rows])
    parts = [
        transformed(planned, transform, part, shard)
        for part in slices(table, slice_rows((planned,)))
    ]
    return next(slices(pa.Table.from_batches(parts), None))
