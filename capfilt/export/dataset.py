"""Writing the export: data files, card, and the manifest last.

Each data file is a pure function of the plan and is published once, so a killed export goes on with
the files that are missing, and several processes may write the same export. A file that is there is
compared with what was written before anything is said of it.
"""

import hashlib
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import BinaryIO, cast

from capfilt.errors import DamageError
from capfilt.export.card import data_version, dataset_card
from capfilt.export.config import ExportConfig, Provenance, hugging_face_metadata
from capfilt.export.croissant import croissant
from capfilt.export.formats import DataFile
from capfilt.export.packing import FilePlan, pack
from capfilt.export.place import (
    CARD,
    CROISSANT,
    DATA,
    IMAGES,
    MANIFEST,
    SCORES,
    SUMS,
    THEIRS,
    anew_advice,
    files_of,
    is_data,
    is_noted,
    listed_pictures,
    load_manifest,
    note,
    tidy,
)
from capfilt.export.rows import Carried, Rows
from capfilt.export.scores import NARROW, write_scores
from capfilt.ledger.ledger import HashingStream
from capfilt.ledger.publish import Publisher
from capfilt.ledger.sealed import sealed
from capfilt.process.rotation import from_own_place
from capfilt.progress import Advance, unheard
from capfilt.stage import ColumnReader
from capfilt.store.location import Location, is_there


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
    judged: Sequence[str] = NARROW,
) -> Manifest:
    """Write the dataset, or what is missing of it; returns the manifest of what lies there.

    An export that nothing was kept for has one file without rows: every Parquet reader opens it,
    `datasets` only with `streaming=True`, which loads no split without rows otherwise. `carried`
    reads the columns of `config.kept`, `told` hears of rows. `export` is the export's id,
    `recorded` are the files that it is known to have had, `judged` the columns of the run that the
    table of scores is made of.

    Raises:
        StorageError: the folder cannot be written.
        DamageError: a file of it is not as it was written.
    """
    parts = _Parts(publisher, {entry.path: entry.sha256 for entry in recorded})
    rows_of = Rows(reader, config, extension, carried)
    tasks = [*_data_tasks(rows_of, parts), _scores_task(reader, judged)]
    found: dict[str, FileEntry] = {}
    for task in from_own_place(tasks):  # several processes write different files
        found[task.path] = parts.put(task.path, task.rows, task.write)
        told(task.told)
    data = [found[task.path] for task in tasks if is_data(task.path)]
    digest = hashlib.sha256("".join(entry.sha256 for entry in data).encode()).hexdigest()
    rows = sum(entry.rows for entry in data)
    about = _about(data, config, provenance, data_version(digest), found[SCORES].sha256)
    beside = [parts.put(path, 0, _content(content)) for path, content in about.items()]
    entries = [*data, found[SCORES], *beside]
    manifest = Manifest(rows, digest, tuple(entries), provenance, export)
    _check_nothing_else(publisher.root, manifest)
    if not publisher.publish_bytes(MANIFEST, manifest.text().encode("utf-8")):
        _check_same(publisher.root, manifest)
    tidy(publisher.root)
    return manifest


@dataclass(frozen=True, slots=True)
class _Task:
    """A file to write: how many rows it has, and how many are told of when it is there."""

    path: str
    rows: int
    told: int
    write: Callable[[BinaryIO], None]


def _data_tasks(rows: Rows, parts: "_Parts") -> list[_Task]:
    """Return the data files, in the order of their rows, with their pictures where these lie apart.

    Pictures are published in parts, each with a list of what it has; their texts are one file.
    """
    config = rows.config
    plans = pack(rows.reader, config)
    whole = FilePlan(0, tuple(span for plan in plans for span in plan.spans))
    if config.format.pictures == "inside":
        names = _names(DATA, config.split, config.format.suffix, len(plans))
        return [
            _Task(name, plan.rows, plan.rows, _writer(rows, plan))
            for name, plan in zip(names, plans, strict=True)
        ]
    (name,) = _names(DATA, config.split, config.format.suffix, 1)
    if config.format.pictures == "none":
        return [_Task(name, whole.rows, whole.rows, _writer(rows, whole))]
    pictures = [
        _Task(sums, 0, plan.rows, _picture_writer(rows, plan, parts))
        for sums, plan in zip(
            _names(IMAGES, config.split, "sha256", len(plans)), plans, strict=True
        )
    ]
    return [_Task(name, whole.rows, 0, _writer(rows, whole)), *pictures]


def _names(folder: str, split: str, suffix: str, count: int) -> list[str]:
    return [f"{folder}/{split}-{number:05d}-of-{count:05d}.{suffix}" for number in range(count)]


def _scores_task(reader: ColumnReader, columns: Sequence[str]) -> _Task:
    return _Task(SCORES, 0, 0, lambda out: write_scores(out, reader, columns))


def _about(
    data: Sequence[FileEntry],
    config: ExportConfig,
    provenance: Provenance,
    version: str,
    scores: str,
) -> dict[str, bytes]:
    """Return the small files that tell of the data, by their paths."""
    rows = sum(entry.rows for entry in data)
    files = [DataFile(entry.path, entry.rows) for entry in data if not SUMS.fullmatch(entry.path)]
    return {
        **config.format.beside(files, config.split),
        CROISSANT: croissant(rows, config, provenance, version, scores),
        CARD: dataset_card(rows, config, provenance, version).encode("utf-8"),
    }


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
        if is_there(root / path) and not (root / path).is_file():
            raise DamageError(f"{root / path} is a link to nothing or no file; {anew_advice(root)}")
        written = not (root / path).exists() and self.publisher.publish(
            path, self._noted(path, write)
        )
        entry = _entry(root, path, rows)
        if self._is_known(entry):
            if SUMS.fullmatch(path) and not written and _lacks_pictures(root, path):
                write(io.BytesIO())  # publishes what is missing of them
            return entry
        if written:
            raise DamageError(
                f"{root / path} does not come out as it was written before (by other versions?); "
                "give `capfilt export --replace` to write the export anew"
            )
        raise DamageError(f"{root / path} is damaged; {anew_advice(root)}")

    def put_picture(self, path: str, content: bytes) -> None:
        """Publish a picture file where it is missing.

        Raises:
            DamageError: another lies there.
        """
        root = self.publisher.root
        if not is_there(root / path) and self.publisher.publish_bytes(path, content):
            return
        if not (root / path).is_file() or (root / path).read_bytes() != content:
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


def _content(content: bytes) -> Callable[[BinaryIO], None]:
    def write(out: BinaryIO) -> None:
        out.write(content)

    return write


def _lacks_pictures(root: Location, sums: str) -> bool:
    """Say whether pictures of a list are missing.

    Raises:
        DamageError: one is not as the list says.
    """
    missing = False
    for sha256, path in listed_pictures(root, sums):
        if not is_there(root / path):
            missing = True
        elif not (root / path).is_file() or _entry(root, path, 0).sha256 != sha256:
            raise DamageError(f"{root / path} is damaged; {anew_advice(root)}")
    return missing


def _check_nothing_else(root: Location, manifest: Manifest) -> None:
    """Raise DamageError where the data's folder has files that every reader would take for data."""
    listed = {entry.path for entry in manifest.files}
    others = [n for n in files_of(root) if n.startswith(f"{DATA}/") and not THEIRS.fullmatch(n)]
    for name in sorted(set(others) - listed):
        raise DamageError(f"{root / name} is no file of this export; {anew_advice(root)}")


def _check_same(root: Location, manifest: Manifest) -> None:
    """Raise DamageError where the manifest that lies in a folder says other than its files do."""
    held = load_manifest(root)
    files = [asdict(entry) for entry in manifest.files]
    if (held["rows"], held["digest"], held["files"]) != (manifest.rows, manifest.digest, files):
        raise DamageError(
            f"{root / MANIFEST} is damaged: it says other than its files; {anew_advice(root)}"
        )


def _writer(rows: Rows, plan: FilePlan) -> Callable[[BinaryIO], None]:
    config = rows.config
    schema = config.columns.with_metadata(
        hugging_face_metadata(config.columns.names, config.carried)
    )

    def write(out: BinaryIO) -> None:
        inside = config.format.pictures == "inside"
        tables = (table.cast(schema) for table in rows.tables(plan.spans, images=inside))
        config.format.write(out, schema, tables)

    return write


def _picture_writer(rows: Rows, plan: FilePlan, parts: _Parts) -> Callable[[BinaryIO], None]:
    """Return what publishes the pictures of a plan, and lists them as `sha256sum` does."""

    def write(out: BinaryIO) -> None:
        last = ""
        for table in rows.tables(plan.spans):
            for image in table["image"].to_pylist():
                if image["path"] != last:  # an image may have several rows, side by side
                    parts.put_picture(image["path"], image["bytes"])
                    line = f"{hashlib.sha256(image['bytes']).hexdigest()}  {image['path']}\n"
                    out.write(line.encode("ascii"))
                last = image["path"]

    return write


def _entry(root: Location, path: str, rows: int) -> FileEntry:
    try:
        with (root / path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(path, rows, (root / path).stat().st_size, digest)
    except FileNotFoundError as error:
        raise DamageError(
            f"{root / path} was removed while the export was written; give the same command again"
        ) from error
