"""JSON lines: one object a line, by the standard library's parser."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.jsontypes import JsonTypes
from capfilt.inputs.paths import Stamp
from capfilt.inputs.tables import Wanted, text_batches
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
    lists: frozenset[str] = frozenset()  # of these, those with an array in the first 100 lines

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
            rows = _parse(path, 1, list(itertools.islice(file, _PEEK_LINES)), Wanted(()))
        names = dict.fromkeys(name for row in rows for name in row)  # a set that keeps the order
        if not names:
            raise InputError(f"{path} line 1: no object with keys, so nothing names the columns")
        lists = {name for row in rows for name, value in row.items() if type(value) is list}
        return cls(stamp, tuple(names), encoding, frozenset(lists))

    def has_lists(self, name: str) -> bool:
        """Say whether a column may hold lists of texts."""
        return name in self.lists

    def types_of(self, names: Sequence[str]) -> pa.Schema:
        """Read the file to find the types in which these columns are carried."""
        types = JsonTypes(tuple(names))
        path, first = self.stamp.path, 1
        with open_text(path, self.encoding, newline="\n") as file:
            while lines := list(itertools.islice(file, _PEEK_LINES)):
                _parse(path, first, lines, Wanted(()))  # tells of broken lines
                for number, line in enumerate(lines, start=first):
                    if not line.isspace():
                        types.add(json.loads(line), f"{path} line {number}")
                first += len(lines)
        return types.schema()

    def read(self, wanted: Wanted, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what is wanted; see `Table.read`."""
        path, first = self.stamp.path, 1
        with open_text(path, self.encoding, newline="\n") as file:
            while lines := list(itertools.islice(file, block_rows)):
                rows = _parse(path, first, lines, wanted)
                if rows:
                    names = [*wanted.texts, *wanted.kept.names]
                    yield from _batches([[row.get(name) for row in rows] for name in names], wanted)
                first += len(lines)


def _parse(
    path: Path, first: int, lines: list[str], wanted: Wanted
) -> list[dict[str, Any]]:  # Any: a JSON value; those of `wanted` are texts, or null
    """Return the objects in `lines`, of which the first is line `first`; blank ones are skipped."""
    try:
        rows = [json.loads(line) for line in lines if not line.isspace()]
    except (ValueError, RecursionError) as error:
        raise InputError(_fault(path, first, lines, wanted)) from error
    names, several = wanted.texts, wanted.several
    is_text = all(
        type(row) is dict
        and all(type(row.get(name)) in _TEXT or _is_several(row, name, several) for name in names)
        for row in rows
    )
    if not is_text:
        raise InputError(_fault(path, first, lines, wanted))
    if several is not None:
        for row in rows:  # the column is one of lists
            text = row.get(several)
            row[several] = [text] if isinstance(text, str) else text
    return rows


def _is_several(row: dict[str, Any], name: str, several: str | None) -> bool:
    """Say whether a value is a list of texts where one may stand."""
    value = row.get(name)
    return name == several and type(value) is list and all(type(v) in _TEXT for v in value)


def _fault(path: Path, first: int, lines: list[str], wanted: Wanted) -> str:
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
        for name in wanted.texts:
            if type(row.get(name)) not in _TEXT and not _is_several(row, name, wanted.several):
                return f"{where}: {name!r} is {_kind(row[name])}, not a text; write it as a string"
    return f"{path}: changed while it was being read; run again when nothing writes to it"


def _advice(line: str) -> str:
    if line.lstrip().startswith("["):
        return "a JSON array becomes JSON lines by: jq -c '.[]'"
    return "each line must be one whole JSON object"


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "an object")


def _batches(columns: list[list[Any]], wanted: Wanted) -> Iterator[pa.RecordBatch]:
    try:
        yield from text_batches(columns, wanted)
    except UnicodeEncodeError:  # half of a surrogate pair: valid JSON that is no text
        errors: list[str | None] = [None] * len(columns[0])
        for name, column in zip([*wanted.texts, *wanted.kept.names], columns, strict=True):
            for i, value in enumerate(column):
                whole = _whole(value)
                if whole != value:
                    column[i] = whole
                    errors[i] = f"{name!r} holds half of a surrogate pair, which is no text"
        yield from text_batches(columns, wanted, errors)


def _whole(value: Any) -> Any:  # a JSON value
    """Return a value in whose texts halves of surrogate pairs are replaced."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


open_table = JsonLinesTable.open
