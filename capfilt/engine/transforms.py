"""Running one stage's transform over rows: in slices of the wanted size, checked for alignment."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from capfilt.engine.plan import PlannedStage
from capfilt.errors import CapfiltError, PlanError
from capfilt.stage import Transform
from capfilt.stages.decoding import ImageTransform, SliceImages


@dataclass(slots=True)
class Slice:
    """Rows that go through the stages of a pass together, and their pictures."""

    rows: pa.RecordBatch
    images: SliceImages | None = None

    def pictures(self, batch: pa.RecordBatch) -> SliceImages:
        """Return the slice's pictures, which `batch` has."""
        if self.images is None:
            self.images = SliceImages(batch.column("image"))
        return self.images


def transformed(
    planned: PlannedStage,
    transform: Transform,
    batch: pa.RecordBatch,
    shard: str,
    slice_: Slice | None = None,
) -> pa.RecordBatch:
    """Return the columns that a stage adds to these rows; `slice_` shares their pictures.

    Raises:
        CapfiltError: with the shard and the stage named, whatever the stage raised.
    """
    stage = planned.stage
    needed = batch.select(list(stage.needs))
    try:
        if isinstance(transform, ImageTransform) and slice_ is not None:
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
    check_aligned(planned, added, batch.num_rows, shard)
    return added


def check_aligned(planned: PlannedStage, added: pa.RecordBatch, rows: int, shard: str) -> None:
    """Raise a PlanError where a stage has answered with other rows or columns than it should."""
    if added.num_rows != rows or added.schema != planned.stage.adds:
        raise PlanError(
            f"stage {planned.id} returned {added.num_rows} rows of {added.schema.names} for "
            f"{rows} rows of shard {shard}; it must add {planned.stage.adds.names} to each row"
        )


def slice_rows(stages: tuple[PlannedStage, ...]) -> int | None:
    """Return how many rows at a time suit all of these stages; None: the whole shard."""
    sizes = [getattr(planned.stage, "rows_per_call", None) for planned in stages]
    return None if None in sizes else min(size for size in sizes if size is not None)


def slices(table: pa.Table, rows: int | None) -> Iterator[pa.RecordBatch]:
    """Yield a table in batches of at most `rows`."""
    step = rows or max(table.num_rows, 1)
    for start in range(0, table.num_rows, step):
        yield table.slice(start, step).combine_chunks().to_batches()[0]


def widened(batch: pa.RecordBatch, added: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with a stage's columns behind its own."""
    return pa.RecordBatch.from_arrays(
        [*batch.columns, *added.columns], schema=pa.schema([*batch.schema, *added.schema])
    )


def columns_before(stages: tuple[PlannedStage, ...]) -> list[str]:
    """Return the columns that must be read: needed by a stage, and not added within the pass."""
    wanted: dict[str, None] = {}
    added: set[str] = set()
    for planned in stages:
        wanted.update(dict.fromkeys(n for n in planned.stage.needs if n not in added))
        added.update(planned.stage.adds.names)
    return list(wanted)
