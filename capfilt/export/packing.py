"""Which kept texts go into which file: by sizes alone, before any image is read.

A file is a run of consecutive (image, text) pairs in the order of the input. Where one file ends
and the next begins depends on nothing but that sequence and the target size, so the files are the
same however the rows are cut into shards.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.export.config import NARROW, ExportConfig
from capfilt.export.formats import RowKind
from capfilt.stage import ColumnReader


@dataclass(frozen=True, slots=True)
class Span:
    """The rows `start` to `stop` that a shard exports, numbered in its order."""

    shard: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FilePlan:
    """What one file holds."""

    number: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(span.stop - span.start for span in self.spans)


def pack(reader: ColumnReader, config: ExportConfig) -> list[FilePlan]:
    """Cut the rows that a run exports into files of about `target_bytes`; at least one file.

    Reads narrow columns, one shard at a time.
    """
    kind = config.format.rows
    columns = NARROW if kind == "texts" else (*NARROW, "key")
    files: list[list[Span]] = [[]]
    filled = 0
    for shard in reader.shards:
        sizes = row_sizes(reader.read(shard, columns), kind)
        start = 0
        while start < len(sizes):
            if filled >= config.target_bytes:
                files.append([])
                filled = 0
            ends = filled + np.cumsum(sizes[start:])
            full = int(np.searchsorted(ends, config.target_bytes))  # the text that fills the file
            stop = min(start + full + 1, len(sizes))
            files[-1].append(Span(shard, start, stop))
            filled = int(ends[stop - start - 1])
            start = stop
    return [FilePlan(number, tuple(spans)) for number, spans in enumerate(files)]


def row_sizes(table: pa.Table, kind: RowKind) -> npt.NDArray[np.int64]:
    """Return the bytes of image and text of every row that a shard exports, in its order."""
    row, index = exported_texts(table, kind)
    web = pc.binary_length(table["caption"]).fill_null(0).to_numpy().astype(np.int64)
    _, starts = _list_starts(table["captions"])
    flat = pc.binary_length(pc.list_flatten(table["captions"])).fill_null(0)
    synthetic = np.concatenate([flat.to_numpy().astype(np.int64), [0]])
    text = np.where(index < 0, web[row], synthetic[np.where(index < 0, -1, starts[row] + index)])
    images = table["image_bytes"].fill_null(0).to_numpy().astype(np.int64)
    sizes: npt.NDArray[np.int64] = images[row] + text
    return sizes


def exported_texts(
    table: pa.Table, kind: RowKind
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (row, index) of the text of every row that a shard exports; see `kept_texts`.

    Where a row is an image, its text is drawn evenly from its kept ones, by its key.
    """
    row, index = kept_texts(table)
    if kind == "texts":
        return row, index
    image, starts, counts = np.unique(row, return_index=True, return_counts=True)
    keys = table["key"].take(pa.array(image)).to_pylist()
    hashes = np.frombuffer(bytes.fromhex("".join(keys)), ">u8").reshape(-1, 2)[:, 1]
    drawn = starts + (hashes % counts.astype(np.uint64)).astype(np.int64)
    return row[drawn], index[drawn]


def kept_texts(table: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (row, index) of every kept text of a shard: index -1 is the web's, k the k-th own.

    In the order of the rows; in a row the web text comes first.
    """
    web = np.flatnonzero(table["keep_web"].to_numpy())
    lengths, _ = _list_starts(table["keep_captions"])
    row = np.repeat(np.arange(table.num_rows), lengths)
    index = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    keep = pc.list_flatten(table["keep_captions"]).to_numpy().astype(bool)
    rows = np.concatenate([web, row[keep]])
    indices = np.concatenate([np.full(len(web), -1), index[keep]])
    order = np.lexsort((indices, rows))
    return rows[order].astype(np.int64), indices[order].astype(np.int64)


def _list_starts(
    column: pa.ChunkedArray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (length, first place in the flattened values) of every list; null is empty."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    return lengths, np.cumsum(lengths) - lengths
