"""The annotations that LAVIS reads for instruction tuning."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from capfilt.export.formats.asking import asked
from capfilt.export.formats.lists import JsonList


@dataclass(frozen=True)
class Lavis(JsonList):
    """`image`, `text_input` (the question), `text_output` and `caption` (the text), `image_id`."""

    label: ClassVar[str] = "lavis"
    told: ClassVar[str] = "LAVIS's list of `image`, `text_input`, `text_output`"
    tasks: ClassVar[tuple[str, ...]] = ("image-text-to-text", "image-to-text")

    def objects(self, table: pa.Table) -> Iterator[dict[str, Any]]:  # JSON
        """Yield an annotation a row."""
        for row, question in zip(table.to_pylist(), asked(table), strict=True):
            yield {
                "image": row["image"]["path"],
                "image_id": row["key"],
                "text_input": question,
                "text_output": row["text"],
                "caption": row["text"],
            }
