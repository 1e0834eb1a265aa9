"""An export format of your own: JSON lines with the picture inside, in base64.

    capfilt run urls.csv --run DIR --format examples/own_export.py:JsonLines
    capfilt export DIR --to FOLDER --format examples/own_export.py:JsonLines

The bytes of a file depend on its pairs alone, so that a killed export goes on where it was.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from capfilt import ExportFormat


@dataclass(frozen=True)
class JsonLines(ExportFormat):
    """One object a line; `scores` adds the filter's."""

    scores: bool = True

    suffix = "jsonl"

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write one file; every table is a few hundred pairs."""
        for table in tables:
            for row in table.to_pylist():
                out.write(json.dumps(self.plain(row)).encode() + b"\n")

    def plain(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what a line holds."""
        image = base64.b64encode(row["image"]["bytes"]).decode()
        scores = {"itm_score": row["itm_score"]} if self.scores else {}
        return {"key": row["key"], "text": row["text"], "image": image, **scores}
