"""A part of an input that was opened, and what the formats of tables share."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.addresses import AddressLines
from capfilt.inputs.columns import CAPTION, URL, Role, check_kept, find_column, maybe_column
from capfilt.inputs.spec import IMAGE_OPTION, KEEP_OPTION, URL_OPTION, InputSpec
from capfilt.inputs.tables import (
    AddressList,
    Columns,
    Table,
    Wanted,
    parts_of,
    same_column,
    same_types,
    spelling,
)
from capfilt.inputs.typed import is_bytes

_Stream = Callable[[int], Iterator[pa.RecordBatch]]
NOTHING_KEPT: Final = pa.schema([])


@dataclass(frozen=True, slots=True)
class Source:
    """One part of an input: what it is, for the log, and its rows.

    `stream` yields batches of RAW of at most so many rows; `kept` are the columns beside them.
    """

    what: str
    files: tuple[Path, ...]
    stream: _Stream
    local: bool  # every image is on this machine
    pictures: bool  # it is an input of local images: one row at least must have one
    kept: pa.Schema = NOTHING_KEPT
    files_alone: bool = False  # the rows depend on nothing but the files
    parts: tuple[AddressList, ...] = ()  # of tables that are read part by part: all rows, in order


def open_addresses(spec: InputSpec, tables: Sequence[Table]) -> Source:
    """Open tables of addresses."""
    _suggest_images(spec, tables[0])
    columns = table_columns(spec, tables, (URL, spec.url_col))
    names = " and ".join(repr(name) for name in columns.wanted.texts)
    dialects = " and ".join(dict.fromkeys(table.dialect for table in tables))
    some = "columns" if len(columns.wanted.texts) > 1 else "column"
    what = f"{dialects}, {some} {names}{kept_line(columns.wanted.kept)}"
    files = tuple(table.stamp.path for table in tables)
    stream = AddressList(columns).read
    kept = columns.wanted.kept
    parts = tuple(
        AddressList(Columns((part,), columns.wanted))
        for table in tables
        for part in parts_of(table)
    )
    return Source(what, files, stream, False, False, kept, files_alone=True, parts=parts)


def _suggest_images(spec: InputSpec, table: Table) -> None:
    """Raise InputError where a table without addresses has bytes, which may be images."""
    if maybe_column(URL, spec.url_col, table.columns, str(table.stamp.path)) is not None:
        return
    found = [f.name for f in getattr(table, "schema", ()) if is_bytes(f.type)]
    if found:
        raise InputError(
            f"{table.stamp.path}: no address column, and {found[0]!r} holds bytes; if these are "
            f"images, give {IMAGE_OPTION} {shlex.quote(found[0])}, else the column of addresses by "
            f"{URL_OPTION}"
        )


def table_columns(
    spec: InputSpec, tables: Sequence[Table], first: tuple[Role, str | None]
) -> Columns:
    """Find the column of every role in every table; they must agree."""
    addresses_alone = all(isinstance(table, AddressLines) for table in tables)
    silent = spec.no_captions or (addresses_alone and spec.caption_col is None)
    roles = [first] if silent else [first, (CAPTION, spec.caption_col)]
    names = [found_column(role, given, tables) for role, given in roles]
    several = names[1] if len(names) > 1 else None
    lists = any(t.has_lists(spelling(t, several)) for t in tables) if several else False
    wanted = Wanted(tuple(names), several if lists else None, kept_columns(spec, tables))
    return Columns(tuple(tables), wanted)


def found_column(role: Role, given: str | None, tables: Sequence[Table]) -> str:
    """Return the name of the column of a role, which all tables share, in whatever case."""
    found = [find_column(role, given, t.columns, str(t.stamp.path)) for t in tables]
    return same_column(found, tables, role.what, any_case=True)


def kept_columns(spec: InputSpec, tables: Sequence[Table]) -> pa.Schema:
    """Return the columns that are carried to the export, and their types."""
    if not spec.keep_columns:
        return NOTHING_KEPT
    for table in tables:
        check_kept(spec.keep_columns, table.columns, str(table.stamp.path))
    return same_types(spec.keep_columns, tables)


def refuse_kept(spec: InputSpec, what: str) -> None:
    """Raise InputError where columns are to be carried, of what has none."""
    if spec.keep_columns:
        raise InputError(f"{KEEP_OPTION}: {what} have no columns to carry; leave it out")


def kept_line(kept: pa.Schema) -> str:
    """Return which columns are carried, for the log; "" for none."""
    if not len(kept):
        return ""
    return ", carrying " + ", ".join(f"{field.name!r} ({field.type})" for field in kept)
