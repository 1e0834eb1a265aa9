"""A text file with an address a line: images without texts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.paths import Stamp
from capfilt.inputs.spec import KIND_OPTION
from capfilt.inputs.tables import Wanted, text_batches
from capfilt.inputs.text import check_first_line, open_text

URL_COLUMN: Final = "url"


@dataclass(frozen=True, slots=True)
class AddressLines:
    """A file of addresses, one a line; blank lines are skipped."""

    stamp: Stamp
    encoding: str
    columns: tuple[str, ...] = (URL_COLUMN,)

    @property
    def dialect(self) -> str:
        """Say how it is written."""
        return "an address a line"

    @classmethod
    def open(cls, path: Path, encoding: str) -> "AddressLines":
        """Look at the first line of `path`.

        Raises:
            InputError: it is no address.
        """
        stamp = Stamp.of(path)
        check_first_line(path, encoding)
        with open_text(path, encoding, newline="") as file:
            first = next((line.strip() for line in file if not line.isspace()), "")
        if "\t" in first:
            raise InputError(
                f"{path} line 1: holds a tab, so it is a table; put a first line that names the "
                f"columns, and give {KIND_OPTION} tsv"
            )
        if "://" not in first and not first.startswith("//"):
            raise InputError(
                f"{path}: begins with {first[:80]!r}, which is no address; a .txt file has an "
                f"address a line. For a table say which: {KIND_OPTION} csv, tsv or jsonl"
            )
        return cls(stamp, encoding)

    def has_lists(self, name: str) -> bool:
        """Say no: a line is one address."""
        return False

    def types_of(self, names: Sequence[str]) -> pa.Schema:
        """Return the types of carried columns."""
        return pa.schema([(name, pa.string()) for name in names])

    def read(self, wanted: Wanted, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the addresses; see `Table.read`."""
        with open_text(self.stamp.path, self.encoding, newline="") as file:
            while lines := list(itertools.islice(file, block_rows)):
                urls = [line.strip() for line in lines if not line.isspace()]
                if urls:
                    columns = [urls] * (len(wanted.texts) + len(wanted.kept))
                    yield from text_batches(columns, wanted)


open_table = AddressLines.open
