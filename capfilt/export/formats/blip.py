"""The list that BLIP's own pre-training reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from capfilt.export.formats.lists import JsonList


@dataclass(frozen=True)
class BlipJson(JsonList):
    """`image` (a path below the export's folder), `url` and `caption`."""

    label: ClassVar[str] = "blip-json"
    told: ClassVar[str] = "BLIP's own list of `image` and `caption`, with picture files"

    def objects(self, table: pa.Table) -> Iterator[dict[str, Any]]:  # JSON
        """Yield an object a row."""
        for row in table.to_pylist():
            yield {"image": row["image"]["path"], "url": row["url"], "caption": row["text"]}
