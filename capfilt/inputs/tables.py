"""What the table formats have in common: a header that is cheap to see, and rows as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.spec import KEPT, RAW

ERROR: Final = "input_error"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read of a table: texts, of which one column may hold lists of texts, and others.

    A batch has these columns in this order: each of `texts` (strings; those of `several` may be
    lists of strings), `input_error`, and each of `kept` in its own type.
    """

    texts: tuple[str, ...]
    several: str | None = None
    kept: pa.Schema = pa.schema([])  # a schema is immutable

    @property
    def names(self) -> list[str]:
        """Names of the columns of a batch."""
        return [*self.texts, ERROR, *self.kept.names]

    def types(self) -> list[pa.DataType]:
        """Types of the columns of a batch whose texts are no lists."""
        return [*(pa.string() for _ in self.texts), pa.string(), *self.kept.types]


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

    def has_lists(self, name: str) -> bool:
        """Say whether a column may hold lists of texts."""

    def types_of(self, names: Sequence[str]) -> pa.Schema:
        """Return the types in which these columns are carried: text, numbers, bool, lists of them.

        Raises:
            InputError: a column is of another type, or of several.
        """

    def read(self, wanted: Wanted, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what is wanted, in the file's order.

        Reading to the end is also the check of the whole file, so both can never disagree.

        Raises:
            InputError: with file and line, for whatever is not a row of text.
        """


@runtime_checkable
class Splittable(Protocol):
    """A table of which parts can be read alone."""

    def split(self) -> "Sequence[Table]":
        """Return its parts, in order."""


def parts_of(table: Table) -> Sequence[Table]:
    """Return the parts of a table that can be read alone; of most it is the whole."""
    return table.split() if isinstance(table, Splittable) else [table]


def text_batches(
    columns: Sequence[Sequence[object]],
    wanted: Wanted,
    errors: Sequence[str | None] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Turn lists of values into record batches: one, unless they are beyond 2 GiB together.

    `columns` are those of `wanted` without `input_error`.
    """
    rows, count = len(columns[0]), len(wanted.texts)
    nothing = [None] * rows if errors is None else errors
    values = [*columns[:count], nothing, *columns[count:]]
    types = wanted.types()
    if wanted.several is not None:
        types = [
            pa.list_(pa.string()) if name == wanted.several else kind
            for name, kind in zip(wanted.names, types, strict=True)
        ]
    arrays = [pa.array(column, kind) for column, kind in zip(values, types, strict=True)]
    yield from pa.Table.from_arrays(arrays, names=wanted.names).to_batches()


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of a set of tables that agree: what is read from each, in this order."""

    tables: tuple[Table, ...]
    wanted: Wanted  # by the names of the first table

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns and `input_error` of all tables, in order, a row a text."""
        for table in self.tables:
            table.stamp.check()
            for batch in table.read(self._wanted(table), block_rows):
                yield spread(batch)
            table.stamp.check()

    def _wanted(self, table: Table) -> Wanted:
        texts = tuple(spelling(table, name) for name in self.wanted.texts)
        several = self.wanted.several and spelling(table, self.wanted.several)
        lists = several is not None and table.has_lists(several)
        return Wanted(texts, several if lists else None, self.wanted.kept)


def spelling(table: Table, name: str) -> str:
    """Return a column's name as a table spells it, in whatever case."""
    own = (other for other in table.columns if other.lower() == name.lower())
    return name if name in table.columns else next(own)


def spread(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a row for each text of the rows whose text column holds lists; none: one row.

    Of the columns before `input_error` at most one holds lists.
    """
    end = batch.schema.get_all_field_indices(ERROR)[0]
    lists = [i for i in range(end) if pa.types.is_list(batch.schema.field(i).type)]
    if not lists:
        return batch
    column = batch.column(lists[0])
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    counts = np.maximum(lengths, 1)
    rows = pa.array(np.repeat(np.arange(batch.num_rows), counts))
    there = np.repeat(lengths > 0, counts)
    places = np.where(there, np.cumsum(there) - 1, 0)
    texts = pc.list_flatten(column).take(pa.array(places, mask=~there))
    arrays = [texts if i in lists else c.take(rows) for i, c in enumerate(batch.columns)]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def raw_of(
    batch: pa.RecordBatch,
    wanted: Wanted,
    refs: pa.Array,
    errors: pa.Array | None = None,
) -> pa.RecordBatch:
    """Return the RAW rows of a batch of `wanted`, and the kept columns as a struct.

    The first text is the address or name, the second the caption where one is read. `errors`
    stand instead of the batch's own.
    """
    count = len(wanted.texts)
    nothing = pa.nulls(batch.num_rows, pa.string())
    url, caption = batch.column(0), batch.column(1) if count > 1 else nothing
    raw = pa.RecordBatch.from_arrays(
        [url, caption, refs, batch.column(count) if errors is None else errors], schema=RAW
    )
    if not len(wanted.kept):
        return raw
    struct = pa.StructArray.from_arrays(batch.columns[count + 1 :], fields=list(wanted.kept))
    return raw.append_column(KEPT, struct)


@dataclass(frozen=True, slots=True)
class AddressList:
    """Tables of images to be downloaded."""

    rows: Columns  # reads address, caption

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW."""
        for batch in self.rows.read(block_rows):
            refs = pa.nulls(batch.num_rows, pa.string())
            yield raw_of(batch, self.rows.wanted, refs)


def same_column(
    found: Sequence[str], tables: Sequence[Table], what: str, any_case: bool = False
) -> str:
    """Return the one name that was found in all tables, as the first table spells it.

    Raises:
        InputError: the tables disagree.
    """
    for name, table in zip(found, tables, strict=True):
        if name != found[0] and not (any_case and name.lower() == found[0].lower()):
            raise InputError(
                f"the {what} column is {found[0]!r} in {tables[0].stamp.path} but {name!r} in "
                f"{table.stamp.path}; rename one of them, or run them one after the other"
            )
    return found[0]


def same_types(names: Sequence[str], tables: Sequence[Table]) -> pa.Schema:
    """Return the types of the columns that are carried to the export.

    Raises:
        InputError: the tables disagree.
    """
    first, *others = [table.types_of(names) for table in tables]
    for table, types in zip(tables[1:], others, strict=True):
        for mine, theirs in zip(first, types, strict=True):
            if mine.type != theirs.type:
                raise InputError(
                    f"column {mine.name!r} is of type {mine.type} in {tables[0].stamp.path} but "
                    f"{theirs.type} in {table.stamp.path}; write them alike, or leave it out"
                )
    return first
