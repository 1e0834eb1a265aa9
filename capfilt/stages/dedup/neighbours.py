"""Pairs of rows whose embeddings are near each other, by faiss, exact and independent of threads.

A row's place is its rank: the better-scored row has the lower place. Every function yields arrays
(better, worse) of places, better < worse, block by block so that memory stays bounded.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from capfilt.stages.dedup.bands import Pairs, Places

Vectors = npt.NDArray[np.float32]  # (rows, D), L2-normalised
_BLOCK: Final = 4096
_CHUNK: Final = 16 * _BLOCK
_PAIRS: Final = 1 << 13  # that are compared at a time
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


def are_near(
    vectors: Vectors, rows: Places, better: Places, worse: Places, similarity: float
) -> npt.NDArray[np.bool_]:
    """Say which pairs of places have an inner product of at least `similarity`, exactly.

    `rows` are the rows of `vectors` by place; these may lie in a file, and are read for the pairs.
    """
    near = np.zeros(len(better), np.bool_)
    for start in range(0, len(better), _PAIRS):
        some = slice(start, start + _PAIRS)
        one, other = (vectors[rows[places[some]]].astype(np.float64) for places in (better, worse))
        near[some] = np.einsum("ij,ij->i", one, other) >= similarity
    return near


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
