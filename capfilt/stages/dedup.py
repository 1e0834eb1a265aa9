"""The dedup barrier: of near-duplicate images, the best-scored copy wins.

Rows are taken in descending order of their best text's score, ties by key; a row that is near a
row that was kept before it is a duplicate of the best such row. There is no chaining: a duplicate
always points at a row that is kept, and lies within the threshold of it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import InputError
from capfilt.stages.neighbours import (
    Pairs,
    first_of_each,
    greedy_winners,
    within_cosine,
    within_hamming,
)

Method = Literal["sha256", "phash", "embedding"]
_KEY_BYTES: Final = 16


@dataclass(frozen=True)
class Dedup:
    """Find near-duplicate images; identical bytes are duplicates by every method.

    `sha256`: nothing else. `phash`: at most `radius` of 64 bits differ. `embedding`: the matcher's
    image embeddings have a cosine of at least `similarity`. All are exact searches: time grows
    with the square of the rows, memory by about 100 bytes a row (and 4 bytes a dimension).
    """

    method: Method = "embedding"
    radius: int = 3
    similarity: float = 0.99

    name = "dedup"
    version = 1
    adds = schema.DEDUP

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.radius <= 32:
            raise InputError(f"dedup radius {self.radius}: of 64 bits, 0 to 32 may differ")
        if not 0.0 < self.similarity <= 1.0:
            raise InputError(f"dedup similarity {self.similarity}: a cosine in (0, 1]")

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads: narrow ones, whatever the method."""
        extra = {"sha256": (), "phash": ("phash",), "embedding": ("image_embedding",)}
        return ("key", "sha256", "itm_score", "caption_itm_scores", *extra[self.method])

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Return each row's `dup_of`; see `stage.BarrierStage`."""
        parts = [_gathered(table, self.method) for table in shards]
        lengths = [part.rows for part in parts]
        rows = np.concatenate([np.zeros(0, np.int64), *(p.places for p in parts)])
        starts = np.cumsum([0, *lengths])
        rows = rows + np.repeat(starts[:-1], [len(p.places) for p in parts])
        keys = np.concatenate([np.zeros(0, "S16"), *(p.keys for p in parts)])
        order = np.lexsort((keys, -np.concatenate([np.zeros(0), *(p.scores for p in parts)])))
        winners = self._winners(parts, order)
        owner: list[str | None] = [None] * int(starts[-1])
        for worse, better in winners.items():
            owner[rows[order[worse]]] = keys[order[better]].ljust(_KEY_BYTES, b"\0").hex()
        for start, length in zip(starts[:-1], lengths, strict=True):
            column = pa.array(owner[start : start + length], pa.string())
            yield pa.record_batch([column], schema=schema.DEDUP)

    def _winners(self, parts: "list[_Part]", order: npt.NDArray[np.int64]) -> dict[int, int]:
        """Return duplicate -> kept row, both as places in `order`, the best row first.

        Only the best row of identical bytes is searched for; the others share what becomes of it.
        """
        if not len(order):
            return {}
        digests = np.concatenate([part.sha256 for part in parts])[order]
        best, group = first_of_each(digests)
        winners = greedy_winners(len(best), list(self._pairs(parts, order[best])))
        kept = np.arange(len(best))
        for worse, better in winners.items():
            kept[worse] = better
        target = best[kept[group]]
        duplicates = np.flatnonzero(target != np.arange(len(order)))
        return dict(zip(duplicates.tolist(), target[duplicates].tolist(), strict=True))

    def _pairs(self, parts: "list[_Part]", rows: npt.NDArray[np.int64]) -> Iterator[Pairs]:
        """Return pairs of near rows of different bytes."""
        if self.method == "sha256":
            return iter(())
        values = np.concatenate([part.values for part in parts if len(part.values)])[rows]
        if self.method == "phash":
            return within_hamming(values.ravel(), self.radius)
        return within_cosine(values, self.similarity)


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a shard that have an image: their places in it, and what decides."""

    rows: int
    places: npt.NDArray[np.int64]
    keys: npt.NDArray[np.bytes_]
    sha256: npt.NDArray[np.bytes_]
    scores: npt.NDArray[np.float64]
    values: npt.NDArray[np.float32] | npt.NDArray[np.uint64]


def _gathered(table: pa.Table, method: Method) -> _Part:
    value = {"sha256": "sha256", "phash": "phash", "embedding": "image_embedding"}[method]
    there = pc.and_(pc.is_valid(table["sha256"]), pc.is_valid(table[value]))
    places = np.flatnonzero(there.to_numpy())
    rows = table.filter(there)
    return _Part(
        rows=table.num_rows,
        places=places,
        keys=_unhexed(rows["key"], "S16"),
        sha256=_unhexed(rows["sha256"], "S32"),
        scores=_best_scores(rows),
        values=_values(rows[value], method),
    )


def _values(
    column: pa.ChunkedArray, method: Method
) -> npt.NDArray[np.float32] | npt.NDArray[np.uint64]:
    if method == "phash":
        hashes: npt.NDArray[np.uint64] = column.to_numpy()
        return hashes
    if method == "sha256" or not len(column):
        return np.zeros(0, np.float32)
    flat: npt.NDArray[np.float32] = pc.list_flatten(column).to_numpy()
    return flat.reshape(len(column), -1)


def _best_scores(rows: pa.Table) -> npt.NDArray[np.float64]:
    """Return the best itm_score of each row's texts, web or synthetic; -1 where it has none."""
    best: npt.NDArray[np.float64] = rows["itm_score"].fill_null(-1.0).to_numpy().astype(np.float64)
    lists = rows["caption_itm_scores"]
    parents = pc.list_parent_indices(lists).to_numpy()
    scores = pc.list_flatten(lists).fill_null(-1.0).to_numpy().astype(np.float64)
    np.maximum.at(best, parents, scores)
    best[np.isnan(best)] = -1.0
    return best


def _unhexed(column: pa.ChunkedArray, kind: str) -> npt.NDArray[np.bytes_]:
    return np.array([bytes.fromhex(text) for text in column.to_pylist()], kind)
