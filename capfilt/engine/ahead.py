"""Looking ahead: the next pictures are read and decoded while a device computes with these."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import zip_longest
from typing import Final

from capfilt.engine.plan import PlannedStage, RunReader
from capfilt.engine.transforms import Slice, columns_before, slice_rows, slices
from capfilt.stage import Transform
from capfilt.stages.decoding import ImageTransform

SHARDS_AT_A_TIME: Final = 4  # that a worker is given together, so that it knows its next one


class Ahead:
    """The slices of shards, each one's pictures begun while the one before is computed.

    `pool` does it; None: everything is read, and decoded, when its turn comes.
    """

    def __init__(self, reader: RunReader, pool: Executor | None = None) -> None:
        self._reader, self._pool = reader, pool
        self._expected: str | None = None
        self._begun: dict[tuple[str, tuple[str, ...]], Future[list[Slice]]] = {}

    def expect(self, shard: str | None) -> None:
        """Hear which shard comes after the next one that is asked for."""
        self._expected = shard

    def slices_of(
        self, shard: str, stages: tuple[PlannedStage, ...], transforms: Sequence[Transform]
    ) -> list[Slice]:
        """Return the slices of a shard, as `follow` began it, or as it is read now."""
        begun = self._begun.pop(_wanted(shard, stages), None)
        self._begun.clear()  # of a shard that another process has done meanwhile
        return self._read(shard, stages, transforms) if begun is None else begun.result()

    def follow(
        self,
        parts: Sequence[Slice],
        stages: tuple[PlannedStage, ...],
        transforms: Sequence[Transform],
    ) -> Iterator[Slice]:
        """Yield slices in order; before each the next is begun, at the end the next shard's."""
        for part, following in zip_longest(parts, parts[1:]):
            if following is not None:
                self._decode(following, transforms)
            elif self._pool is not None and self._expected is not None:
                wanted = _wanted(self._expected, stages)
                self._begun[wanted] = self._pool.submit(
                    self._read, self._expected, stages, transforms
                )
            yield part

    def _read(
        self, shard: str, stages: tuple[PlannedStage, ...], transforms: Sequence[Transform]
    ) -> list[Slice]:
        table = self._reader.read(shard, columns_before(stages))
        parts = [Slice(part) for part in slices(table, slice_rows(stages))]
        if parts:
            self._decode(parts[0], transforms)
        return parts

    def _decode(self, part: Slice, transforms: Sequence[Transform]) -> None:
        """Begin to decode a slice's pictures as its stages will want them."""
        if self._pool is None or "image" not in part.rows.schema.names:
            return
        for transform in transforms:
            if isinstance(transform, ImageTransform):
                part.pictures(part.rows).begin(transform.side, transform.framing, self._pool)


def _wanted(shard: str, stages: tuple[PlannedStage, ...]) -> tuple[str, tuple[str, ...]]:
    return shard, tuple(planned.id for planned in stages)
