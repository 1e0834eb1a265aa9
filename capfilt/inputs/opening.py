"""Checking an input as a whole, before any work: its kinds, its columns, and every row of it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.addresses import AddressLines
from capfilt.inputs.arrow import ArrowTable
from capfilt.inputs.columns import (
    CAPTION,
    IMAGE,
    URL,
    Role,
    check_kept,
    find_column,
    maybe_column,
)
from capfilt.inputs.delimited import DelimitedTable
from capfilt.inputs.embedded import Embedded, PictureTable, find_images
from capfilt.inputs.exported import MARKS, ExportRows, extra_columns
from capfilt.inputs.images import ImageFolder, find_images_dir
from capfilt.inputs.img2dataset import Shards
from capfilt.inputs.jsonlines import JsonLinesTable
from capfilt.inputs.kinds import Part, find_parts
from capfilt.inputs.parquet import ParquetTable
from capfilt.inputs.paths import TableKind, labels, printable, table_kind, unknown_format
from capfilt.inputs.spec import (
    BLOCK_ROWS,
    CAPTION_OPTION,
    ENCODING_OPTION,
    KEEP_OPTION,
    KIND_OPTION,
    NO_CAPTIONS_OPTION,
    Input,
    InputSpec,
)
from capfilt.inputs.tables import (
    AddressList,
    Columns,
    Table,
    Wanted,
    raw_of,
    same_column,
    same_types,
    spread,
)
from capfilt.inputs.webdataset import WebDatasetTars
from capfilt.wording import counted

_Stream = Callable[[int], Iterator[pa.RecordBatch]]
_DELIMITERS: Final = {"csv": ",", "tsv": "\t"}
_NOTHING_KEPT: Final = pa.schema([])


@dataclass(frozen=True, slots=True)
class _Opened:
    """One part of an input: what it is, for the log, and its rows."""

    what: str
    files: tuple[Path, ...]
    stream: _Stream
    local: bool  # every image is on this machine
    pictures: bool  # it is an input of local images: one row at least must have one
    kept: pa.Schema = _NOTHING_KEPT


def open_input(spec: InputSpec) -> Input:
    """Check all of an input by reading it once, in constant memory, and return it.

    Raises:
        InputError: what is wrong, in which file and line, and what to do.
    """
    if not spec.paths:
        raise InputError("no input was given; name at least one file, folder or glob")
    _check_encoding(spec.encoding)
    if spec.no_captions and spec.caption_col is not None:
        raise InputError(f"{NO_CAPTIONS_OPTION} reads no texts; leave {CAPTION_OPTION} out")
    opened = [_open_part(spec, part) for part in find_parts(spec)]
    _check_same_kept(opened)
    rows = [_check_rows(part) for part in opened]
    return _joined(opened, rows)


def _open_part(spec: InputSpec, part: Part) -> _Opened:
    match part.kind:
        case "images":
            return _images(spec, part.files)
        case "hf" | "export":
            return _embedded(spec, part)
        case "img2dataset":
            return _img2dataset(spec, part.files)
        case "webdataset":
            _refuse_kept(spec, "WebDataset tars")
            tars = WebDatasetTars.of(part.files, spec)
            return _Opened("WebDataset tars", part.files, tars.read, True, True)
        case "tables":
            tables = [_open_table(p, _kind_of_table(p), spec.encoding) for p in part.files]
            return _addresses(spec, tables)
    return _addresses(spec, [_open_table(p, part.kind, spec.encoding) for p in part.files])


def _addresses(spec: InputSpec, tables: Sequence[Table]) -> _Opened:
    """Open tables of addresses."""
    columns = _columns(spec, tables, (URL, spec.url_col))
    names = " and ".join(repr(name) for name in columns.wanted.texts)
    dialects = " and ".join(dict.fromkeys(table.dialect for table in tables))
    some = "columns" if len(columns.wanted.texts) > 1 else "column"
    what = f"{dialects}, {some} {names}{_kept_line(columns.wanted.kept)}"
    files = tuple(table.stamp.path for table in tables)
    stream = AddressList(columns).read
    kept = columns.wanted.kept
    return _Opened(what, files, stream, False, False, kept)


def _images(spec: InputSpec, files: Sequence[Path]) -> _Opened:
    """Open captions tables and the folder of their images."""
    tables = [_open_table(path, _kind_of_table(path), spec.encoding) for path in files]
    columns = _columns(spec, tables, (IMAGE, spec.image_col))
    root = find_images_dir(spec.images_dir, files)
    stream = ImageFolder(columns, root, spec.follow_links).read
    texts = "" if spec.no_captions else " with captions"
    what = f"images in {root}{texts}{_kept_line(columns.wanted.kept)}"
    kept = columns.wanted.kept
    return _Opened(what, tuple(files), stream, True, True, kept)


def _columns(spec: InputSpec, tables: Sequence[Table], first: tuple[Role, str | None]) -> Columns:
    """Find the column of every role in every table; they must agree."""
    addresses_alone = all(isinstance(table, AddressLines) for table in tables)
    silent = spec.no_captions or (addresses_alone and spec.caption_col is None)
    roles = [first] if silent else [first, (CAPTION, spec.caption_col)]
    names = [_found(role, given, tables) for role, given in roles]
    several = names[1] if len(names) > 1 else None
    lists = any(table.has_lists(several) for table in tables) if several else False
    wanted = Wanted(tuple(names), several if lists else None, _kept(spec, tables))
    return Columns(tuple(tables), wanted)


def _found(role: Role, given: str | None, tables: Sequence[Table]) -> str:
    found = [find_column(role, given, t.columns, str(t.stamp.path)) for t in tables]
    return same_column(found, tables, role.what)


def _kept(spec: InputSpec, tables: Sequence[Table]) -> pa.Schema:
    """Return the columns that are carried to the export, and their types."""
    if not spec.keep_columns:
        return _NOTHING_KEPT
    for table in tables:
        check_kept(spec.keep_columns, table.columns, str(table.stamp.path))
    return same_types(spec.keep_columns, tables)


def _embedded(spec: InputSpec, part: Part) -> _Opened:
    """Open tables with the images inside."""
    tables = [_open_pictures(path) for path in part.files]
    images = [find_images(table, spec.image_col) for table in tables]
    for table, image in zip(tables, images, strict=True):
        if image is None or image != images[0]:
            raise InputError(
                f"{table.stamp.path}: has no column of images as {tables[0].stamp.path} has it; "
                "run them one after the other"
            )
    first = images[0]
    assert first is not None  # the loop above has seen it
    exported = part.kind == "export"
    url_col, caption_col = spec.url_col, spec.caption_col
    if exported:  # a column that it carries may have another known name
        _check_export(tables)
        url_col, caption_col = url_col or "url", caption_col or "text"
    caption = None if spec.no_captions else _found(CAPTION, caption_col, tables)
    urls = [maybe_column(URL, url_col, t.columns, str(t.stamp.path)) for t in tables]
    rows = Embedded(
        tables=tuple(tables),
        labels=tuple(labels(part.files)),
        image=first,
        url=same_column([url or "" for url in urls], tables, URL.what) or None,
        caption=caption,
        several=True,
        extra=extra_columns(_common(tables)) if exported else (),
        kept=_kept(spec, tables),
        images_dir=spec.images_dir,
        follow_links=spec.follow_links,
        prefer_url=spec.prefer == "url",
    )
    return _Opened(
        _embedded_line(rows, exported),
        part.files,
        _PictureRows(rows, exported).read,
        local=not rows.prefer_url,
        pictures=True,
        kept=rows.kept,
    )


def _common(tables: Sequence[Table]) -> tuple[str, ...]:
    """Return the columns that all tables have."""
    return tuple(name for name in tables[0].columns if all(name in t.columns for t in tables))


def _embedded_line(rows: Embedded, exported: bool) -> str:
    if exported:
        what = "images of an export with its texts of the web (synthetic ones are written anew)"
    else:
        texts = "" if rows.caption is None else f", texts {rows.caption!r}"
        what = f"{rows.tables[0].dialect} with images in {rows.image.name!r}{texts}"
    return f"{what}{', fetched by address' if rows.prefer_url else ''}{_kept_line(rows.kept)}"


def _check_export(tables: Sequence[PictureTable]) -> None:
    for table in tables:
        lacking = sorted(MARKS - set(table.columns))
        if lacking:
            raise InputError(
                f"{table.stamp.path}: no column {lacking[0]!r}, so capfilt did not export it; "
                f"for other tables with images give {KIND_OPTION} hf"
            )


@dataclass(frozen=True, slots=True)
class _PictureRows:
    """Tables with the images inside as rows of RAW."""

    rows: Embedded
    exported: bool

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW, a row a text."""
        source = ExportRows(self.rows) if self.exported else self.rows
        wanted = Wanted(("url", "caption"), None, self.rows.kept)
        for whole in source.read(block_rows):
            # A kept column may have any name, so the others are found by their places.
            url, caption, ref, *others = spread(whole).columns
            rest = others[len(self.rows.extra) :]
            plain = pa.RecordBatch.from_arrays([url, caption, *rest], names=wanted.names)
            yield raw_of(plain, wanted, ref)


def _img2dataset(spec: InputSpec, files: Sequence[Path]) -> _Opened:
    shards = Shards.open(files, spec)
    kept = shards.kept
    return _Opened(
        f"img2dataset shards{_kept_line(kept)}",
        tuple(shards.files),
        shards.read,
        local=not spec.download_missing,
        pictures=True,
        kept=kept,
    )


def _refuse_kept(spec: InputSpec, what: str) -> None:
    if spec.keep_columns:
        raise InputError(f"{KEEP_OPTION}: {what} have no columns to carry; leave it out")


def _kept_line(kept: pa.Schema) -> str:
    if not len(kept):
        return ""
    return ", carrying " + ", ".join(f"{field.name!r} ({field.type})" for field in kept)


def _check_same_kept(parts: Sequence[_Opened]) -> None:
    for part in parts[1:]:
        if part.kept != parts[0].kept:
            raise InputError(
                f"{KEEP_OPTION}: {part.files[0]} has {_types(part.kept)}, but {parts[0].files[0]} "
                f"has {_types(parts[0].kept)}; write them alike, or run them one after the other"
            )


def _types(kept: pa.Schema) -> str:
    return ", ".join(f"{field.name!r} as {field.type}" for field in kept) or "no such columns"


def _check_rows(part: _Opened) -> int:
    """Read a part once; returns its rows.

    Raises:
        InputError: it has none, or is one of local images and has none of these.
    """
    rows, usable, reason = 0, 0, ""
    for batch in part.stream(BLOCK_ROWS):
        rows += batch.num_rows
        reasons = batch.column("input_error")
        usable += reasons.null_count
        if not reason and reasons.null_count < batch.num_rows:
            reason = reasons.drop_null()[0].as_py()
    if rows and part.pictures and not usable:
        raise InputError(
            f"{part.files[0]}: none of the {counted(rows, 'row')} is usable; the first because: "
            f"{reason}"
        )
    if rows == 0:
        raise InputError(f"{part.files[0]}: no rows; give an input with at least one")
    return rows


def _joined(parts: Sequence[_Opened], rows: Sequence[int]) -> Input:
    """Return the parts as one input, one after the other."""
    streams = [part.stream for part in parts]

    def stream(block_rows: int) -> Iterator[pa.RecordBatch]:
        return itertools.chain.from_iterable(each(block_rows) for each in streams)

    lines = [_line(part, count) for part, count in zip(parts, rows, strict=True)]
    kept = parts[0].kept
    return Input(
        local=all(part.local for part in parts),
        row_count_hint=sum(rows),
        description="; ".join(lines),
        stream=stream,
        kept=kept if len(kept) else None,
    )


def _line(part: _Opened, rows: int) -> str:
    more = f" and {len(part.files) - 1} more" if len(part.files) > 1 else ""
    return printable(f"{part.files[0]}{more}: {counted(rows, 'row')}, {part.what}")


def _open_table(path: Path, kind: TableKind, encoding: str) -> Table:
    if kind == "parquet":
        return ParquetTable.open(path)
    if kind == "arrow":
        return ArrowTable.open(path)
    if kind == "jsonl":
        return JsonLinesTable.open(path, encoding)
    if kind == "txt":
        return AddressLines.open(path, encoding)
    return DelimitedTable.open(path, encoding, _DELIMITERS[kind])


def _open_pictures(path: Path) -> PictureTable:
    return ArrowTable.open(path) if table_kind(path) == "arrow" else ParquetTable.open(path)


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
