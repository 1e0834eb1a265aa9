"""Every text of a run with its scores and what became of it, in one narrow table.

`scores.parquet` lies beside the data: a row a text, kept or not, the web's also where a row has
none, so that there is a row for each row of the input. It has no pictures and needs no join.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.export.formats.parquet import write_parquet
from capfilt.export.rows import grouped
from capfilt.stage import ColumnReader

TABLE: Final = pa.schema(
    [
        pa.field("key", pa.string()),  # of the row of the input
        pa.field("url", pa.string()),
        pa.field("origin", pa.string()),  # web | synthetic
        pa.field("caption_index", pa.int32()),  # which synthetic text; null for the web's
        pa.field("text", pa.string()),  # null where the row has no text of the web
        pa.field("itm_score", pa.float32()),  # [0, 1]
        pa.field("itc_score", pa.float32()),  # [-1, 1]
        pa.field("similarity", pa.float32()),  # the scorer's; null without one
        pa.field("kept", pa.bool_()),  # whether the export has this text
        pa.field("reason", pa.string()),  # of the row, in a word; see `capfilt status`
        pa.field("dup_of", pa.string()),  # key of the kept copy of the image
        pa.field("image_in", pa.string()),  # the evaluation set that has the image
        pa.field("text_in", pa.string()),  # the one that has the text
    ]
)
# What is read of a run besides the columns that the export's rows are made of.
NARROW: Final = (
    *("key", "url", "caption", "captions", "keep_web", "keep_captions", "reason"),
    *("itm_score", "itc_score", "caption_itm_scores", "caption_itc_scores"),
)
# Columns that some runs have only.
OPTIONAL: Final = (
    *("similarity", "caption_similarities", "dup_of"),
    *("image_in", "text_in", "captions_in"),
)
_GROUP_ROWS: Final = 50_000


def scored(columns: Collection[str]) -> tuple[str, ...]:
    """Return what is read of a run that has these columns."""
    return (*NARROW, *(name for name in OPTIONAL if name in columns))


def write_scores(out: BinaryIO, reader: ColumnReader, columns: Sequence[str]) -> None:
    """Write the table, one shard after another; `columns` are those of `scored`."""
    tables = (scored_texts(reader.read(shard, columns)) for shard in reader.shards)
    groups: Iterator[pa.Table] = grouped(tables, TABLE.empty_table(), _GROUP_ROWS)
    write_parquet(out, TABLE, groups, repeated=["origin", "reason", "kept"])


def scored_texts(table: pa.Table) -> pa.Table:
    """Return the rows of one shard: of each of its rows the web's text first, then its own."""
    lengths = pc.list_value_length(table["captions"]).fill_null(0).to_numpy()
    own = np.repeat(np.arange(table.num_rows), lengths)
    row = np.concatenate([np.arange(table.num_rows), own])
    order = np.argsort(row, kind="stable")
    web = pa.array(order < table.num_rows)
    index = np.concatenate([np.full(table.num_rows, -1), _counted(lengths)])[order]
    of_row = pa.array(row[order])

    def both(name: str, names: str) -> pa.Array:
        """Return the web's and the synthetic texts' values in one order."""
        if name not in table.column_names:
            return pa.nulls(len(order), TABLE.field(name).type)
        flat = pc.list_flatten(table[names])
        joined = pa.chunked_array([*table[name].chunks, *flat.chunks], table[name].type)
        return joined.take(pa.array(order))

    columns = {
        "key": table["key"].take(of_row),
        "url": table["url"].take(of_row),
        "origin": pc.if_else(web, schema.ORIGIN_WEB, schema.ORIGIN_SYNTHETIC),
        "caption_index": pa.array(index, mask=index < 0).cast(pa.int32()),
        "text": both("caption", "captions"),
        "itm_score": both("itm_score", "caption_itm_scores"),
        "itc_score": both("itc_score", "caption_itc_scores"),
        "similarity": both("similarity", "caption_similarities"),
        "kept": both("keep_web", "keep_captions"),
        "reason": table["reason"].cast(pa.string()).take(of_row),
        "dup_of": _optional(table, "dup_of").take(of_row),
        "image_in": _optional(table, "image_in").take(of_row),
        "text_in": both("text_in", "captions_in"),
    }
    return pa.table([columns[name] for name in TABLE.names], schema=TABLE)


def _counted(lengths: np.ndarray) -> np.ndarray:
    """Return 0, 1, … for each list of these lengths."""
    starts = np.cumsum(lengths) - lengths
    places: np.ndarray = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    return places


def _optional(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(table.num_rows, TABLE.field(name).type)])
