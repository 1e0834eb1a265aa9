"""Choosing rows to look at: the same ones for the same run, and never more than a few in memory."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from capfilt.stage import ColumnReader

_NARROW: Final = ("key", "reason", "keep_web", "itm_score")
_WIDE: Final = (
    "key",
    "url",
    "caption",
    "image",
    "itm_score",
    "captions",
    "caption_itm_scores",
    "keep_web",
    "keep_captions",
    "reason",
    "status",
    "error_message",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One row to show; `texts` are (origin, text, itm_score or None, kept)."""

    key: str
    url: str
    image: bytes | None
    reason: str
    detail: str
    texts: tuple[tuple[str, str, float | None, bool], ...]


@dataclass(slots=True)
class _Drawn:
    """The rows with the smallest keys of each reason: a key is a hash, so that is a fair draw."""

    count: int
    heaps: dict[str, list[tuple[int, str, int]]] = field(default_factory=dict)

    def offer(self, reason: str, key: str, shard: str, row: int) -> None:
        heap = self.heaps.setdefault(reason, [])
        entry = (-int(key[:15], 16), shard, row)
        if len(heap) < self.count:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)


def draw_samples(reader: ColumnReader, count: int) -> dict[str, list[Sample]]:
    """Return up to `count` rows of each reason, drawn by the hash in their keys."""
    drawn = _Drawn(count)
    for shard in reader.shards:
        table = reader.read(shard, _NARROW)
        reasons = table["reason"].cast(pa.string()).to_pylist()
        for row, (reason, key) in enumerate(zip(reasons, table["key"].to_pylist(), strict=True)):
            drawn.offer(reason, key, shard, row)
    return {reason: list(_loaded(reader, heap)) for reason, heap in sorted(drawn.heaps.items())}


def _loaded(reader: ColumnReader, heap: list[tuple[int, str, int]]) -> Iterator[Sample]:
    for _, shard, row in sorted(heap, reverse=True):
        yield _sample(reader.read(shard, _WIDE).slice(row, 1).to_pylist()[0])


def _sample(row: dict[str, Any]) -> Sample:  # a row as Python values
    texts = [("web", row["caption"] or "", row["itm_score"], row["keep_web"])]
    own = zip(
        row["captions"] or [], row["caption_itm_scores"] or [], row["keep_captions"], strict=True
    )
    texts += [("synthetic", text, score, keep) for text, score, keep in own]
    return Sample(
        key=row["key"],
        url=row["url"] or "",
        image=row["image"],
        reason=row["reason"],
        detail=row["error_message"] or "",
        texts=tuple(texts),
    )
