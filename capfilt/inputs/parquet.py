"""Parquet tables of addresses and captions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.tables import ERROR


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """A Parquet file."""

    stamp: Stamp
    schema: pa.Schema

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the top-level columns."""
        return tuple(self.schema.names)

    @property
    def dialect(self) -> str:
        """Say how it is written."""
        return "Parquet"

    @classmethod
    def open(cls, path: Path) -> "ParquetTable":
        """Read the footer of `path`.

        Raises:
            InputError: it is torn, or not Parquet.
        """
        stamp = Stamp.of(path)
        with open_parquet(path) as file:
            return cls(stamp, file.schema_arrow)

    def read(self, names: Sequence[str], block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns, and `input_error`; see `Table.read`."""
        for name in names:
            check_text_type(self.stamp.path, self.schema.field(name))
        first = 0
        with open_parquet(self.stamp.path) as file:
            for batch in file.iter_batches(block_rows, columns=list(names)):
                yield self._texts(batch, names, first)
                first += batch.num_rows

    def _texts(self, batch: pa.RecordBatch, names: Sequence[str], first: int) -> pa.RecordBatch:
        arrays = [batch.column(name).cast(pa.string()) for name in names]
        for name, array in zip(names, arrays, strict=True):
            check_utf8(self.stamp.path, name, array, first)
        arrays.append(pa.nulls(batch.num_rows, pa.string()))
        return pa.RecordBatch.from_arrays(arrays, names=[*names, ERROR])


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; whatever Arrow says of it, now or later, becomes an InputError."""
    try:
        # Arrow opens no path that is not UTF-8.
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet ({error}); "
            "it is torn or of another format: fetch or write it again"
        ) from error


def check_text_type(path: Path, field: pa.Field) -> None:
    """Raise InputError where a column is not of strings; one of nulls alone passes."""
    kind = field.type.value_type if pat.is_dictionary(field.type) else field.type
    if pat.is_string(kind) or pat.is_large_string(kind) or pat.is_null(kind):
        return
    if str(kind) == "string_view":  # its predicate is younger than the oldest Arrow we take
        return
    raise InputError(
        f"{path}: column {field.name!r} is of type {field.type}, not of strings; "
        "name another column, or write this one as strings"
    )


def check_utf8(path: Path, name: str, array: pa.Array, first: int) -> None:
    """Raise InputError where a text is not UTF-8, which Arrow's reader does not look at.

    `first` is the row of the file with which the array begins, counted from 0.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        row = next(i for i, text in enumerate(array.cast(pa.binary())) if not _is_utf8(text))
        raise InputError(
            f"{path} row {first + row + 1}, column {name!r}: not UTF-8; write the file again"
        ) from error


def _is_utf8(text: pa.BinaryScalar) -> bool:
    try:
        (text.as_py() or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
