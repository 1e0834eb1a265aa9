"""The encoded samples of one row group."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.train.data.batch import Skip
from capfilt.train.data.index import Counts, Group, StreamIndex, run_starts
from capfilt.train.data.randomness import rng_of


@dataclass(frozen=True, slots=True)
class Sample:
    """An encoded image with one text. `seed` is for whatever is drawn for this sample.

    `others`: more texts of the image, where more are asked for. `hard_negative`: a text that is
    false of it, from the row of `text`.
    """

    key: str
    text: str
    origin: str
    data: bytes
    seed: tuple[int | str, ...]
    others: tuple[str, ...] = ()
    hard_negative: str | None = None


@dataclass(frozen=True, slots=True)
class GroupRows:
    """Samples of a row group: the i-th has `counts[i]` texts, from row `starts[i]` on."""

    index: StreamIndex
    group: Group
    rows: pa.Table  # without the group's lead
    texts: pa.Table  # the same rows, then those of the last image that lie in later groups
    images: pa.ChunkedArray
    starts: Counts
    counts: Counts

    def sample(self, place: int, epoch: int, *seed: int | str, captions: int = 1) -> Sample | Skip:
        """Return the sample `place` of [0, samples), with the texts that its epoch has drawn.

        `captions` texts are drawn, all different where the image has as many.
        """
        start, count = int(self.starts[place]), int(self.counts[place])
        key = self._key(start, *seed[-1:])
        order = _drawn(count, captions, "text", *seed, epoch, key)
        drawn = order[0]
        text = self.texts["text"][start + drawn].as_py()
        data = self.images[start].as_py()
        if not data:
            return Skip(key, "no image")
        if text is None or not text.strip():
            return Skip(key, "no text")
        return Sample(
            key,
            text,
            self._origin(start + drawn),
            data,
            (*seed, epoch, key, text),
            tuple(self.texts["text"][start + other].as_py() or text for other in order[1:]),
            self.texts["hard_negative"][start + drawn].as_py() if self.index.refuted else None,
        )

    def _key(self, start: int, *stream: int | str) -> str:
        key = self.rows["key"][start].as_py() if self.index.keyed else None
        if key is None:  # named by where it lies: streams have files of the same name
            name = self.index.files[self.group.file].name
            return ":".join(map(str, (*stream, name, self.rows["row"][start].as_py())))
        return str(key)

    def _origin(self, place: int) -> str:
        origin = self.texts["origin"][place].as_py() if self.index.told else None
        return str(origin or self.index.stream.default_origin)


def _drawn(count: int, wanted: int, *seed: int | str) -> list[int]:
    """Return `wanted` of `count` texts, the first as if it were the only one that is wanted."""
    if count == 1:
        return [0] * wanted
    rng = rng_of(*seed)
    left, found = list(range(count)), list[int]()
    while len(found) < wanted:
        found.append(left.pop(int(rng.random() * len(left))))
        left = left or list(range(count))
    return found


def read_rows(index: StreamIndex, number: int) -> GroupRows:
    """Read the row group `number` of the stream.

    Raises:
        DamageError: a file cannot be read any more.
    """
    group = index.groups[number]
    narrow = ["text", *(["key"] if index.keyed else []), *(["origin"] if index.told else [])]
    narrow += ["hard_negative"] if index.refuted else []
    table = index.read(group, ["image.bytes", *narrow]).slice(group.lead)
    images = pc.struct_field(table["image"], "bytes")
    rows = table.drop_columns(["image"])
    if index.stream.texts == "all":
        starts = np.arange(rows.num_rows)
        return GroupRows(index, group, rows, rows, images, starts, np.ones_like(starts))
    texts = pa.concat_tables([rows, *_continued(index, number, narrow)])
    starts = run_starts(rows["key"])
    counts = np.diff(np.append(starts, texts.num_rows))
    return GroupRows(index, group, rows, texts, images, starts, counts)


def _continued(index: StreamIndex, number: int, columns: list[str]) -> list[pa.Table]:
    """Return the rows of later groups that belong to the last image of this one."""
    found: list[pa.Table] = []
    for group in index.groups[number + 1 :]:
        if group.lead:
            found.append(index.read(group, columns).slice(0, group.lead))
        if group.samples:
            break
    return found
