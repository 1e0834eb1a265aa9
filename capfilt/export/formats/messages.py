"""Conversations for chat fine-tuning, as TRL reads them: columns `messages` and `images`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Final

import pyarrow as pa

from capfilt.export.formats.asking import asked, without_placeholders
from capfilt.export.formats.base import ExportFormat
from capfilt.export.formats.parquet import write_parquet

_MESSAGE: Final = pa.struct([("role", pa.string()), ("content", pa.string())])
_IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MESSAGES: Final = pa.schema(
    [
        ("key", pa.string()),
        ("messages", pa.list_(_MESSAGE)),  # the user's question, then the text
        ("images", pa.list_(_IMAGE)),  # one
        ("origin", pa.string()),
        ("itm_score", pa.float32()),
    ]
)
_TEXT: Final = {"dtype": "string", "_type": "Value"}
_FEATURES: Final = {
    "key": _TEXT,
    "messages": {"feature": {"role": _TEXT, "content": _TEXT}, "_type": "List"},
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "origin": _TEXT,
    "itm_score": {"dtype": "float32", "_type": "Value"},
}


@dataclass(frozen=True)
class Messages(ExportFormat):
    """Parquet with a conversation a kept pair.

    Contents are plain strings, for which TRL puts the pictures before the first turn of the user;
    there is one picture to each conversation.
    """

    label: ClassVar[str] = "messages"
    suffix: ClassVar[str] = "parquet"
    loader: ClassVar[str] = "parquet"
    told: ClassVar[str] = "Parquet with `messages` and `images`, as TRL reads them"
    tasks: ClassVar[tuple[str, ...]] = ("image-text-to-text", "image-to-text")

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write one file."""
        told = {b"huggingface": json.dumps({"info": {"features": _FEATURES}}).encode()}
        own = MESSAGES.with_metadata(told)
        write_parquet(out, own, _conversations(tables, own), pictures="images", repeated=["origin"])


def _conversations(tables: Iterable[pa.Table], own: pa.Schema) -> Iterator[pa.Table]:
    for table in tables:
        turns = zip(asked(table), table["text"].to_pylist(), strict=True)
        messages = [
            [
                {"role": "user", "content": question},
                {"role": "assistant", "content": without_placeholders(text)},
            ]
            for question, text in turns
        ]
        offsets = pa.array(range(table.num_rows + 1), pa.int32())
        images = table["image"].combine_chunks()
        columns = {
            "messages": pa.array(messages, own.field("messages").type),
            "images": pa.ListArray.from_arrays(offsets, images).cast(own.field("images").type),
        }
        arrays = [columns[name] if name in columns else table[name] for name in own.names]
        yield pa.table(arrays, schema=own)
