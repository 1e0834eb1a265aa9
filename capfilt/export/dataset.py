"""Writing the export: data files, card, and the manifest last.

Each data file is a pure function of the plan and is published once, so a killed export goes on with
the files that are missing, and several processes may write the same export.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import DamageError
from capfilt.export.card import dataset_card
from capfilt.export.config import ExportConfig, Provenance, hugging_face_metadata
from capfilt.export.instructions import drawn
from capfilt.export.packing import FilePlan, pack
from capfilt.export.rows import span_rows
from capfilt.ledger.publish import Publisher
from capfilt.stage import ColumnReader

# From a shard and keys of its rows to the columns of the input that are carried to the export.
Carried = Callable[[str, pa.ChunkedArray], pa.Table]

MANIFEST: Final = "manifest.json"
CARD: Final = "README.md"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an export: path below its folder, rows (0 for the card), bytes, SHA-256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export holds. `digest` is over the data files in order: equal data, equal digest."""

    rows: int
    digest: str
    files: tuple[FileEntry, ...]
    provenance: Provenance

    def text(self) -> str:
        """Return the JSON that lies in the export."""
        return json.dumps(asdict(self), indent=1) + "\n"


def export_dataset(
    reader: ColumnReader,
    publisher: Publisher,
    config: ExportConfig,
    provenance: Provenance,
    extension: str = "jpg",
    progress: Callable[[int], None] = lambda _: None,
    carried: Carried | None = None,
) -> Manifest:
    """Write the kept texts of a run below `publisher.root`; returns what was written.

    An export that nothing was kept for has one file without rows: every Parquet reader opens it,
    `datasets` only with `streaming=True`, which loads no split without rows otherwise. `carried`
    reads the columns of `config.kept`.

    Raises:
        StorageError: the folder cannot be written.
    """
    plans = pack(reader, config)
    entries: list[FileEntry] = []
    for plan in plans:
        path = f"data/{config.split}-{plan.number:05d}-of-{len(plans):05d}.parquet"
        if not (publisher.root / path).exists():
            publisher.publish(path, _writer(reader, plan, config, extension, carried))
        entries.append(_entry(publisher.root, path, plan.rows))
        progress(plan.rows)
    digest = hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()
    rows = sum(entry.rows for entry in entries)
    card = dataset_card(rows, config.split, provenance).encode("utf-8")
    publisher.publish_bytes(CARD, card)
    entries.append(_entry(publisher.root, CARD, 0))
    manifest = Manifest(rows, digest, tuple(entries), provenance)
    publisher.publish_bytes(MANIFEST, manifest.text().encode("utf-8"))
    return manifest


def load_manifest(folder: Path) -> dict[str, Any]:  # JSON
    """Read an export's manifest.

    Raises:
        DamageError: it is missing (the export is not finished) or unreadable.
    """
    try:
        plain: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return plain
    except (OSError, ValueError) as error:
        raise DamageError(
            f"{folder / MANIFEST} cannot be read ({error}); `capfilt export` finishes an export"
        ) from error


def _writer(
    reader: ColumnReader,
    plan: FilePlan,
    config: ExportConfig,
    extension: str,
    carried: Carried | None,
) -> Callable[[BinaryIO], None]:
    columns = config.columns
    schema = columns.with_metadata(hugging_face_metadata(columns.names, config.carried))
    # Encoded images do not compress; paths and the rest do.
    codecs = {name: "zstd" for name in columns.names if name != "image"}
    codecs |= {"image.bytes": "none", "image.path": "zstd"}

    def write(out: BinaryIO) -> None:
        with pq.ParquetWriter(
            out,
            schema,
            version="2.6",
            compression=codecs,
            use_dictionary=["origin"],
            write_page_checksum=True,
        ) as writer:
            for table in _groups(reader, plan, config, extension, carried):
                writer.write_table(table.cast(schema), row_group_size=config.row_group_rows)

    return write


def _groups(
    reader: ColumnReader,
    plan: FilePlan,
    config: ExportConfig,
    extension: str,
    carried: Carried | None,
) -> Iterator[pa.Table]:
    """Yield tables of exactly `row_group_rows` rows (the last: the rest), whatever the shards."""
    held = config.columns.empty_table()
    for span in plan.spans:
        rows = span_rows(reader, span, extension)
        if config.instructions:
            rows = rows.append_column("text_input", drawn(config.instructions, rows))
            rows = rows.append_column("text_output", rows["text"])
        if carried is not None:
            columns = carried(span.shard, rows["key"]).columns
            for field, column in zip(config.carried, columns, strict=True):
                rows = rows.append_column(field, column)
        held = pa.concat_tables([held, rows])
        while held.num_rows >= config.row_group_rows:
            yield held.slice(0, config.row_group_rows).combine_chunks()
            held = held.slice(config.row_group_rows)
    if held.num_rows:
        yield held.combine_chunks()


def _entry(root: Path, path: str, rows: int) -> FileEntry:
    with (root / path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(path, rows, (root / path).stat().st_size, digest)
