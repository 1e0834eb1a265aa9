"""JSON lines: one object a line, by the standard library's parser."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.tables import text_batches
from capfilt.inputs.text import check_first_line, open_text

# Keys may be missing from a line (then they are null), so a few are looked at for the names.
_PEEK_LINES: Final = 100
_TEXT: Final = {str, type(None)}
_KINDS: Final = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "an array",
}


@dataclass(frozen=True, slots=True)
class JsonLinesTable:
    """A file of JSON objects, one a line. A key that a line lacks is null there."""

    stamp: Stamp
    columns: tuple[str, ...]  # keys of the first 100 lines
    encoding: str

    @property
    def dialect(self) -> str:
        """Say how it is written."""
        return "JSON lines"

    @classmethod
    def open(cls, path: Path, encoding: str) -> "JsonLinesTable":
        """Read the first lines of `path`.

        Raises:
            InputError: one of them is not a JSON object, or they have no keys.
        """
        stamp = Stamp.of(path)
        check_first_line(path, encoding)
        with open_text(path, encoding, newline="\n") as file:
            rows = _parse(path, 1, list(itertools.islice(file, _PEEK_LINES)), ())
        names = dict.fromkeys(name for row in rows for name in row)  # a set that keeps the order
        if not names:
            raise InputError(f"{path} line 1: no object with keys, so nothing names the columns")
        return cls(stamp, tuple(names), encoding)

    def read(self, names: Sequence[str], block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns, and `input_error`; see `Table.read`."""
        path, first = self.stamp.path, 1
        with open_text(path, self.encoding, newline="\n") as file:
            while lines := list(itertools.islice(file, block_rows)):
                rows = _parse(path, first, lines, names)
                if rows:
                    yield from _batches([[row.get(name) for row in rows] for name in names], names)
                first += len(lines)


def _parse(
    path: Path, first: int, lines: list[str], names: Sequence[str]
) -> list[dict[str, Any]]:  # Any: a JSON value; those under `names` are texts or null
    """Return the objects in `lines`, of which the first is line `first`; blank ones are skipped."""
    try:
        rows = [json.loads(line) for line in lines if not line.isspace()]
    except (ValueError, RecursionError) as error:
        raise InputError(_fault(path, first, lines, names)) from error
    is_text = all(
        type(row) is dict and all(type(row.get(name)) in _TEXT for name in names) for row in rows
    )
    if not is_text:
        raise InputError(_fault(path, first, lines, names))
    return rows


def _fault(path: Path, first: int, lines: list[str], names: Sequence[str]) -> str:
    """Say what is wrong in the first line that is not an object of texts."""
    for number, line in enumerate(lines, start=first):
        if line.isspace():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            column = min(error.pos, len(line.rstrip())) + 1  # colno begins anew after the line end
            return f"{where}, column {column}: not JSON ({error.msg}); {_advice(line)}"
        except (ValueError, RecursionError) as error:  # a number or a nesting beyond all reason
            return f"{where}: not readable as JSON ({error}); correct or remove this line"
        if not isinstance(row, dict):
            return f"{where}: {_kind(row)}, but every line must be an object; {_advice(line)}"
        for name in names:
            if type(row.get(name)) not in _TEXT:
                return f"{where}: {name!r} is {_kind(row[name])}, not a text; write it as a string"
    return f"{path}: changed while it was being read; run again when nothing writes to it"


def _advice(line: str) -> str:
    if line.lstrip().startswith("["):
        return "a JSON array becomes JSON lines by: jq -c '.[]'"
    return "each line must be one whole JSON object"


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "an object")


def _batches(columns: list[list[str | None]], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from text_batches(columns, names)
    except UnicodeEncodeError:  # half of a surrogate pair: valid JSON that is no text
        errors: list[str | None] = [None] * len(columns[0])
        for name, column in zip(names, columns, strict=True):
            for i, text in enumerate(column):
                if text is not None and not _is_text(text):
                    column[i] = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                    errors[i] = f"{name!r} holds half of a surrogate pair, which is no text"
        yield from text_batches(columns, names, errors)


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
