"""What the table formats have in common: a header that is cheap to see, and rows as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.spec import RAW

ERROR: Final = "input_error"


class Table(Protocol):
    """One file of rows. Opening one looks at its header only."""

    @property
    def stamp(self) -> Stamp:
        """Which file it is."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns, in the file's order; a name may stand twice."""

    @property
    def dialect(self) -> str:
        """How it is written, for the log."""

    def read(self, names: Sequence[str], block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns as strings, and `input_error`, in the file's order.

        Reading to the end is also the check of the whole file, so both can never disagree.

        Raises:
            InputError: with file and line, for whatever is not a row of text.
        """


def text_batches(
    columns: Sequence[Sequence[str | None]],
    names: Sequence[str],
    errors: Sequence[str | None] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Turn lists of texts into record batches: one, unless they are beyond 2 GiB together."""
    arrays = [pa.array(column, pa.string()) for column in columns]
    rows = len(columns[0])
    arrays.append(pa.nulls(rows, pa.string()) if errors is None else pa.array(errors, pa.string()))
    yield from pa.Table.from_arrays(arrays, names=[*names, ERROR]).to_batches()


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of a set of tables that agree: what is read from each, in this order."""

    tables: tuple[Table, ...]
    names: tuple[str, ...]

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns and `input_error` of all tables, in order."""
        for table in self.tables:
            table.stamp.check()
            yield from table.read(self.names, block_rows)
            table.stamp.check()


@dataclass(frozen=True, slots=True)
class AddressList:
    """Tables of images to be downloaded."""

    rows: Columns  # reads address, caption

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW."""
        for batch in self.rows.read(block_rows):
            urls, captions, errors = batch.columns
            refs = pa.nulls(batch.num_rows, pa.string())
            yield pa.RecordBatch.from_arrays([urls, captions, refs, errors], schema=RAW)


def same_column(found: Sequence[str], tables: Sequence[Table], what: str) -> str:
    """Return the one name that was found in all tables.

    Raises:
        InputError: the tables disagree.
    """
    for name, table in zip(found, tables, strict=True):
        if name != found[0]:
            raise InputError(
                f"the {what} column is {found[0]!r} in {tables[0].stamp.path} but {name!r} in "
                f"{table.stamp.path}; rename one of them, or run them one after the other"
            )
    return found[0]
