"""The contamination stage: which pictures and texts of a run stand in evaluation sets.

An evaluation set goes through the same stages as the run's rows (pictures scaled alike, the same
hash, the same matcher's embedding), in the same run folder; this stage reads what they came to.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import PlanError
from capfilt.fingerprint import NOT_IDENTITY, NOT_RECORDED
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import load_manifest
from capfilt.stage import Resource, Transform
from capfilt.stages.contamination.ngrams import Hashes, all_ngrams, ngrams, share

Codes = npt.NDArray[np.uint64]
Vectors = npt.NDArray[np.float32]
_TOGETHER: Final = 64  # rows that are compared with a whole set at once


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """A set by its name, and by the id of the input that it was cut to."""

    name: str
    input: str


@dataclass(frozen=True)
class Contamination:
    """Mark what stands in one of `sets`: the nearest picture, the text that shares most.

    A picture does where its perceptual hash differs in at most `radius` of 64 bits and, with
    `embedding`, the matcher's embeddings have a cosine of at least `similarity`. A text does where
    at least `least_share` of its runs of `words` words stand in texts of the set; one with fewer
    words never does, since short texts say the same by chance.
    """

    sets: tuple[EvaluationSet, ...]
    radius: int = 8
    similarity: float = 0.98
    words: int = 8
    least_share: float = 0.5
    embedding: bool = True
    # Where the sets' columns lie: the run folder, and the stages that add them; see `grounded`.
    root: str = field(default="", metadata={**NOT_IDENTITY, **NOT_RECORDED})
    hashed_by: str = field(default="", metadata={**NOT_IDENTITY, **NOT_RECORDED})
    seen_by: str = field(default="", metadata={**NOT_IDENTITY, **NOT_RECORDED})

    name = "contamination"
    version = 1
    resource: ClassVar[Resource] = "cpu"
    rows_per_call = None
    adds = schema.CONTAMINATION

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads; embeddings only where a model gives them."""
        return ("phash", "caption", "captions", *(("image_embedding",) if self.embedding else ()))

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Read the sets' columns; yield the transform."""
        if not self.root:
            raise PlanError("the contamination stage is opened in a run folder alone")
        held = [self._read(each) for each in self.sets]
        yield lambda batch: self._mark(batch, held)

    def _read(self, each: EvaluationSet) -> "_Held":
        ledger = Ledger(Path(self.root))
        codes, vectors, texts = [np.zeros(0, np.uint64)], [], []
        for shard in load_manifest(ledger, each.input).shards:
            texts += ledger.read(source.STAGE, shard, ["caption"])["caption"].to_pylist()
            found = ledger.read(self.hashed_by, shard, ["phash"])
            if self.embedding:
                seen = ledger.read(self.seen_by, shard, ["image_embedding"])
                found = found.append_column("image_embedding", seen["image_embedding"])
            found = found.filter(_there(found))
            codes.append(found["phash"].to_numpy())
            vectors.append(_vectors(found))
        own = [part for part in vectors if len(part)]
        joined = np.concatenate(own) if own else np.zeros((0, 1), np.float32)
        return _Held(each.name, np.concatenate(codes), joined, all_ngrams(texts, self.words))

    def _mark(self, batch: pa.RecordBatch, held: "list[_Held]") -> pa.RecordBatch:
        image = self._images(batch, held)
        web = [self._text(text, held) for text in batch.column("caption").to_pylist()]
        lists = batch.column("captions").to_pylist()
        own = [[self._text(text, held) for text in texts or []] for texts in lists]
        columns = [
            [name for name, _, _ in image],
            [bits for _, bits, _ in image],
            [cosine for _, _, cosine in image],
            [name for name, _ in web],
            [part for _, part in web],
            [[name for name, _ in texts] for texts in own],
            [[part for _, part in texts] for texts in own],
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self.adds, strict=True)]
        return pa.record_batch(arrays, schema=self.adds)

    def _text(self, text: str | None, held: "list[_Held]") -> tuple[str | None, float | None]:
        """Return the set that has most of a text, and which share; (None, None): too little."""
        own = ngrams(text, self.words)
        shares = [share(own, each.ngrams) for each in held]
        best = int(np.argmax(shares))
        enough = shares[best] >= self.least_share
        return (held[best].name, shares[best]) if enough else (None, None)

    def _images(self, batch: pa.RecordBatch, held: "list[_Held]") -> "list[_Near]":
        """Return for each row the set with the nearest picture, differing bits, and the cosine."""
        found: list[_Near] = [(None, None, None)] * batch.num_rows
        table = pa.table(batch)
        places = np.flatnonzero(_there(table).to_numpy())
        rows = table.take(pa.array(places))
        codes, vectors = rows["phash"].to_numpy(), _vectors(rows)
        for start in range(0, len(places), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            for each in held:
                for place, near in self._nearest(codes[part], vectors[part], each):
                    row = places[start + place]
                    if found[row][1] is None or _order(near) < _order(found[row]):
                        found[row] = near
        return found

    def _nearest(
        self, codes: Codes, vectors: Vectors, each: "_Held"
    ) -> "Iterator[tuple[int, _Near]]":
        """Yield (row, its nearest picture of a set) of the rows that have a near one."""
        bits = np.bitwise_count(codes[:, None] ^ each.codes[None, :])
        for row in np.flatnonzero((bits <= self.radius).any(axis=1)).tolist():
            near = np.flatnonzero(bits[row] <= self.radius)
            if not self.embedding:
                best = near[np.argmin(bits[row][near])]
                yield row, (each.name, int(bits[row][best]), None)
                continue
            cosine = each.vectors[near] @ vectors[row]
            best = int(np.argmax(cosine))
            if cosine[best] >= self.similarity:
                yield row, (each.name, int(bits[row][near[best]]), float(cosine[best]))


_Near = tuple[str | None, int | None, float | None]


@dataclass(frozen=True, slots=True)
class _Held:
    """What a set comes to: M hashes, (M, D) embeddings of length 1, the n-grams of its texts."""

    name: str
    codes: Codes
    vectors: Vectors
    ngrams: Hashes


def _order(near: _Near) -> tuple[float, int]:
    """Return what is smaller for a nearer picture."""
    return -(near[2] or 0.0), near[1] or 0


def _there(table: pa.Table) -> pa.ChunkedArray:
    """Say which rows have a hash, and an embedding where there is that column."""
    columns = [n for n in ("phash", "image_embedding") if n in table.column_names]
    valid = [pc.is_valid(table[name]) for name in columns]
    return valid[0] if len(valid) == 1 else pc.and_(*valid)


def _vectors(table: pa.Table) -> Vectors:
    if "image_embedding" not in table.column_names or not table.num_rows:
        return np.zeros((table.num_rows, 1), np.float32)
    flat: Vectors = pc.list_flatten(table["image_embedding"]).to_numpy()
    return flat.reshape(table.num_rows, -1)
