"""Columns of Arrow's types (Parquet, Arrow) as texts, and as what is carried to the export."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.types as pat

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.spec import KEEP_OPTION
from capfilt.inputs.tables import Wanted


@dataclass(frozen=True, slots=True)
class TypedTable:
    """A file whose columns have Arrow's types."""

    stamp: Stamp
    schema: pa.Schema

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the top-level columns."""
        return tuple(self.schema.names)

    def has_lists(self, name: str) -> bool:
        """Say whether a column holds lists of texts."""
        return is_text_list(self.schema.field(name).type)

    def types_of(self, names: Sequence[str]) -> pa.Schema:
        """Return the types in which these columns are carried."""
        return carried_types(self.stamp.path, self.schema, names)


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column is of texts: strings, or bytes as Spark and Impala write strings."""
    kind = kind.value_type if pat.is_dictionary(kind) else kind
    return bool(_is_string(kind) or pat.is_null(kind) or is_bytes(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Say whether a column is of bytes; its texts are decoded one by one."""
    return pat.is_binary(kind) or pat.is_large_binary(kind) or str(kind) == "binary_view"


def is_text_list(kind: pa.DataType) -> bool:
    """Say whether a column is of lists of texts."""
    return bool(_is_list(kind) and is_text(kind.value_type))


def _is_string(kind: pa.DataType) -> bool:
    # The predicate of string_view is younger than the oldest Arrow we take.
    return pat.is_string(kind) or pat.is_large_string(kind) or str(kind) == "string_view"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind))


def carried_types(path: Path, schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return the types in which these columns are carried; see `Table.types_of`."""
    return pa.schema([(name, _carried(path, schema.field(name))) for name in names])


def _carried(path: Path, field: pa.Field) -> pa.DataType:
    kind = _plain(field.type)
    if kind is None:
        raise InputError(
            f"{path}: column {field.name!r} is of type {field.type}, which is not carried to the "
            f"export; {KEEP_OPTION} takes texts, numbers, true or false, and lists of them"
        )
    return kind


def _plain(kind: pa.DataType) -> pa.DataType | None:
    if is_text(kind):
        return pa.string()
    if _is_list(kind):
        inner = None if _is_list(kind.value_type) else _plain(kind.value_type)
        return None if inner is None else pa.list_(inner)
    if pat.is_float16(kind):
        return pa.float32()
    return kind if pat.is_boolean(kind) or pat.is_integer(kind) or pat.is_floating(kind) else None


def check_types(path: Path, schema: pa.Schema, wanted: Wanted) -> None:
    """Raise InputError where a column that is read as text is of another type."""
    for name in wanted.texts:
        field = schema.field(name)
        if is_text(field.type) or (name == wanted.several and is_text_list(field.type)):
            continue
        raise InputError(
            f"{path}: column {field.name!r} is of type {field.type}, not of strings; "
            "name another column, or write this one as strings"
        )


def typed_batch(path: Path, batch: pa.RecordBatch, wanted: Wanted, first: int) -> pa.RecordBatch:
    """Return what is wanted of a batch, of which row 0 is row `first` of the file (from 0).

    A text of a binary column that is not UTF-8 costs its row.

    Raises:
        InputError: a string column holds a text that is not UTF-8.
    """
    errors: list[str | None] | None = None
    arrays: list[pa.Array] = []
    kinds = [*(pa.string() for _ in wanted.texts), *wanted.kept.types]
    for name, kind in zip([*wanted.texts, *wanted.kept.names], kinds, strict=True):
        array, faults = _converted(path, name, batch.column(name), kind, first)
        arrays.append(array)
        if faults:
            errors = errors or [None] * batch.num_rows
            for row in faults:
                errors[row] = f"{name!r} is not UTF-8"
    count = len(wanted.texts)
    found = pa.array(errors or [None] * batch.num_rows, pa.string())
    arrays.insert(count, found)
    return pa.RecordBatch.from_arrays(arrays, names=wanted.names)


def _converted(
    path: Path, name: str, array: pa.Array, kind: pa.DataType, first: int
) -> tuple[pa.Array, list[int]]:
    """Return a column as `kind` (a text column of lists as lists), and the rows at fault."""
    given = array.type.value_type if pat.is_dictionary(array.type) else array.type
    if is_text_list(given):
        kind = pa.list_(pa.string())
    if _has_bytes(given):
        return _decoded(array, kind)
    array = array.cast(kind)
    check_utf8(path, name, array, first)
    return array, []


def _has_bytes(kind: pa.DataType) -> bool:
    return is_bytes(kind) or (_is_list(kind) and is_bytes(kind.value_type))


def _decoded(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    try:
        plain = array.cast(kind)
        plain.validate(full=True)
    except pa.ArrowInvalid:
        values, faults = array.to_pylist(), []
        for row, value in enumerate(values):
            try:
                values[row] = _text(value, "strict")
            except UnicodeDecodeError:
                values[row] = _text(value, "backslashreplace")
                faults.append(row)
        return pa.array(values, kind), faults
    return plain, []


def _text(value: bytes | list[bytes | None] | None, errors: str) -> object:
    if isinstance(value, list):
        return [None if item is None else item.decode("utf-8", errors) for item in value]
    return None if value is None else value.decode("utf-8", errors)


def check_utf8(path: Path, name: str, array: pa.Array, first: int) -> None:
    """Raise InputError where a string is not UTF-8, which Arrow's reader does not look at.

    `first` is the row of the file with which the array begins, counted from 0.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        row = next((i for i in range(len(array)) if not _is_valid(array.slice(i, 1))), 0)
        raise InputError(
            f"{path} row {first + row + 1}, column {name!r}: not UTF-8; write the file again"
        ) from error


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
