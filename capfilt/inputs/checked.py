"""Checking an input as a whole, before any work: its kinds, its columns, and every row of it."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.fingerprint import fingerprint
from capfilt.inputs.detection import TABLES, Part, find_parts
from capfilt.inputs.formats import FORMATS
from capfilt.inputs.own import open_own
from capfilt.inputs.paths import Stamp, open_table, printable
from capfilt.inputs.sources import Source, open_addresses
from capfilt.inputs.spec import (
    BLOCK_ROWS,
    CAPTION_OPTION,
    ENCODING_OPTION,
    KEEP_OPTION,
    NO_CAPTIONS_OPTION,
    Input,
    InputSpec,
    Piece,
    Remembered,
)
from capfilt.inputs.tables import AddressList
from capfilt.usercode import is_code
from capfilt.wording import counted


class Memory(Protocol):
    """What a run folder knows of inputs and their pieces, by their identities."""

    def __call__(self, identity: str, /) -> Remembered | None:
        """Return what is known of an input, or None."""

    def rows_of(self, piece: Piece, /) -> int | None:
        """Return how many rows a piece has that was read before, or None."""


class _Nothing:
    """Knows nothing."""

    def __call__(self, _: str) -> None:
        """Return None."""

    def rows_of(self, _: Piece) -> None:
        """Return None."""


def open_input(spec: InputSpec, memory: Memory = _Nothing()) -> Input:  # noqa: B008  # has no state
    """Check all of an input by reading it once, in constant memory, and return it.

    Of what `memory` knows, only headers are read.

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
    identity = _identity(spec, opened)
    known = None if identity is None else memory(identity)
    if known is not None:
        found = _input(opened, known.rows, known.described, identity, known)
    else:
        rows = [_rows_of(spec, source, memory) for source in opened]
        lines = [_line(part, count) for part, count in zip(opened, rows, strict=True)]
        found = _input(opened, sum(rows), "; ".join(lines), identity)
    return replace(found, pieces=_pieces(spec, opened))


def _pieces(spec: InputSpec, opened: Sequence[Source]) -> tuple[Piece, ...]:
    """Return the parts of all tables, where the input is of tables alone."""
    if not all(source.parts for source in opened):
        return ()
    parts = [part for source in opened for part in source.parts]
    return tuple(Piece(part.read, _part_identity(spec, part)) for part in parts)


def _part_identity(spec: InputSpec, part: AddressList) -> str:
    (table,) = part.rows.tables
    stamp, groups = table.stamp, getattr(table, "groups", None)
    place = printable(os.path.abspath(stamp.path))
    how = (replace(spec, paths=()), part.rows.wanted.texts, part.rows.wanted.several)
    return fingerprint((place, stamp.size, stamp.mtime_ns, groups, how))


def _identity(spec: InputSpec, parts: Sequence[Source]) -> str | None:
    """Return a digest of files and options, where the rows depend on nothing else."""
    if not all(part.files_alone for part in parts):
        return None
    stamps = [Stamp.of(path) for part in parts for path in part.files]
    files = [(os.path.abspath(stamp.path), stamp.size, stamp.mtime_ns) for stamp in stamps]
    return fingerprint((spec, [(printable(path), *rest) for path, *rest in files]))


def _open_part(spec: InputSpec, part: Part) -> Source:
    if is_code(part.kind):
        return open_own(spec, part.kind, part.files)
    if part.kind == TABLES:
        return open_addresses(spec, [open_table(path, spec.encoding) for path in part.files])
    found = FORMATS[part.kind]
    if found.files:
        return found.open_files(spec, part.files)
    return open_addresses(spec, [found.open_table(p, spec.encoding) for p in part.files])


def _check_same_kept(parts: Sequence[Source]) -> None:
    for part in parts[1:]:
        if part.kept != parts[0].kept:
            raise InputError(
                f"{KEEP_OPTION}: {part.files[0]} has {_types(part.kept)}, but {parts[0].files[0]} "
                f"has {_types(parts[0].kept)}; write them alike, or run them one after the other"
            )


def _types(kept: pa.Schema) -> str:
    return ", ".join(f"{field.name!r} as {field.type}" for field in kept) or "no such columns"


def _rows_of(spec: InputSpec, source: Source, memory: Memory) -> int:
    """Check what is not known of a part of an input; returns its rows."""
    known = [memory.rows_of(piece) for piece in _pieces(spec, [source])]
    if not any(known):
        return _check_rows(source)
    rows = 0
    for part, count in zip(source.parts, known, strict=True):
        rows += _counted(part.read(BLOCK_ROWS)) if count is None else count
    return rows


def _counted(blocks: Iterator[pa.RecordBatch]) -> int:
    return sum(block.num_rows for block in blocks)


def _check_rows(part: Source) -> int:
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


def _input(
    parts: Sequence[Source],
    rows: int,
    described: str,
    identity: str | None,
    known: Remembered | None = None,
) -> Input:
    """Return the parts as one input, one after the other."""
    streams = [part.stream for part in parts]

    def stream(block_rows: int) -> Iterator[pa.RecordBatch]:
        return itertools.chain.from_iterable(each(block_rows) for each in streams)

    kept = parts[0].kept
    return Input(
        local=all(part.local for part in parts),
        row_count_hint=rows,
        description=described,
        stream=stream,
        kept=kept if len(kept) else None,
        identity=identity,
        remembered=known,
    )


def _line(part: Source, rows: int) -> str:
    more = f" and {len(part.files) - 1} more" if len(part.files) > 1 else ""
    return printable(f"{part.files[0]}{more}: {counted(rows, 'row')}, {part.what}")


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except LookupError as error:
        raise InputError(
            f"{ENCODING_OPTION} {encoding}: no such text encoding; try utf-8, utf-16 or cp1252"
        ) from error
