"""Reading an export again: which files are torn, altered, missing or foreign."""

import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from capfilt.errors import DamageError
from capfilt.export.config import COLUMNS, INSTRUCTED, RESERVED
from capfilt.export.dataset import FileEntry
from capfilt.export.formats import Parquet
from capfilt.export.formats.messages import MESSAGES
from capfilt.export.place import (
    MANIFEST,
    PICTURE,
    SUMS,
    THEIRS,
    files_of,
    is_begun,
    is_data,
    listed_pictures,
    load_manifest,
)
from capfilt.ledger.ledger import UNREADABLE
from capfilt.store.location import Location, is_there
from capfilt.store.reading import arrow_file, parquet_file


@dataclass(frozen=True, slots=True)
class ExportProblem:
    """One file of an export that is not as it should be."""

    kind: Literal["damaged", "missing", "foreign", "unfinished"]
    path: str
    detail: str


def verify_export(
    folder: Location, recorded: Collection[FileEntry] = (), own: bool = False
) -> list[ExportProblem]:
    """Compare every file of an export with its manifest, and that with what the run recorded.

    `own`: the folder is the run's, so a file there that nothing tells of is in the way.
    """
    if not (folder / MANIFEST).exists():
        return _without_manifest(folder, recorded, own)
    try:
        manifest = load_manifest(folder)
        entries = [FileEntry(**entry) for entry in manifest["files"]]
        _check_manifest(manifest, entries, recorded)
    except (DamageError, KeyError, TypeError, ValueError) as error:
        detail = f"it is no manifest of this export ({type(error).__name__}: {error})"
        return [ExportProblem("damaged", str(folder / MANIFEST), detail)]
    problems = [found for entry in entries for found in _check(folder, entry)]
    broken = {problem.path for problem in problems}
    listed = {MANIFEST, *(entry.path for entry in entries)}
    for sums in (e.path for e in entries if SUMS.fullmatch(e.path)):
        if str(folder / sums) not in broken:  # else nothing says which pictures there are
            pictures = listed_pictures(folder, sums)
            problems += [p for sha256, path in pictures for p in _check_sum(folder, path, sha256)]
            listed.update(path for _, path in pictures)
    unread = any(SUMS.fullmatch(name.removeprefix(f"{folder}/")) for name in broken)
    return problems + [
        ExportProblem("foreign", str(folder / name), "the manifest does not list it")
        for name in files_of(folder)
        if name not in listed and not THEIRS.fullmatch(name)
        if not (unread and PICTURE.fullmatch(name))
    ]


def _check_manifest(
    manifest: dict[str, Any],  # JSON
    entries: list[FileEntry],
    recorded: Collection[FileEntry],
) -> None:
    """Raise ValueError where a manifest is at odds with itself or with what was recorded."""
    data = [entry for entry in entries if is_data(entry.path)]
    digest = hashlib.sha256("".join(entry.sha256 for entry in data).encode()).hexdigest()
    if (manifest["digest"], manifest["rows"]) != (digest, sum(entry.rows for entry in data)):
        raise ValueError("its rows or its digest are not those of its files")
    if recorded and [asdict(entry) for entry in recorded] != manifest["files"]:
        raise ValueError("it lists other files than the run recorded")


def _without_manifest(
    folder: Location, recorded: Collection[FileEntry], own: bool
) -> list[ExportProblem]:
    """Tell of an export that is not finished, or whose manifest is gone."""
    detail = "it has no manifest; the command that wrote the export finishes it"
    problems = [ExportProblem("unfinished", str(folder), detail)]
    if is_begun(folder):
        return problems
    known = {entry.path: entry for entry in recorded}
    for name in files_of(folder):
        if name in known:
            problems += _check(folder, known[name])
        elif own:
            detail = "nothing says what it should hold"
            problems.append(ExportProblem("damaged", str(folder / name), detail))
    return problems


def _check(folder: Location, entry: FileEntry) -> list[ExportProblem]:
    problems = _check_sum(folder, entry.path, entry.sha256)
    file = folder / entry.path
    if problems or not is_data(entry.path) or file.suffix != f".{Parquet.suffix}":
        return problems
    try:
        with (
            arrow_file(file) as opened,
            parquet_file(opened) as parquet,
        ):
            rows, found = parquet.metadata.num_rows, parquet.schema_arrow.remove_metadata()
    except UNREADABLE as error:
        return [ExportProblem("damaged", str(file), f"no readable Parquet: {error}")]
    if rows != entry.rows:
        return [ExportProblem("damaged", str(file), f"has not the {entry.rows} rows it should")]
    if not _is_export(found) and found != MESSAGES:
        return [ExportProblem("damaged", str(file), "has other columns than an export")]
    return []


def _check_sum(folder: Location, path: str, sha256: str) -> list[ExportProblem]:
    """Return what is wrong with a file that should have this SHA-256."""
    file = folder / path
    if not is_there(file):
        return [ExportProblem("missing", str(file), "the manifest lists it")]
    if not file.is_file():
        return [ExportProblem("damaged", str(file), "a link to nothing, or no file at all")]
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            return [ExportProblem("damaged", str(file), "its SHA-256 is not the manifest's")]
    return []


def _is_export(found: pa.Schema) -> bool:
    """Say whether columns are those of an export; columns of the input may follow them."""
    own, more = list(found)[: len(COLUMNS)], list(found)[len(COLUMNS) :]
    if more[: len(INSTRUCTED)] == list(INSTRUCTED):
        more = more[len(INSTRUCTED) :]
    return own == list(COLUMNS) and not any(field.name in RESERVED for field in more)
