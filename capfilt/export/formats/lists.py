"""Lists in one JSON file, with the pictures in files of their own."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa

from capfilt.export.formats.base import ExportFormat, Pictures


@dataclass(frozen=True)
class JsonList(ExportFormat):
    """One list, an object a row; a subclass says what an object holds."""

    suffix: ClassVar[str] = "json"
    pictures: ClassVar[Pictures] = "beside"

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write the file; readers take it as a whole, so a line has one object."""
        before = b"[\n"
        for table in tables:
            for plain in self.objects(table):
                out.write(before + json.dumps(plain).encode("ascii"))
                before = b",\n"
        out.write(b"[]\n" if before == b"[\n" else b"\n]\n")

    def objects(self, table: pa.Table) -> Iterable[dict[str, Any]]:  # JSON
        """Return what the list holds for the rows of a table."""
        raise NotImplementedError
