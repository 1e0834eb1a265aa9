"""The dedup barrier: of near-duplicate images, the best-scored copy wins.

Rows are taken in descending order of their best text's score, ties by key; a row that is near a
row that was kept before it is a duplicate of the best such row. There is no chaining: a duplicate
always points at a row that is kept, and lies within the threshold of it. Rows of one image, which
differ in their texts, are no duplicates of each other.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.option import POLICY, check_options, option
from capfilt.stages.dedup.bands import Places
from capfilt.stages.dedup.greedy import Winners, winners_by_hash, winners_of_pairs
from capfilt.stages.dedup.neighbours import Vectors, are_near, first_of_each, within_cosine
from capfilt.stages.dedup.vectors import VectorFile

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
    exact. `phash` and `both` look up bands of the hashes (see `bands`), which grows little faster
    than the rows; `embedding` looks at all pairs, with the square of the rows. Memory is about 250
    bytes a row; embeddings lie in a temporary file, 4 bytes a dimension.
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
        with contextlib.closing(VectorFile()) as vectors:
            parts = []
            for table in shards:
                part, own = _gathered(table, self.method)
                vectors.append(own)
                parts.append(part)
            order, keys = _ranked(parts)
            winners = self._winners(parts, order, vectors)
        owner = np.full(len(order), -1, np.int64)
        owner[order[winners.worse]] = order[winners.better]
        start = 0
        for part in parts:
            of_part: Places = np.full(part.rows, -1, np.int64)
            of_part[part.places] = owner[start : start + len(part.places)]
            start += len(part.places)
            yield pa.record_batch([_names(keys, of_part)], schema=schema.DEDUP)

    def _winners(self, parts: "list[_Part]", order: Places, vectors: VectorFile) -> Winners:
        """Return duplicates and their kept rows, both as places in `order`, the best row first.

        Only the best row of identical bytes is searched for; the others share what becomes of it.
        """
        best, group = first_of_each(_joined(parts, lambda part: part.sha256)[order])
        found = self._found(parts, order[best], vectors)
        kept = np.arange(len(best))
        kept[found.worse] = found.better
        target = best[kept[group]]
        images = _joined(parts, lambda part: part.images)[order]
        duplicates = np.flatnonzero(images[target] != images)
        return Winners(duplicates, target[duplicates])

    def _found(self, parts: "list[_Part]", rows: Places, vectors: VectorFile) -> Winners:
        """Find the near ones of these rows, the best first, whose bytes all differ."""
        if self.method == "sha256":
            return winners_of_pairs(len(rows), ())
        if self.method == "embedding":
            near = within_cosine(vectors.read(rows), self.similarity)
            return winners_of_pairs(len(rows), near)
        codes = _joined(parts, lambda part: part.codes)[rows]
        if self.method == "phash":
            return winners_by_hash(codes, self.radius)
        held = vectors.mapped()
        return winners_by_hash(
            codes, self.radius, lambda one, other: are_near(held, rows, one, other, self.similarity)
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a shard that have an image: their places in it, and what decides."""

    rows: int
    places: Places
    keys: npt.NDArray[np.bytes_]
    sha256: npt.NDArray[np.bytes_]
    images: npt.NDArray[np.bytes_]  # equal where rows are of one image
    scores: npt.NDArray[np.float64]
    codes: npt.NDArray[np.uint64]  # perceptual hashes, none where the method has no use for them


def _gathered(table: pa.Table, method: Method) -> tuple[_Part, Vectors]:
    """Return what is held of a shard, and its embeddings (rows, D); none where none are needed."""
    there = pc.is_valid(table["sha256"])
    for column in _EXTRA[method]:
        there = pc.and_(there, pc.is_valid(table[column]))
    places = np.flatnonzero(there.to_numpy())
    rows = table.filter(there)
    part = _Part(
        rows=table.num_rows,
        places=places,
        keys=_unhexed(rows["key"], "S16"),
        sha256=_unhexed(rows["sha256"], "S32"),
        images=_images(rows),
        scores=_best_scores(rows),
        codes=rows["phash"].to_numpy() if "phash" in _EXTRA[method] else np.zeros(0, np.uint64),
    )
    return part, _vectors(rows, method)


def _ranked(parts: "list[_Part]") -> tuple[Places, npt.NDArray[np.bytes_]]:
    """Return the rows with an image from the best down, and the key of each by its row."""
    keys = _joined(parts, lambda part: part.keys)
    return np.lexsort((keys, -_joined(parts, lambda part: part.scores))), keys


def _joined(
    parts: "list[_Part]", column: Callable[["_Part"], npt.NDArray[Any]]
) -> npt.NDArray[Any]:  # of the column's own type
    """Return one column of all parts."""
    return np.concatenate([column(part) for part in parts] or [np.zeros(0, np.int64)])


def _names(keys: npt.NDArray[np.bytes_], owner: Places) -> pa.Array:
    """Return the key of each row's owner in hex, null where that is -1."""
    names: npt.NDArray[Any] = np.full(len(owner), None, object)
    for place in np.flatnonzero(owner >= 0).tolist():
        names[place] = keys[owner[place]].ljust(_KEY_BYTES, b"\0").hex()
    return pa.array(names, pa.string())


def _images(rows: pa.Table) -> npt.NDArray[np.bytes_]:
    """Return a digest of where each row's image is: in a file of this machine, or at an address."""
    places = zip(rows["image_ref"].to_pylist(), rows["url"].to_pylist(), strict=True)
    texts = (
        f"{ref is None}{ref if ref is not None else (url or '').strip()}" for ref, url in places
    )
    digests = [hashlib.blake2b(t.encode(), digest_size=_KEY_BYTES).digest() for t in texts]
    return np.array(digests, f"S{_KEY_BYTES}")


def _vectors(rows: pa.Table, method: Method) -> Vectors:
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
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), kind)
