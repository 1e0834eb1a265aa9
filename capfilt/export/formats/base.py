"""What a format of an export is: how tables of pairs become the bytes of a file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Literal

import pyarrow as pa

# What a row of the tables is: a kept text with its image, or an image with one of its kept texts.
RowKind = Literal["texts", "images"]
# Where the pictures are: in the tables, in files of their own, or not written at all.
Pictures = Literal["inside", "beside", "none"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that was written: its path below the export's folder, and its rows."""

    path: str
    rows: int


@dataclass(frozen=True)
class ExportFormat:
    """How pairs are written; a subclass of one's own sets `suffix` and overrides `write`.

    Its fields are part of the export's identity, and so is the code of the file that defines it.
    `loader` is the name by which `datasets` reads such files; "": it has none. `tasks` are the
    Hub's names of what the data are for.

    With `rows` "images" a row is an image: `text` is one of its kept texts, drawn by its key, and
    `all_texts` has every text of it. With `pictures` "beside" pictures lie in files at
    `image.path` and the tables have no bytes, with "none" there are no picture files either; then
    there is one data file.
    """

    label: ClassVar[str] = "own"
    suffix: ClassVar[str] = ""
    loader: ClassVar[str] = ""
    told: ClassVar[str] = "a format of its maker's own"
    rows: ClassVar[RowKind] = "texts"
    pictures: ClassVar[Pictures] = "inside"
    tasks: ClassVar[tuple[str, ...]] = ("image-to-text",)

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write one file. `schema` is that of the tables; its metadata are the Hub's features.

        The tables come in the order of the input, at the most `row_group_rows` rows each, and must
        be written one by one: a file is larger than the memory that a process should take. The
        bytes must depend on nothing but the arguments (no time of day, no random boundary), so that
        a killed export goes on and a damaged file is noticed.
        """
        raise NotImplementedError

    def beside(self, files: Sequence[DataFile], split: str) -> Mapping[str, bytes]:
        """Return small files about all data files, by their paths below the export's folder."""
        return {}
