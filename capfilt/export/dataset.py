"""Writing the export: data files, card, and the manifest last.

Each data file is a pure function of the plan and is published once, so a killed export goes on with
the files that are missing, and several processes may write the same export. A file that is there is
compared with what was written before anything is said of it.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from capfilt.errors import DamageError
from capfilt.export.card import data_version, dataset_card
from capfilt.export.config import ExportConfig, Provenance, hugging_face_metadata
from capfilt.export.instructions import drawn
from capfilt.export.packing import FilePlan, pack
from capfilt.export.place import (
    CARD,
    DATA,
    MANIFEST,
    anew_advice,
    files_of,
    is_noted,
    load_manifest,
    note,
    tidy,
)
from capfilt.export.rows import span_rows
from capfilt.ledger.ledger import HashingStream
from capfilt.ledger.publish import Publisher
from capfilt.ledger.sealed import sealed
from capfilt.process.rotation import from_own_place
from capfilt.progress import Advance, unheard
from capfilt.stage import ColumnReader

# From a shard and keys of its rows to the columns of the input that are carried to the export.
Carried = Callable[[str, pa.ChunkedArray], pa.Table]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an export: path below its folder, rows (0 for the card), bytes, SHA-256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export holds. `digest` is over the data files in order: equal data, equal digest.

    `export` identifies what it was made from and how: columns, sizes, shards.
    """

    rows: int
    digest: str
    files: tuple[FileEntry, ...]
    provenance: Provenance
    export: str = ""

    def text(self) -> str:
        """Return the JSON that lies in the export."""
        return sealed(asdict(self))


def export_dataset(
    reader: ColumnReader,
    publisher: Publisher,
    config: ExportConfig,
    provenance: Provenance,
    extension: str = "jpg",
    told: Advance = unheard,
    carried: Carried | None = None,
    export: str = "",
    recorded: Collection[FileEntry] = (),
) -> Manifest:
    """Write the dataset, or what is missing of it; returns the manifest of what lies there.

    An export that nothing was kept for has one file without rows: every Parquet reader opens it,
    `datasets` only with `streaming=True`, which loads no split without rows otherwise. `carried`
    reads the columns of `config.kept`, `told` hears of rows. `export` is the export's id,
    `recorded` are the files that it is known to have had.

    Raises:
        StorageError: the folder cannot be written.
        DamageError: a file of it is not as it was written.
    """
    plans = pack(reader, config)
    parts = _Parts(publisher, {entry.path: entry.sha256 for entry in recorded})
    found: dict[int, FileEntry] = {}
    for plan in from_own_place(plans):  # several processes write different files
        number = f"{plan.number:05d}-of-{len(plans):05d}"
        path = f"{DATA}/{config.split}-{number}.{config.format.suffix}"
        write = _writer(reader, plan, config, extension, carried)
        found[plan.number] = parts.put(path, plan.rows, write)
        told(plan.rows)
    entries = [found[plan.number] for plan in plans]
    digest = hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()
    rows = sum(entry.rows for entry in entries)
    card = dataset_card(rows, config, provenance, data_version(digest)).encode("utf-8")
    entries.append(parts.put(CARD, 0, lambda out: _put(out, card)))
    manifest = Manifest(rows, digest, tuple(entries), provenance, export)
    _check_nothing_else(publisher.root, manifest)
    if not publisher.publish_bytes(MANIFEST, manifest.text().encode("utf-8")):
        _check_same(publisher.root, manifest)
    tidy(publisher.root)
    return manifest


@dataclass(frozen=True, slots=True)
class _Parts:
    """Publishes the files of an export, and checks each that is there already.

    `recorded`: path -> SHA-256 of files that the run says it has written. A manifest's word goes
    before it; the files of an unfinished export are noted beside them.
    """

    publisher: Publisher
    recorded: dict[str, str]

    def put(self, path: str, rows: int, write: Callable[[BinaryIO], None]) -> FileEntry:
        """Publish a file where it is missing; returns what lies there.

        Raises:
            DamageError: it is not what was written.
        """
        root = self.publisher.root
        if os.path.lexists(root / path) and not (root / path).is_file():
            raise DamageError(f"{root / path} is a link to nothing or no file; {anew_advice(root)}")
        written = not (root / path).exists() and self.publisher.publish(
            path, self._noted(path, write)
        )
        entry = _entry(root, path, rows)
        if self._is_known(entry):
            return entry
        if written:
            raise DamageError(
                f"{root / path} does not come out as it was written before (by other versions?); "
                "give `capfilt export --replace` to write the export anew"
            )
        raise DamageError(f"{root / path} is damaged; {anew_advice(root)}")

    def _noted(self, path: str, write: Callable[[BinaryIO], None]) -> Callable[[BinaryIO], None]:
        def noted(out: BinaryIO) -> None:
            stream = HashingStream(out)
            write(cast(BinaryIO, stream))  # it is all of one that a writer uses
            note(self.publisher, path, stream.digest.hexdigest())

        return noted

    def _is_known(self, entry: FileEntry) -> bool:
        listed = self._listed()
        if listed is None and is_noted(self.publisher.root, entry.path, entry.sha256):
            return True
        # Another process may have finished the export, and removed its notes, meanwhile.
        known = listed or self._listed() or self.recorded
        return known.get(entry.path) == entry.sha256

    def _listed(self) -> dict[str, str] | None:
        """Return path -> SHA-256 by the manifest, or None before there is one."""
        root = self.publisher.root
        if not (root / MANIFEST).exists():
            return None
        try:
            return {each["path"]: each["sha256"] for each in load_manifest(root)["files"]}
        except (DamageError, KeyError, TypeError) as error:
            raise DamageError(f"{root / MANIFEST} is damaged; {anew_advice(root)}") from error


def _put(out: BinaryIO, content: bytes) -> None:
    out.write(content)


def _check_nothing_else(root: Path, manifest: Manifest) -> None:
    """Raise DamageError where the data's folder has files that every reader would take for data."""
    listed = {entry.path for entry in manifest.files}
    others = [name for name in files_of(root) if name.startswith(f"{DATA}/")]
    for name in sorted(set(others) - listed):
        raise DamageError(f"{root / name} is no file of this export; {anew_advice(root)}")


def _check_same(root: Path, manifest: Manifest) -> None:
    """Raise DamageError where the manifest that lies in a folder says other than its files do."""
    held = load_manifest(root)
    files = [asdict(entry) for entry in manifest.files]
    if (held["rows"], held["digest"], held["files"]) != (manifest.rows, manifest.digest, files):
        raise DamageError(
            f"{root / MANIFEST} is damaged: it says other than its files; {anew_advice(root)}"
        )


def _writer(
    reader: ColumnReader,
    plan: FilePlan,
    config: ExportConfig,
    extension: str,
    carried: Carried | None,
) -> Callable[[BinaryIO], None]:
    columns = config.columns
    schema = columns.with_metadata(hugging_face_metadata(columns.names, config.carried))

    def write(out: BinaryIO) -> None:
        tables = (table.cast(schema) for table in _groups(reader, plan, config, extension, carried))
        config.format.write(out, schema, tables)

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
    try:
        with (root / path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(path, rows, (root / path).stat().st_size, digest)
    except FileNotFoundError as error:
        raise DamageError(
            f"{root / path} was removed while the export was written; give the same command again"
        ) from error
