"""Parquet and Arrow tables with the images inside, as the Hub has them: none of them is copied.

An image is a struct of `bytes` and `path` (where `bytes` is null, a file beside the table), or a
column of bytes. Whether bytes are there is read from Parquet's statistics where these say it.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pat

from capfilt.errors import InputError
from capfilt.inputs.arrow import ArrowTable, open_batches
from capfilt.inputs.columns import IMAGE
from capfilt.inputs.images import locate
from capfilt.inputs.parquet import ParquetTable, open_parquet
from capfilt.inputs.paths import table_kind
from capfilt.inputs.refs import arrow_ref, parquet_ref
from capfilt.inputs.spec import DOWNLOAD_MISSING_OPTION, IMAGE_OPTION
from capfilt.inputs.tables import ERROR, Wanted
from capfilt.inputs.typed import check_types, is_bytes, is_text, typed_batch

PictureTable = ParquetTable | ArrowTable
URL, CAPTION, REF, KEY, ORIGIN = "url", "caption", "image_ref", "key", "origin"
_BYTES_NAMES: Final = IMAGE.known | {"img", "image_bytes", "jpg", "jpeg", "png", "webp", "bytes"}
_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_PEEK_ROWS: Final = 16  # of a column of bytes, to see whether they are images; also read at a time
# What is read of a part of a file: its columns, the row with which it begins in the part, and the
# reference of a row.
_Piece = tuple[pa.RecordBatch, int, Callable[[int], str]]


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """Which column holds the images, and whether it is a struct of `bytes` and `path`."""

    name: str
    nested: bool

    @property
    def leaf(self) -> str:
        """The column of bytes, as references name it."""
        return f"{self.name}.bytes" if self.nested else self.name


def open_picture_table(path: Path) -> PictureTable:
    """Open a Parquet or Arrow file, by its name."""
    return ArrowTable.open(path) if table_kind(path) == "arrow" else ParquetTable.open(path)


def find_images(table: PictureTable, given: str | None) -> ImageColumn | None:
    """Return the column of images, or None where there is certainly none.

    It is the one that was given, if it holds images; otherwise the only struct of bytes and path;
    otherwise the only column of bytes with a known name whose first values begin as images do.

    Raises:
        InputError: there are several.
    """
    fields = [f for f in table.schema if given is None or f.name == given]
    found = [ImageColumn(f.name, True) for f in fields if _is_image_struct(f.type)]
    if not found:
        plain = [f.name for f in fields if is_bytes(f.type) and _may_be_bytes(f.name, given)]
        found = [ImageColumn(name, False) for name in plain if _looks_like_images(table, name)]
    if len(found) > 1:
        names = ", ".join(repr(column.name) for column in found)
        raise InputError(
            f"{table.stamp.path}: {names} each hold images; say which with {IMAGE_OPTION}"
        )
    return found[0] if found else None


def _is_image_struct(kind: pa.DataType) -> bool:
    if not pat.is_struct(kind):
        return False
    fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    return (
        set(fields) == {"bytes", "path"} and is_bytes(fields["bytes"]) and is_text(fields["path"])
    )


def _may_be_bytes(name: str, given: str | None) -> bool:
    return name == given or name.lower() in _BYTES_NAMES


def _looks_like_images(table: PictureTable, name: str) -> bool:
    values = [value for value in _first_values(table, name) if value]
    return bool(values) and all(_is_image(value) for value in values)


def _is_image(data: bytes) -> bool:
    return data.startswith(_MAGIC) or data[4:8] == b"ftyp" or data[:2] == b"\xff\x0a"


def _first_values(table: PictureTable, name: str) -> list[bytes | None]:
    path = table.stamp.path
    if isinstance(table, ParquetTable):
        with open_parquet(path) as file:
            batch = next(file.iter_batches(_PEEK_ROWS, columns=[name]), None)
    else:
        with open_batches(path) as (_, batches):
            batch = batches[0].select([name]).slice(0, _PEEK_ROWS) if batches else None
            if batch is not None:
                batch.validate(full=True)
    values: list[bytes | None] = [] if batch is None else batch.column(name).to_pylist()
    return values


@dataclass(frozen=True, slots=True)
class Embedded:
    """Tables that agree, each with its images inside.

    Batches have the columns url, caption (a text, or a list of texts), image_ref, `extra`,
    input_error, and those that are kept. A row without an address is called by the path of its
    image, else by its table and number.
    """

    tables: tuple[PictureTable, ...]
    labels: tuple[str, ...]  # of each table, unique
    image: ImageColumn
    url: str | None
    caption: str | None
    several: bool  # the caption column may hold lists
    extra: tuple[str, ...] = ()  # further columns of texts
    kept: pa.Schema = pa.schema([])  # a schema is immutable
    images_dir: str | None = None
    follow_links: bool = False
    prefer_url: bool = False
    download_missing: bool = False

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all tables, in order."""
        for table, label in zip(self.tables, self.labels, strict=True):
            table.stamp.check()
            yield from self._rows(table, label, block_rows)
            table.stamp.check()

    def _rows(self, table: PictureTable, label: str, block_rows: int) -> Iterator[pa.RecordBatch]:
        wanted = self._wanted(table)
        check_types(table.stamp.path, table.schema, wanted)
        names = list(dict.fromkeys([*wanted.texts, *wanted.kept.names]))
        first = 0
        for batch, start, ref in _pieces(table, self.image, names, block_rows):
            texts = typed_batch(table.stamp.path, batch, wanted, first)
            paths, there = _cells(batch, self.image)
            refs = [ref(start + i) if is_there else None for i, is_there in enumerate(there)]
            yield self._batch(table, texts, refs, paths, label, first)
            first += batch.num_rows

    def _wanted(self, table: PictureTable) -> Wanted:
        texts = tuple(name for name in (self.url, self.caption) if name)
        lists = self.caption if self.several and self.caption else None
        several = lists if lists and table.has_lists(lists) else None
        return Wanted((*texts, *self.extra), several, self.kept)

    def _batch(
        self,
        table: PictureTable,
        texts: pa.RecordBatch,
        refs: list[str | None],
        paths: list[str | None],
        label: str,
        first: int,
    ) -> pa.RecordBatch:
        rows = texts.num_rows
        nothing = pa.nulls(rows, pa.string())
        columns = iter(texts.columns)
        given = next(columns) if self.url else nothing
        caption = next(columns) if self.caption else nothing
        extra = [next(columns) for _ in self.extra]
        own = next(columns).to_pylist()  # input_error
        addresses = given.to_pylist()
        root = os.path.realpath(self.images_dir or table.stamp.path.parent)
        errors: list[str | None] = []
        for i in range(rows):
            has_address = bool(addresses[i] and addresses[i].strip())
            fault = None
            if self.prefer_url and has_address:
                refs[i] = None
            elif refs[i] is None and not (has_address and self.download_missing and not paths[i]):
                refs[i], fault = self._beside(root, paths[i], has_address)
            errors.append(own[i] or fault)
            addresses[i] = addresses[i] or paths[i] or f"{label}/{first + i}"
        return pa.RecordBatch.from_arrays(
            [
                pa.array(addresses, pa.string()),
                caption,
                pa.array(refs, pa.string()),
                *extra,
                pa.array(errors, pa.string()),
                *columns,
            ],
            names=[URL, CAPTION, REF, *self.extra, ERROR, *self.kept.names],
        )

    def _beside(
        self, root: str, path: str | None, has_address: bool
    ) -> tuple[str | None, str | None]:
        if path:
            return locate(root, path, self.follow_links)
        hint = f", but an address: give {DOWNLOAD_MISSING_OPTION}" if has_address else ""
        return None, f"no image in this row{hint}"


def _cells(batch: pa.RecordBatch, image: ImageColumn) -> tuple[list[str | None], list[bool]]:
    """Return the path of every image, and whether its bytes are there (known, or as read)."""
    rows = batch.num_rows
    if image.name not in batch.schema.names:  # a column of bytes that was not read
        return [None] * rows, [True] * rows
    column = batch.column(image.name)
    if not image.nested:
        return [None] * rows, column.is_valid().to_pylist()
    paths = pc.struct_field(column, "path").cast(pa.string()).cast(pa.binary()).to_pylist()
    named = [None if p is None else p.decode("utf-8", "backslashreplace") for p in paths]
    if column.type.get_field_index("bytes") < 0:
        return named, [True] * rows
    return named, pc.struct_field(column, "bytes").is_valid().to_pylist()


def _pieces(
    table: PictureTable, image: ImageColumn, names: Sequence[str], block_rows: int
) -> Iterator[_Piece]:
    path = table.stamp.path
    real, status = os.path.realpath(path), os.stat(path)
    if isinstance(table, ArrowTable):
        with open_batches(path) as (_, batches):
            for number, batch in enumerate(batches):
                batch.validate(full=True)  # offsets of a stranger's file may lead anywhere
                for start in range(0, batch.num_rows, block_rows):
                    refer = functools.partial(arrow_ref, real, status, number, column=image.leaf)
                    yield batch.slice(start, block_rows), start, refer
        return
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            refer = functools.partial(parquet_ref, real, status, group, column=image.leaf)
            for piece, start in _group_batches(file, group, image, names, block_rows):
                yield piece, start, refer


def _group_batches(
    file: pq.ParquetFile, group: int, image: ImageColumn, names: Sequence[str], block_rows: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield (columns, first row) of a row group; of the images what must be read of them."""
    nulls = _null_count(file, group, image.leaf)
    rows = file.metadata.row_group(group).num_rows
    narrow = [f"{image.name}.path"] if image.nested else []
    if nulls == 0:
        columns, size = [*names, *narrow], block_rows
    else:
        columns, size = [*names, *narrow, image.leaf], min(block_rows, _PEEK_ROWS)
    if not columns:
        for start in range(0, rows, block_rows):
            count = min(block_rows, rows - start)
            yield _empty(count), start
        return
    start = 0
    for batch in file.iter_batches(size, row_groups=[group], columns=columns):
        yield batch, start
        start += batch.num_rows


def _empty(rows: int) -> pa.RecordBatch:
    """Return a batch of which nothing but its number of rows is known."""
    return pa.RecordBatch.from_arrays([pa.nulls(rows)], names=[""])


def _null_count(file: pq.ParquetFile, group: int, leaf: str) -> int | None:
    """Return how many cells of a column are null, or None where the file does not say."""
    columns = file.metadata.row_group(group)
    for i in range(columns.num_columns):
        column = columns.column(i)
        if column.path_in_schema == leaf:
            statistics = column.statistics
            known = statistics is not None and statistics.has_null_count
            return statistics.null_count if known else None
    return None
