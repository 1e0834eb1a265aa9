"""CSV and TSV by the standard library's parser in its strict mode.

Arrow's parser is 2.6 times as fast but accepts a quote that never closes, which swallows rows
without a word; here such a row is told with the line where it begins.
"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.tables import Wanted, text_batches
from capfilt.inputs.text import check_first_line, open_text
from capfilt.wording import counted

if TYPE_CHECKING:
    from _csv import Reader

_FIELD_LIMIT: Final = 16 * 1024 * 1024  # characters; the parser's own limit is 131,072
_LINE_ENDS: Final = ("\n", "\r\n", "\r")
_DELIMITERS: Final = (",", "\t", ";", "|")
_NAMES: Final = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


@dataclass(frozen=True, slots=True)
class DelimitedTable:
    """A file of delimited text with a header line."""

    stamp: Stamp
    columns: tuple[str, ...]
    encoding: str
    delimiter: str
    quoted: bool  # False: quotes are text like any other, as TSV files often have them

    @property
    def dialect(self) -> str:
        """Say how it is written."""
        return f"{_NAMES[self.delimiter]}-separated, {'' if self.quoted else 'no '}quoting"

    @classmethod
    def open(cls, path: Path, encoding: str, delimiter: str) -> "DelimitedTable":
        """Read the header of `path`, and find out the quoting where it is tab-separated.

        Another delimiter is taken where the header has several columns by that one only.

        Raises:
            InputError: the first line is no header.
        """
        stamp = Stamp.of(path)
        check_first_line(path, encoding)
        delimiter = _delimiter(path, encoding, delimiter)
        quoted = delimiter != "\t" or _is_quoted(path, encoding)
        table = cls(stamp, (), encoding, delimiter, quoted)
        header = table._header()
        _check_header(path, header, delimiter)
        return cls(stamp, header, encoding, delimiter, quoted)

    def has_lists(self, name: str) -> bool:
        """Say no: a cell is one text."""
        return False

    def types_of(self, names: Sequence[str]) -> pa.Schema:
        """Return the types in which these columns are carried: texts."""
        return pa.schema([(name, pa.string()) for name in names])

    def read(self, wanted: Wanted, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what is wanted; see `Table.read`."""
        indices = [self.columns.index(name) for name in [*wanted.texts, *wanted.kept.names]]
        try:
            with open_text(self.stamp.path, self.encoding, newline="") as file:
                reader = self._reader(file)
                next(reader)
                while rows := list(itertools.islice(reader, block_rows)):
                    yield from self._batches(rows, indices, wanted)
        except (csv.Error, _Ragged) as error:
            raise InputError(self._fault()) from error

    def _batches(
        self, rows: list[list[str]], indices: list[int], wanted: Wanted
    ) -> Iterator[pa.RecordBatch]:
        widths = set(map(len, rows))
        if 0 in widths:  # blank lines
            rows = [row for row in rows if row]
            widths.remove(0)
        if widths - {len(self.columns)}:
            raise _Ragged
        if rows:
            yield from text_batches([[row[i] for row in rows] for i in indices], wanted)

    def _header(self) -> tuple[str, ...]:
        try:
            with open_text(self.stamp.path, self.encoding, newline="") as file:
                return tuple(cell.strip() for cell in next(self._reader(file), []))
        except csv.Error as error:
            raise InputError(f"{self.stamp.path} line 1: the header is broken ({error})") from error

    def _reader(self, lines: Iterator[str]) -> "Reader":
        return _reader(lines, self.delimiter, self.quoted)

    def _fault(self) -> str:
        """Read again, row by row, to say in which line the first bad row begins and why."""
        path, end = self.stamp.path, 0
        with open_text(path, self.encoding, newline="") as file:
            reader = self._reader(file)
            try:
                for row in reader:
                    if row and len(row) != len(self.columns):
                        return self._ragged(end + 1, row)
                    end = reader.line_num
            except csv.Error as error:
                return _broken(path, end + 1, reader.line_num, str(error))
        return f"{path}: changed while it was being read; run again when nothing writes to it"

    def _ragged(self, line: int, row: list[str]) -> str:
        advice = (
            "a text that holds the delimiter must stand in double quotes"
            if self.quoted
            else "a text must not hold a tab"
        )
        return (
            f"{self.stamp.path} line {line}: {counted(len(row), 'column')}, but the header has "
            f"{len(self.columns)} ({self.dialect}); {advice}. "
            f"It begins {_excerpt(self.delimiter.join(row))}"
        )


class _Ragged(Exception):
    """Some row of a block has not the header's number of columns."""


def _reader(lines: Iterator[str], delimiter: str, quoted: bool) -> "Reader":
    # The limit is the process's; raising it can only let other readers accept more.
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    if quoted:
        return csv.reader(lines, delimiter=delimiter, strict=True)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)


def _broken(path: Path, first: int, last: int, reason: str) -> str:
    if "unexpected end" in reason:
        return (
            f"{path} line {first}: a double quote opens in this row and never closes; "
            'close it, or write it twice ("") where it is text'
        )
    if "field limit" in reason:
        return (
            f"{path} line {first}: a text of more than {_FIELD_LIMIT} characters; "
            "is a double quote not closed?"
        )
    return (
        f"{path} line {first}: broken quoting, seen in line {last} ({reason}); "
        'inside a quoted text a double quote is written twice ("")'
    )


def _excerpt(text: str) -> str:
    return repr(text[:80] + ("…" if len(text) > 80 else ""))


def _delimiter(path: Path, encoding: str, preferred: str) -> str:
    with open_text(path, encoding, newline="") as file:
        header = file.readline()
    if preferred in header:
        return preferred
    return next((other for other in _DELIMITERS if other in header), preferred)


def _check_header(path: Path, header: tuple[str, ...], delimiter: str) -> None:
    if not any(header):
        raise InputError(f"{path} line 1: no header; the first line must name the columns")
    for column, cell in enumerate(header, start=1):
        if "://" in cell:
            raise InputError(
                f"{path} line 1, column {column}: {_excerpt(cell)} is an address, not a column's "
                "name, so there is no header; put a first line that names the columns, such as "
                f"{_suggested(header, delimiter)!r}"
            )


def _suggested(header: tuple[str, ...], delimiter: str) -> str:
    names = ["caption", "url"] if len(header) == 2 and "://" in header[1] else ["url", "caption"]
    return "<TAB>".join(names) if delimiter == "\t" else delimiter.join(names)


def _is_quoted(path: Path, encoding: str) -> bool:
    """Say whether double quotes in a tab-separated file are quoting rather than text.

    Both are common. It is quoting where the header is quoted, where only that reading makes all
    rows equally wide, or where both find the same rows and a doubled quote shows who wrote it.
    """
    with open_text(path, encoding, newline="") as file:
        header = file.readline()
        if header.startswith('"'):
            return True
        tabs = header.count("\t")
        literal_rows, has_quotes = _count_literal(file, tabs)
    if not has_quotes:
        return False
    with open_text(path, encoding, newline="") as file:
        next(file)
        quoted_rows, has_doubled_quotes = _count_quoted(file, tabs)
    if quoted_rows is None:
        return False
    return literal_rows is None or (literal_rows == quoted_rows and has_doubled_quotes)


def _count_literal(lines: Iterator[str], tabs: int) -> tuple[int | None, bool]:
    """Return the rows if quotes are text (None: not equally wide), and whether there are quotes."""
    rows, has_quotes = 0, False
    for line in lines:
        has_quotes = has_quotes or '"' in line
        if line in _LINE_ENDS:
            continue
        rows += 1
        if line.count("\t") != tabs:
            return None, True  # what the other reading makes of it must be seen
    return rows, has_quotes


def _count_quoted(lines: Iterator[str], tabs: int) -> tuple[int | None, bool]:
    """Return the rows if quotes are quoting (None: broken), and whether texts have quotes then."""
    rows, has_doubled_quotes = 0, False
    try:
        for row in filter(None, _reader(lines, "\t", quoted=True)):
            rows += 1
            has_doubled_quotes = has_doubled_quotes or any('"' in cell for cell in row)
            if len(row) != tabs + 1:
                return None, False
    except csv.Error:
        return None, False
    return rows, has_doubled_quotes


def open_csv(path: Path, encoding: str) -> DelimitedTable:
    """Open a table with commas."""
    return DelimitedTable.open(path, encoding, ",")


def open_tsv(path: Path, encoding: str) -> DelimitedTable:
    """Open a table with tabs."""
    return DelimitedTable.open(path, encoding, "\t")
