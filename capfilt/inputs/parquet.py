"""Parquet tables of addresses and captions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.tables import Wanted
from capfilt.inputs.typed import TypedTable, check_types, typed_batch

_PART_ROWS: Final = 1 << 18  # at the least, but for the last part of a file


@dataclass(frozen=True, slots=True)
class ParquetTable(TypedTable):
    """A Parquet file, or some row groups of one, of which the first begins with row `first`."""

    groups: tuple[int, ...] | None = None  # None: all
    first: int = 0

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

    def read(self, wanted: Wanted, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what is wanted; see `Table.read`."""
        path = self.stamp.path
        check_types(path, self.schema, wanted)
        first = self.first
        names = list(dict.fromkeys([*wanted.texts, *wanted.kept.names]))
        with open_parquet(path) as file:
            for batch in file.iter_batches(block_rows, self.groups, columns=names):
                yield typed_batch(path, batch, wanted, first)
                first += batch.num_rows

    def split(self) -> "list[ParquetTable]":
        """Return runs of row groups, each of some 260,000 rows."""
        with open_parquet(self.stamp.path) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        parts: list[ParquetTable] = []
        groups: list[int] = []
        first = held = 0
        for group, count in enumerate(rows):
            groups.append(group)
            held += count
            if held >= _PART_ROWS or group == len(rows) - 1:
                parts.append(replace(self, groups=tuple(groups), first=first))
                first, held, groups = first + held, 0, []
        return parts or [self]


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; whatever Arrow says of it, now or later, becomes an InputError."""
    try:
        # Arrow opens no path that is not UTF-8.
        with (
            path.open("rb") as stream,
            pq.ParquetFile(stream, page_checksum_verification=True) as file,
        ):
            yield file
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet ({error}); "
            "it is torn or of another format: fetch or write it again"
        ) from error


def open_table(path: Path, encoding: str) -> ParquetTable:
    """Open a file; its texts are UTF-8 whatever `encoding` says."""
    return ParquetTable.open(path)
