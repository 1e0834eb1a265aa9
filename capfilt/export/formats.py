"""What a data file of an export is: the formats by name, and one of one's own.

A format says how tables of pairs become the bytes of a file. Which pairs go into which file, the
names of the files, the manifest and the resuming are the same for every format. To add one is a
class here, or in a file beside this one, and its name in `Format`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Final, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import InputError
from capfilt.usercode import is_code, named_recipe


@dataclass(frozen=True)
class ExportFormat:
    """How pairs are written; a subclass of one's own sets `suffix` and overrides `write`.

    Its fields are part of the export's identity, and so is the code of the file that defines it.
    `loader` is the name by which `datasets` reads such files; "": it has none.
    """

    label: ClassVar[str] = "own"
    suffix: ClassVar[str] = ""
    loader: ClassVar[str] = ""

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write one file. `schema` is that of the tables; its metadata are the Hub's features.

        The tables come in the order of the input, at the most `row_group_rows` rows each, and must
        be written one by one: a file is larger than the memory that a process should take. The
        bytes must depend on nothing but the arguments (no time of day, no random boundary), so that
        a killed export goes on and a damaged file is noticed.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Parquet(ExportFormat):
    """Parquet with a checksum a page, which every reader opens; a table becomes a row group."""

    label: ClassVar[str] = "parquet"
    suffix: ClassVar[str] = "parquet"
    loader: ClassVar[str] = "parquet"

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write one file."""
        # Encoded images do not compress; paths and the rest do.
        codecs = {name: "zstd" for name in schema.names if name != "image"}
        codecs |= {"image.bytes": "none", "image.path": "zstd"}
        with pq.ParquetWriter(
            out,
            schema,
            version="2.6",
            compression=codecs,
            use_dictionary=["origin"],
            write_page_checksum=True,
        ) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=table.num_rows)


Format = Parquet | ExportFormat
FORMATS: Final[dict[str, type[Format]]] = {
    kind.label: kind for kind in get_args(Format) if kind is not ExportFormat
}


def named_format(name: str) -> Format:
    """Return the format of a name, or one's own of `FILE.py:NAME`.

    Raises:
        InputError: there is none, or its code fails or says no suffix.
    """
    if not is_code(name):
        if name not in FORMATS:
            raise InputError(
                f"there is no export format {name!r}; give one of {', '.join(FORMATS)}, or "
                "FILE.py:NAME"
            )
        return FORMATS[name]()
    found = named_recipe(name, ExportFormat)
    if not found.suffix.replace(".", "").isalnum():
        raise InputError(f"{name}: its suffix is {found.suffix!r}; give letters, such as 'jsonl'")
    return found
