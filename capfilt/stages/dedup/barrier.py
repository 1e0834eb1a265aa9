"""The dedup barrier: of near-duplicate images, the best-scored copy wins.

Rows are taken in descending order of their best text's score, ties by key; a row that is near a
row that was kept before it is a duplicate of the best such row. There is no chaining: a duplicate
always points at a row that is kept, and lies within the threshold of it. Rows of one image, which
differ in their texts, are no duplicates of each other.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.option import POLICY, check_options, option
from capfilt.stages.dedup.neighbours import (
    Pairs,
    first_of_each,
    greedy_winners,
    hamming,
    within_cosine,
    within_hamming,
)

Method = Literal["sha256", "phash", "embedding", "both"]
_KEY_BYTES: Final = 16
_EXTRA: Final[dict[Method, tuple[str, ...]]] = {
    "sha256": (),
    "phash": ("phash",),
    "embedding": ("image_embedding",),
    "both": ("phash", "image_embedding"),
}


@dataclass(frozen=True)
class Dedup:
    """Find near-duplicate images; identical bytes are duplicates by every method.

    `sha256`: nothing else. `phash`: at most `radius` of 64 bits differ. `embedding`: the matcher's
    image embeddings have a cosine of at least `similarity`. `both`: both; an embedding alone takes
    two pictures of one thing for copies, and a hash alone two pictures of one outline. All are
    exact searches: time grows with the square of the rows, memory by about 220 bytes a row and
    twice the embedding (4 bytes a dimension).
    """

    method: Method = option(
        "both",
        "How near-duplicate images are found; none keeps them",
        flag="dedup",
        panel=POLICY,
        given_as=Literal["none", "sha256", "phash", "embedding", "both"],
    )
    radius: int = option(
        8,
        "phash, both: bits of 64 that may differ",
        flag="dedup_radius",
        panel=POLICY,
        at_least=0,
        at_most=32,
    )
    similarity: float = option(
        0.98,
        "embedding, both: least cosine of the matcher's embeddings",
        flag="dedup_similarity",
        panel=POLICY,
        above=0,
        at_most=1,
    )

    name = "dedup"
    version = 3
    adds = schema.DEDUP

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads: narrow ones, whatever the method."""
        return (
            "key",
            "url",
            "image_ref",
            "sha256",
            "itm_score",
            "caption_itm_scores",
            *_EXTRA[self.method],
        )

    @property
    def hashes(self) -> bool:
        """Whether it needs the perceptual hash."""
        return "phash" in self.needs

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
        images = np.concatenate([part.images for part in parts])[order]
        duplicates = np.flatnonzero(images[target] != images)
        return dict(zip(duplicates.tolist(), target[duplicates].tolist(), strict=True))

    def _pairs(self, parts: "list[_Part]", rows: npt.NDArray[np.int64]) -> Iterator[Pairs]:
        """Return pairs of near rows of different bytes."""
        if self.method == "sha256":
            return iter(())
        codes = _in_order([part.codes for part in parts], rows)
        if self.method == "phash":
            return within_hamming(codes, self.radius)
        near = within_cosine(_in_order([part.vectors for part in parts], rows), self.similarity)
        return near if self.method == "embedding" else self._alike(near, codes)

    def _alike(self, pairs: Iterator[Pairs], codes: npt.NDArray[np.uint64]) -> Iterator[Pairs]:
        """Keep of these pairs those whose hashes are within the radius."""
        for better, worse in pairs:
            near = hamming(codes[better], codes[worse]) <= self.radius
            yield better[near], worse[near]


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a shard that have an image: their places in it, and what decides."""

    rows: int
    places: npt.NDArray[np.int64]
    keys: npt.NDArray[np.bytes_]
    sha256: npt.NDArray[np.bytes_]
    images: npt.NDArray[np.bytes_]  # equal where rows are of one image
    scores: npt.NDArray[np.float64]
    codes: npt.NDArray[np.uint64]  # perceptual hashes, none where the method has no use for them
    vectors: npt.NDArray[np.float32]  # embeddings (rows, D), none where it has no use for them


def _gathered(table: pa.Table, method: Method) -> _Part:
    there = pc.is_valid(table["sha256"])
    for column in _EXTRA[method]:
        there = pc.and_(there, pc.is_valid(table[column]))
    places = np.flatnonzero(there.to_numpy())
    rows = table.filter(there)
    return _Part(
        rows=table.num_rows,
        places=places,
        keys=_unhexed(rows["key"], "S16"),
        sha256=_unhexed(rows["sha256"], "S32"),
        images=_images(rows),
        scores=_best_scores(rows),
        codes=rows["phash"].to_numpy() if "phash" in _EXTRA[method] else np.zeros(0, np.uint64),
        vectors=_vectors(rows, method),
    )


def _images(rows: pa.Table) -> npt.NDArray[np.bytes_]:
    """Return a digest of where each row's image is: in a file of this machine, or at an address."""
    places = zip(rows["image_ref"].to_pylist(), rows["url"].to_pylist(), strict=True)
    texts = (
        f"{ref is None}{ref if ref is not None else (url or '').strip()}" for ref, url in places
    )
    digests = [hashlib.blake2b(t.encode(), digest_size=_KEY_BYTES).digest() for t in texts]
    return np.array(digests, f"S{_KEY_BYTES}")


def _in_order(
    parts: Sequence[npt.NDArray[Any]], rows: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:  # of the parts' own type
    """Return these rows of all parts, without a copy of the whole in between."""
    held = [part for part in parts if len(part)]
    if not held:
        return np.zeros(0, parts[0].dtype)
    out = np.empty((len(rows), *held[0].shape[1:]), held[0].dtype)
    by_row = np.argsort(rows, kind="stable")
    ends = np.searchsorted(rows[by_row], np.cumsum([0, *map(len, held)]))
    start = 0
    for part, first, last in zip(held, ends[:-1], ends[1:], strict=True):
        places = by_row[first:last]
        out[places] = part[rows[places] - start]
        start += len(part)
    return out


def _vectors(rows: pa.Table, method: Method) -> npt.NDArray[np.float32]:
    if "image_embedding" not in _EXTRA[method] or not rows.num_rows:
        return np.zeros((0, 1), np.float32)
    flat: npt.NDArray[np.float32] = pc.list_flatten(rows["image_embedding"]).to_numpy()
    return flat.reshape(rows.num_rows, -1)


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
