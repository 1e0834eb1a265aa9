"""Files of a format of one's own: a class that reads them, in a file of its own."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from capfilt.errors import CapfiltError, InputError
from capfilt.inputs.columns import URL
from capfilt.inputs.images import open_captions
from capfilt.inputs.paths import Stamp
from capfilt.inputs.sources import Source, open_addresses
from capfilt.inputs.spec import InputSpec
from capfilt.inputs.tables import Wanted
from capfilt.inputs.typed import TypedTable, check_types, typed_batch
from capfilt.usercode import named_recipe


@dataclass(frozen=True)
class InputReader:
    """Reads a file of a format of one's own; a subclass sets `suffixes` and overrides `read`.

    `suffixes` are those of the files that count in a folder; a file that is named itself counts
    anyhow. The options of the input hold as for every table: columns are found by their names or
    by `--url-col`, `--caption-col` and `--image-col`, and others are carried by `--keep-columns`.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    def read(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a file, all batches with the same columns, in the same order each time.

        With a column of addresses the images are downloaded, with one of image names they are
        looked up in `--images-dir`. What is computed is known by what the rows say, so a change of
        the code redoes the rows that come out otherwise.
        """
        raise NotImplementedError

    @property
    def told(self) -> str:
        """The reader's name, for messages."""
        return type(self).__name__

    def takes(self, path: Path) -> bool:
        """Say whether a file of a folder is one of the format."""
        return path.name.endswith(self.suffixes)


@dataclass(frozen=True, slots=True)
class OwnTable(TypedTable):
    """A file that a reader of one's own reads."""

    reader: InputReader

    @property
    def dialect(self) -> str:
        """Say how it is written."""
        return f"rows by {self.reader.told}"

    @classmethod
    def open(cls, path: Path, reader: InputReader) -> "OwnTable":
        """Read the columns of `path` off its first batch.

        Raises:
            InputError: there is none, or the reader fails.
        """
        stamp = Stamp.of(path)
        for batch in _batches(reader, path):
            return cls(stamp, batch.schema, reader)
        raise InputError(f"{path}: {reader.told} yields no rows of it")

    def read(self, wanted: Wanted, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield what is wanted; see `Table.read`."""
        path, first = self.stamp.path, 0
        check_types(path, self.schema, wanted)
        for whole in _batches(self.reader, path):
            if whole.schema != self.schema:
                raise InputError(
                    f"{path}: {self.reader.told} yields a batch of other columns than its first, "
                    f"after {first} rows"
                )
            for start in range(0, whole.num_rows, block_rows):
                batch = whole.slice(start, block_rows)
                yield typed_batch(path, batch, wanted, first + start)
            first += whole.num_rows


def open_own(spec: InputSpec, name: str, files: Sequence[Path]) -> Source:
    """Open files by the reader that `FILE.py:NAME` names."""
    reader = named_recipe(name, InputReader)
    tables = [OwnTable.open(path, reader) for path in files]
    of_images = spec.images_dir is not None or spec.image_col is not None
    known = {column.lower() for column in tables[0].columns}
    if of_images or (spec.url_col is None and not known & set(URL.known)):
        return open_captions(spec, tables)
    return dataclasses.replace(open_addresses(spec, tables), files_alone=False)  # code may change


def _batches(reader: InputReader, path: Path) -> Iterator[pa.RecordBatch]:
    """Yield what a reader yields, checked; whatever it raises becomes an InputError."""
    with _told(reader, path):
        for batch in reader.read(path):
            if not isinstance(batch, pa.RecordBatch):
                raise TypeError(f"it yields a {type(batch).__name__}, not a pyarrow.RecordBatch")
            batch.validate(full=True)
            yield batch


@contextmanager
def _told(reader: InputReader, path: Path) -> Iterator[None]:
    try:
        yield
    except CapfiltError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        raise InputError(f"{path}: {reader.told} fails: {type(error).__name__}: {error}") from error
