"""WebDataset: tars with a picture, a text and all that is known of it side by side.

A member's name is the row's key and a suffix, without another dot, since readers split it at the
first. Every sample has all its members: `datasets` refuses samples that differ.
"""

import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar, Final

import pyarrow as pa

from capfilt import schema as columns
from capfilt.export.formats.base import DataFile, ExportFormat, Pictures, RowKind

_SIZES: Final = "data/sizes.json"
_ELSEWHERE: Final = {"image", "all_texts"}


@dataclass(frozen=True)
class WebDataset(ExportFormat):
    """A tar with a sample an image: picture, `.txt` (one kept text), `.json` (all of them)."""

    label: ClassVar[str] = "webdataset"
    suffix: ClassVar[str] = "tar"
    loader: ClassVar[str] = "webdataset"
    told: ClassVar[str] = "tars of webdataset and open_clip, a sample an image"
    rows: ClassVar[RowKind] = "images"
    pictures: ClassVar[Pictures] = "inside"

    def write(self, out: BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write one file."""
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for table in tables:
                for row in table.to_pylist():
                    for name, content in _members(row):
                        tar.addfile(_header(name, content), io.BytesIO(content))

    def beside(self, files: Sequence[DataFile], split: str) -> Mapping[str, bytes]:
        """Return `sizes.json`, by which open_clip knows the samples of every tar."""
        sizes = {PurePosixPath(file.path).name: file.rows for file in files}
        return {_SIZES: json.dumps(sizes, indent=1).encode() + b"\n"}


def _members(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:  # of the export's columns
    """Yield (name, content) of one sample, its picture first."""
    suffix = PurePosixPath(row["image"]["path"]).suffix
    yield f"{row['key']}{suffix}", row["image"]["bytes"]
    yield f"{row['key']}.txt", (row["text"] or "").encode()
    yield f"{row['key']}.json", json.dumps(_plain(row), allow_nan=False, default=str).encode()


def _plain(row: dict[str, Any]) -> dict[str, Any]:  # JSON
    """Return what is known of a sample: `web` and `synthetic` are the best kept text of each kind.

    Both are there for every sample, "" where none was kept: open_clip draws between them.
    """
    told = {name: _finite(value) for name, value in row.items() if name not in _ELSEWHERE}
    texts = [{name: _finite(value) for name, value in text.items()} for text in row["all_texts"]]
    best = {
        origin: _best([text for text in texts if text["kept"] and text["origin"] == origin])
        for origin in (columns.ORIGIN_WEB, columns.ORIGIN_SYNTHETIC)
    }
    return {**told, **best, "texts": texts}


def _best(texts: list[dict[str, Any]]) -> str:
    """Return the text that the filter scores best, of equal ones the first."""
    ranked = max(
        texts,
        key=lambda text: -1.0 if text["itm_score"] is None else text["itm_score"],
        default=None,
    )
    return "" if ranked is None else str(ranked["text"] or "")


def _finite(value: Any) -> Any:  # JSON, which has no word for NaN
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _header(name: str, content: bytes) -> tarfile.TarInfo:
    """Return a header that says nothing of who wrote it, and when."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    return header
