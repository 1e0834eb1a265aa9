"""From a run's columns to the rows of the export."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.export.config import ALL_TEXTS, COLUMNS, READS, ExportConfig
from capfilt.export.instructions import drawn
from capfilt.export.packing import Span, exported_texts
from capfilt.export.place import picture_path
from capfilt.stage import ColumnReader

# From a shard and keys of its rows to the columns of the input that are carried to the export.
Carried = Callable[[str, pa.ChunkedArray], pa.Table]
Places = npt.NDArray[np.int64]
_GROUP_BYTES: Final = 100_000_000  # of images in a table; the Hub's viewer reads no larger ones


@dataclass(frozen=True, slots=True)
class Rows:
    """Reads the rows of an export, span by span; `extension` names the images' format."""

    reader: ColumnReader
    config: ExportConfig
    extension: str
    carried: Carried | None

    def tables(self, spans: Iterable[Span], images: bool = True) -> Iterator[pa.Table]:
        """Yield tables of `row_group_rows` rows, less where images are large, whatever the shards.

        Without `images` their bytes are null, and are not read.
        """
        empty = self.config.columns.empty_table()
        rows = self.config.row_group_rows
        return grouped((self._span(span, images) for span in spans), empty, rows)

    def _span(self, span: Span, images: bool) -> pa.Table:
        table = self.reader.read(span.shard, [n for n in READS if images or n != "image"])
        found = exported_texts(table, self.config.format.rows)
        row, index = (part[span.start : span.stop] for part in found)
        rows = self._pairs(table, row, index)
        if self.config.instructions:
            rows = rows.append_column("text_input", drawn(self.config.instructions, rows))
            rows = rows.append_column("text_output", rows["text"])
        if self.carried is not None:
            columns = self.carried(span.shard, rows["key"]).columns
            for field, column in zip(self.config.carried, columns, strict=True):
                rows = rows.append_column(field, column)
        if ALL_TEXTS.name in self.config.columns.names:
            rows = rows.append_column(ALL_TEXTS, _all_texts(table, row))
        return rows

    def _pairs(self, table: pa.Table, row: Places, index: Places) -> pa.Table:
        web = pa.array(index < 0)
        images = table.take(pa.array(row))
        flat = _flat_places(table["captions"], row, index)
        columns = {
            "key": images["key"],
            "url": images["url"],
            "image": self._images(images),
            "text": _chosen(web, images["caption"], table["captions"], flat),
            "origin": pc.if_else(web, schema.ORIGIN_WEB, schema.ORIGIN_SYNTHETIC),
            "itm_score": _chosen(web, images["itm_score"], table["caption_itm_scores"], flat),
            "itc_score": _chosen(web, images["itc_score"], table["caption_itc_scores"], flat),
            "caption_index": pa.array(index, mask=index < 0).cast(pa.int32()),
            **{name: images[name] for name in COLUMNS.names[8:]},
        }
        return pa.table([columns[name] for name in COLUMNS.names], schema=COLUMNS)

    def _images(self, images: pa.Table) -> pa.Array:
        """Return (bytes, path) of each row."""
        keys = images["key"]
        if self.config.format.pictures == "inside":
            paths = pc.binary_join_element_wise(keys, self.extension, ".")
        else:
            paths = pa.array([picture_path(k, self.extension) for k in keys.to_pylist()], "string")
        encoded = images["image"] if "image" in images.column_names else None
        own = pa.nulls(len(keys), pa.binary()) if encoded is None else _joined(encoded)
        fields = list(COLUMNS.field("image").type)
        return pa.StructArray.from_arrays([own, _joined(paths)], fields=fields)


def grouped(tables: Iterable[pa.Table], empty: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly `rows` rows, or fewer where images are large.

    The last has the rest. A table has at least one row.
    """
    held = empty
    for table in tables:
        held = pa.concat_tables([held, table])
        while stop := _full(held, rows):
            yield held.slice(0, stop).combine_chunks()
            held = held.slice(stop)
    if held.num_rows:
        yield held.combine_chunks()


def _full(held: pa.Table, rows: int) -> int:
    """Return how many rows make a table that nothing can be added to; 0: there are not enough."""
    if "image" not in held.column_names:
        return rows if held.num_rows >= rows else 0
    encoded = pc.struct_field(held["image"].slice(0, rows + 1), "bytes")
    ends = np.cumsum(pc.binary_length(encoded).fill_null(0).to_numpy())
    fit = min(rows, max(1, int(np.searchsorted(ends, _GROUP_BYTES, "right"))))
    return fit if fit == rows <= held.num_rows or fit < len(ends) else 0


def _all_texts(table: pa.Table, row: Places) -> pa.Array:
    """Return `ALL_TEXTS` of these rows of a shard."""
    narrow = table.drop_columns([n for n in ("image",) if n in table.column_names])
    listed = [_texts_of(each) for each in narrow.take(pa.array(row)).to_pylist()]
    return pa.array(listed, ALL_TEXTS.type)


def _texts_of(row: dict[str, Any]) -> list[dict[str, Any]]:  # of the run's columns
    """Return all texts of a row, as `ALL_TEXTS` has them."""
    web = {
        "text": row["caption"],
        "origin": schema.ORIGIN_WEB,
        "caption_index": None,
        "itm_score": row["itm_score"],
        "itc_score": row["itc_score"],
        "kept": row["keep_web"],
    }
    own = [
        {
            "text": text,
            "origin": schema.ORIGIN_SYNTHETIC,
            "caption_index": place,
            "itm_score": _at(row["caption_itm_scores"], place),
            "itc_score": _at(row["caption_itc_scores"], place),
            "kept": row["keep_captions"][place],
        }
        for place, text in enumerate(row["captions"] or [])
    ]
    return [*([web] if web["text"] else []), *own]


def _at(scores: list[float] | None, place: int) -> float | None:
    return None if scores is None else scores[place]


def _flat_places(column: pa.ChunkedArray, row: np.ndarray, index: np.ndarray) -> pa.Array:
    """Return the place of every chosen synthetic text among all of the shard; null for a web's."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    return pa.array(starts[row] + index, mask=index < 0)


def _chosen(
    web: pa.Array, own: pa.ChunkedArray, lists: pa.ChunkedArray, flat: pa.Array
) -> pa.ChunkedArray:
    """Return the web's value where `web`, else that of the chosen synthetic text."""
    return pc.if_else(web, own, pc.list_flatten(lists).take(flat))


def _joined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return one array, whatever number of chunks there was."""
    if isinstance(column, pa.ChunkedArray):
        return pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    return column
