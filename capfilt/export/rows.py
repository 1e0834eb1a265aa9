"""From a run's columns to the rows of the export."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.export.config import COLUMNS, READS
from capfilt.export.packing import Span, kept_texts
from capfilt.stage import ColumnReader


def span_rows(reader: ColumnReader, span: Span, extension: str) -> pa.Table:
    """Return the export's rows of one span of a shard; `extension` names the image format."""
    table = reader.read(span.shard, READS)
    row, index = (part[span.start : span.stop] for part in kept_texts(table))
    web = pa.array(index < 0)
    images = table.take(pa.array(row))
    flat = _flat_places(table["captions"], row, index)
    columns = {
        "key": images["key"],
        "url": images["url"],
        "image": _image_column(images, extension),
        "text": _chosen(web, images["caption"], table["captions"], flat),
        "origin": pc.if_else(web, schema.ORIGIN_WEB, schema.ORIGIN_SYNTHETIC),
        "itm_score": _chosen(web, images["itm_score"], table["caption_itm_scores"], flat),
        "itc_score": _chosen(web, images["itc_score"], table["caption_itc_scores"], flat),
        "caption_index": pa.array(index, mask=index < 0).cast(pa.int32()),
        **{name: images[name] for name in COLUMNS.names[8:]},
    }
    return pa.table([columns[name] for name in COLUMNS.names], schema=COLUMNS)


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


def _image_column(images: pa.Table, extension: str) -> pa.Array:
    paths = pc.binary_join_element_wise(images["key"], extension, ".")
    encoded = images["image"].combine_chunks()
    return pa.StructArray.from_arrays(
        [_joined(encoded), _joined(paths)], fields=list(COLUMNS.field("image").type)
    )


def _joined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return one array, whatever number of chunks there was."""
    if isinstance(column, pa.ChunkedArray):
        return pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    return column
