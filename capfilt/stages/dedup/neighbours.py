"""Pairs of rows that are near each other, by faiss, exact and independent of threads.

A row's place is its rank: the better-scored row has the lower place. Every function yields arrays
(better, worse) of places, better < worse, block by block so that memory stays bounded.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Pairs = tuple[Places, Places]

_BLOCK: Final = 4096
_CHUNK: Final = 16 * _BLOCK
# Inner products differ in their last bits with block shape and threads: pairs this close to the
# threshold are decided by an exact sum in double precision.
_UNSURE: Final = 1e-4


def first_of_each(values: npt.NDArray[np.bytes_]) -> Pairs:
    """Return (the best place of every value, in order; which of these each row belongs to)."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]


def greedy_winners(count: int, pairs: list[Pairs]) -> dict[int, int]:
    """Return duplicate -> the best kept row that it is near, greedily from the best row down."""
    if not pairs:
        return {}
    better = np.concatenate([pair[0] for pair in pairs])
    worse = np.concatenate([pair[1] for pair in pairs])
    duplicate = np.zeros(count, np.bool_)
    winners: dict[int, int] = {}
    for place in np.lexsort((better, worse)):
        one, other = int(better[place]), int(worse[place])
        if not duplicate[one] and not duplicate[other]:
            duplicate[other] = True
            winners[other] = one
    return winners


def hamming(codes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return in how many of 64 bits each code differs from its other."""
    differing = (codes ^ others).view(np.uint8).reshape(-1, 8)
    count: npt.NDArray[np.int64] = np.unpackbits(differing, axis=1).sum(axis=1, dtype=np.int64)
    return count


def within_hamming(codes: npt.NDArray[np.uint64], radius: int) -> Iterator[Pairs]:
    """Pair rows whose 64-bit codes differ in at most `radius` bits."""
    import faiss

    packed = codes.astype("<u8").view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64)
    index.add(packed)
    for start in range(0, len(packed), _BLOCK):
        limits, _, found = index.range_search(packed[start : start + _BLOCK], radius + 1)
        yield _ordered(limits, found, start)


def within_cosine(vectors: npt.NDArray[np.float32], similarity: float) -> Iterator[Pairs]:
    """Pair rows whose L2-normalised vectors have an inner product of at least `similarity`.

    faiss copies what it searches, so it gets a chunk at a time, and for each the rows from there
    on: every pair is looked at once.
    """
    import faiss

    vectors = np.ascontiguousarray(vectors)
    for base in range(0, len(vectors), _CHUNK):
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors[base : base + _CHUNK])
        for start in range(base, len(vectors), _BLOCK):
            block = vectors[start : start + _BLOCK]
            limits, scores, found = index.range_search(block, similarity - _UNSURE)
            yield _surely(vectors, *_pairs(limits, found + base, start), scores, similarity)


def _surely(
    vectors: npt.NDArray[np.float32],
    better: Places,
    worse: Places,
    scores: npt.NDArray[np.float32],
    similarity: float,
) -> Pairs:
    """Keep the pairs in order that are near, those about the threshold by an exact sum."""
    sure = scores >= similarity + _UNSURE
    unsure = np.flatnonzero(~sure)
    one, other = (vectors[places[unsure]].astype(np.float64) for places in (better, worse))
    sure[unsure] = (one * other).sum(axis=1) >= similarity
    keep = sure & (better < worse)
    return better[keep], worse[keep]


def _pairs(limits: npt.NDArray[np.generic], found: Places, start: int) -> Pairs:
    """Turn faiss's range result into (found, asked) places."""
    ends = limits.astype(np.int64)
    counts = ends[1:] - ends[:-1]
    asked = start + np.repeat(np.arange(len(counts)), counts)
    return found.astype(np.int64), asked


def _ordered(limits: npt.NDArray[np.generic], found: Places, start: int) -> Pairs:
    better, worse = _pairs(limits, found, start)
    keep = better < worse
    return better[keep], worse[keep]
