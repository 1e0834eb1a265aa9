"""Checking an input as a whole, before any work: its kind, its columns, and every row of it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.columns import CAPTION, IMAGE, URL, Role, find_column
from capfilt.inputs.delimited import DelimitedTable
from capfilt.inputs.images import ImageFolder, find_images_dir
from capfilt.inputs.img2dataset import Shards
from capfilt.inputs.jsonlines import JsonLinesTable
from capfilt.inputs.kinds import find_kind, wanted_files
from capfilt.inputs.parquet import ParquetTable
from capfilt.inputs.paths import TableKind, printable, table_kind, unknown_format
from capfilt.inputs.spec import BLOCK_ROWS, ENCODING_OPTION, Input, InputSpec
from capfilt.inputs.tables import AddressList, Columns, Table, same_column
from capfilt.inputs.webdataset import WebDatasetTars
from capfilt.wording import counted

_Stream = Callable[[int], Iterator[pa.RecordBatch]]
_DELIMITERS: Final = {"csv": ",", "tsv": "\t"}


def open_input(spec: InputSpec) -> Input:
    """Check all of an input by reading it once, in constant memory, and return it.

    Raises:
        InputError: what is wrong, in which file and line, and what to do.
    """
    if not spec.paths:
        raise InputError("no input was given; name at least one file, folder or glob")
    _check_encoding(spec.encoding)
    kind = find_kind(spec)
    files = wanted_files(spec, kind)
    if kind == "images":
        return _images(spec, files)
    if kind == "img2dataset":
        shards = Shards.open(files, spec)
        return _local(shards.read, "img2dataset shards", shards.files, not spec.download_missing)
    if kind == "webdataset":
        return _local(WebDatasetTars.of(files, spec).read, "WebDataset tars", files)
    return _addresses(spec, [_open_table(path, kind, spec.encoding) for path in files])


def _addresses(spec: InputSpec, tables: Sequence[Table]) -> Input:
    """Check tables of addresses."""
    columns = _columns(tables, (URL, spec.url_col), (CAPTION, spec.caption_col))
    rows = sum(batch.num_rows for batch in columns.read(BLOCK_ROWS))
    names = " and ".join(repr(name) for name in columns.names)
    files = [table.stamp.path for table in tables]
    what = f"{tables[0].dialect}, columns {names}"
    return _input(AddressList(columns).read, what, files, rows, local=False)


def _images(spec: InputSpec, files: Sequence[Path]) -> Input:
    """Check captions tables and the folder of their images."""
    tables = [_open_table(path, _kind_of_table(path), spec.encoding) for path in files]
    columns = _columns(tables, (IMAGE, spec.image_col), (CAPTION, spec.caption_col))
    root = find_images_dir(spec.images_dir, files)
    return _local(ImageFolder(columns, root).read, f"images in {root} with captions", files)


def _local(stream: _Stream, what: str, files: Sequence[Path], local: bool = True) -> Input:
    """Check an input of local images: at least one of its rows must have one."""
    rows, usable, reason = 0, 0, ""
    for batch in stream(BLOCK_ROWS):
        rows += batch.num_rows
        reasons = batch.column("input_error")
        usable += reasons.null_count
        if not reason and reasons.null_count < batch.num_rows:
            reason = reasons.drop_null()[0].as_py()
    if rows and not usable:
        raise InputError(
            f"{files[0]}: none of the {counted(rows, 'row')} is usable; the first because: {reason}"
        )
    return _input(stream, what, files, rows, local)


def _input(stream: _Stream, what: str, files: Sequence[Path], rows: int, local: bool) -> Input:
    if rows == 0:
        raise InputError(f"{files[0]}: no rows; give an input with at least one")
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    description = printable(f"{files[0]}{more}: {counted(rows, 'row')}, {what}")
    return Input(local, rows, description, stream)


def _columns(tables: Sequence[Table], *roles: tuple[Role, str | None]) -> Columns:
    """Find the column of every role in every table; they must agree."""
    names = []
    for role, given in roles:
        found = [find_column(role, given, t.columns, str(t.stamp.path)) for t in tables]
        names.append(same_column(found, tables, role.what))
    return Columns(tuple(tables), tuple(names))


def _open_table(path: Path, kind: TableKind, encoding: str) -> Table:
    if kind == "parquet":
        return ParquetTable.open(path)
    if kind == "jsonl":
        return JsonLinesTable.open(path, encoding)
    return DelimitedTable.open(path, encoding, _DELIMITERS[kind])


def _kind_of_table(path: Path) -> TableKind:
    kind = table_kind(path)
    if kind is None:
        raise unknown_format(path)
    return kind


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except LookupError as error:
        raise InputError(
            f"{ENCODING_OPTION} {encoding}: no such text encoding; try utf-8, utf-16 or cp1252"
        ) from error
