"""Parquet as the Hugging Face Hub has it: pictures inside, a page index, small row groups."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.export.formats.base import ExportFormat


@dataclass(frozen=True)
class Parquet(ExportFormat):
    """Parquet with a checksum a page, which every reader opens; a table becomes a row group."""

    label: ClassVar[str] = "parquet"
    suffix: ClassVar[str] = "parquet"
    loader: ClassVar[str] = "parquet"
    told: ClassVar[str] = "Parquet of `datasets`, a row a kept pair"

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write one file."""
        write_parquet(out, schema, tables, pictures="image", repeated=["origin"])


def write_parquet(
    out: BinaryIO,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    pictures: str = "",
    repeated: Iterable[str] = (),
) -> None:
    """Write tables as row groups; `pictures` is a path of encoded images, which do not compress.

    `repeated` are columns of few values.
    """
    codecs = {name: "zstd" for name in _leaves(schema)}
    codecs |= {name: "none" for name in codecs if pictures and _is_bytes_of(name, pictures)}
    with pq.ParquetWriter(
        out,
        schema,
        version="2.6",
        compression=codecs,
        use_dictionary=list(repeated),
        write_page_checksum=True,
        write_page_index=True,
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(table.num_rows, 1))


def _is_bytes_of(leaf: str, column: str) -> bool:
    return leaf.split(".", maxsplit=1)[0] == column and leaf.endswith(".bytes")


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the names of Parquet's own columns, which codecs are given by."""
    columns = pq.ParquetFile(_empty(schema)).schema
    return [columns.column(place).path for place in range(len(columns))]


def _empty(schema: pa.Schema) -> pa.BufferReader:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return pa.BufferReader(sink.getvalue())
