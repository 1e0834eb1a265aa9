"""Reading an export again: which files are torn, altered, missing or foreign."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import DamageError
from capfilt.export.config import COLUMNS, INSTRUCTED, RESERVED
from capfilt.export.dataset import MANIFEST, load_manifest
from capfilt.ledger.publish import TMP_DIR


@dataclass(frozen=True, slots=True)
class ExportProblem:
    """One file of an export that is not as it should be."""

    kind: Literal["damaged", "missing", "foreign", "unfinished"]
    path: str
    detail: str


def verify_export(folder: Path) -> list[ExportProblem]:
    """Compare every file of an export with its manifest."""
    if not (folder / MANIFEST).exists():
        return [ExportProblem("unfinished", str(folder), "it has no manifest; run again to finish")]
    try:
        entries = load_manifest(folder)["files"]
        listed = {entry["path"]: (entry["rows"], entry["sha256"]) for entry in entries}
    except (DamageError, KeyError, TypeError) as error:
        detail = f"it is no manifest of an export ({type(error).__name__}: {error})"
        return [ExportProblem("damaged", str(folder / MANIFEST), detail)]
    problems: list[ExportProblem] = []
    for path, (rows, sha256) in listed.items():
        problems += _check(folder / path, rows, sha256)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = file.relative_to(folder)
        if str(relative) not in {*listed, MANIFEST} and relative.parts[0] != TMP_DIR:
            problems.append(ExportProblem("foreign", str(file), "the manifest does not list it"))
    return problems


def _check(file: Path, rows: int, sha256: str) -> list[ExportProblem]:
    if not file.is_file():
        return [ExportProblem("missing", str(file), "the manifest lists it")]
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            return [ExportProblem("damaged", str(file), "its SHA-256 is not the manifest's")]
    if file.suffix != ".parquet":
        return []
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        return [ExportProblem("damaged", str(file), f"no readable Parquet: {error}")]
    with parquet:
        if parquet.metadata.num_rows != rows:
            return [ExportProblem("damaged", str(file), f"has not the {rows} rows it should")]
        found = parquet.schema_arrow.remove_metadata()
        if not _is_export(found):
            return [ExportProblem("damaged", str(file), "has other columns than an export")]
    return []


def _is_export(found: pa.Schema) -> bool:
    """Say whether columns are those of an export; columns of the input may follow them."""
    own, more = list(found)[: len(COLUMNS)], list(found)[len(COLUMNS) :]
    if more[: len(INSTRUCTED)] == list(INSTRUCTED):
        more = more[len(INSTRUCTED) :]
    return own == list(COLUMNS) and not any(field.name in RESERVED for field in more)
