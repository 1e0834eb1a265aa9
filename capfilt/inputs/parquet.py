"""Parquet tables of addresses and captions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.tables import Wanted
from capfilt.inputs.typed import TypedTable, check_types, typed_batch


@dataclass(frozen=True, slots=True)
class ParquetTable(TypedTable):
    """A Parquet file."""

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
        first = 0
        names = list(dict.fromkeys([*wanted.texts, *wanted.kept.names]))
        with open_parquet(path) as file:
            for batch in file.iter_batches(block_rows, columns=names):
                yield typed_batch(path, batch, wanted, first)
                first += batch.num_rows


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
