"""Conversations as LLaVA, Qwen-VL and LLaMA-Factory read them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from capfilt.export.formats.asking import asked, without_placeholders
from capfilt.export.formats.lists import JsonList


@dataclass(frozen=True)
class Llava(JsonList):
    """`image` and `conversations`, with as many `<image>` as there are pictures: one."""

    label: ClassVar[str] = "llava"
    told: ClassVar[str] = "conversations of LLaVA, Qwen-VL and LLaMA-Factory, with picture files"
    tasks: ClassVar[tuple[str, ...]] = ("image-text-to-text", "image-to-text")

    def objects(self, table: pa.Table) -> Iterator[dict[str, Any]]:  # JSON
        """Yield a conversation a row."""
        for row, question in zip(table.to_pylist(), asked(table), strict=True):
            number = "web" if row["caption_index"] is None else row["caption_index"]
            yield {
                "id": f"{row['key']}-{number}",
                "image": row["image"]["path"],
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": without_placeholders(row["text"])},
                ],
            }
