"""The exports of a run: a record of each, with its figures and its place.

`exports/<number>-<hash>.json` lies in the run folder for every dataset that was written from it,
also for those elsewhere. It says what the place should hold, so a lost or altered manifest is
noticed, and `status` can tell when a place does not hold it any more.
"""

import dataclasses
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from capfilt.engine.plan import Plan, compile_plan
from capfilt.engine.record import plan_round
from capfilt.errors import CapfiltError, CodeNeededError, DamageError
from capfilt.export.config import ExportConfig
from capfilt.export.dataset import FileEntry, Manifest
from capfilt.export.formats import Parquet
from capfilt.export.place import MANIFEST, export_id, is_begun, load_manifest
from capfilt.fingerprint import fingerprint
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.sealed import sealed, unsealed
from capfilt.ledger.source import load_manifest as load_input
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.round import Round
from capfilt.store.location import Location, placed, written

_FOLDER: Final = "exports"
_ATTEMPT: Final = "~"


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """One export as the run remembers it.

    `place` is relative to the run folder, or absolute where it lies elsewhere. `of` names the
    round that it was made from, `recipe` is that round with the export's own figures, `attempts`
    are the retries that it covers. `time` is in UTC.
    """

    export: str
    place: str
    of: str
    figures: str
    rows: int
    digest: str
    time: str
    input: str
    attempts: tuple[str, ...]
    files: tuple[FileEntry, ...]
    recipe: Any  # JSON: a round of another version of capfilt must not hide its export

    def folder(self, ledger: Ledger) -> Location:
        """Return where the export was written."""
        return placed(ledger.root, self.place)


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """An export and what became of it; `state` is "" where its place holds it."""

    path: str
    figures: str
    rows: int
    digest: str
    time: str
    state: str

    def line(self) -> str:
        """Return one line for a person."""
        gone = f"  ({self.state})" if self.state else ""
        pairs = "pair" if self.rows == 1 else "pairs"
        return (
            f"export {self.time}  {self.rows:,} {pairs}  digest {self.digest[:12]}  "
            f"{self.figures}  {self.path}{gone}"
        )


def place_of(ledger: Ledger, root: Location) -> str:
    """Return an export's folder as a record has it."""
    return written(root, ledger.root)


def figures_of(recipe: Round) -> str:
    """Return what is decided by an export: the policy's figures and the files' form, in a line."""
    policy = to_plain(recipe.select)
    given = [f"{name} {value}" for name, value in policy.items() if name not in {"type", "dedup"}]
    if recipe.export.instructions:
        given.append(f"{len(recipe.export.instructions)} instructions")
    if not isinstance(recipe.export.format, Parquet):
        given.append(f"format {type(recipe.export.format).__name__}")
    size = f"files of {recipe.export.target_bytes / 1e6:g} MB"
    return ", ".join([*_short(given), size])


def _short(given: Sequence[str]) -> list[str]:
    return [text if len(text) <= 60 else text[:59] + "…" for text in given]


def record_export(
    ledger: Ledger,
    plan: Plan,
    recipe: Round,
    manifest_id: str,
    of: str,
    root: Location,
    held: Manifest,
) -> ExportRecord:
    """Remember an export that is whole, unless the last record of its place says the same."""
    record = ExportRecord(
        export=held.export,
        place=place_of(ledger, root),
        of=of,
        figures=figures_of(recipe),
        rows=held.rows,
        digest=held.digest,
        time=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        input=manifest_id,
        attempts=tuple(shard for shard in plan.shards if _ATTEMPT in shard),
        files=held.files,
        recipe=to_plain(recipe),
    )
    last = recorded_at(ledger, root)
    # How fast it was fetched is part of the recipe, and no part of the export.
    if last is not None and record == dataclasses.replace(
        last, time=record.time, recipe=record.recipe
    ):
        return last
    files = record_files(ledger)
    number = int(files[-1].name.partition("-")[0]) + 1 if files else 1
    text = sealed({name: to_plain(value) for name, value in _fields(record)})
    name = f"{_FOLDER}/{number:06d}-{fingerprint((record.export, record.place))}.json"
    ledger.publisher.publish_bytes(name, text.encode("utf-8"))
    return record


def _fields(record: ExportRecord) -> list[tuple[str, object]]:
    return [(field.name, getattr(record, field.name)) for field in dataclasses.fields(record)]


def record_files(ledger: Ledger) -> list[Location]:
    """Return the files of all records, oldest first."""
    return sorted((ledger.root / _FOLDER).glob("*-*.json"))


def read_record(file: Location) -> ExportRecord:
    """Read a record.

    Raises:
        DamageError: it is none.
    """
    try:
        int(file.name.partition("-")[0])
        return from_plain(ExportRecord, unsealed(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, DamageError) as error:
        raise DamageError(
            f"{file} is no record of an export ({' '.join(str(error).split())}); `capfilt run` or "
            "`capfilt export`, as it wrote that export, moves it away and records it again"
        ) from error


def recorded_exports(ledger: Ledger) -> list[ExportRecord]:
    """Return all exports of a run, oldest first.

    Raises:
        DamageError: a record is damaged.
    """
    return [read_record(file) for file in record_files(ledger)]


def recorded_at(ledger: Ledger, root: Location) -> ExportRecord | None:
    """Return the last export that was written to a folder, or None."""
    place = place_of(ledger, root)
    found = [record for record in recorded_exports(ledger) if record.place == place]
    return found[-1] if found else None


def exports_of(ledger: Ledger, rounds: Collection[str]) -> list[ExportRecord]:
    """Return the exports of some rounds (their names) that still lie where they were written."""
    of = [record for record in recorded_exports(ledger) if record.of in rounds]
    return [record for record in of if not state_of(ledger, record)]


def state_of(ledger: Ledger, record: ExportRecord) -> str:
    """Say what became of an export, by the manifest of its place; "" where it lies there."""
    folder = record.folder(ledger)
    if not (folder / MANIFEST).exists():
        return "not finished" if is_begun(folder) else "no longer there"
    try:
        held = load_manifest(folder)
    except DamageError:
        return "its manifest is damaged; `capfilt verify` tells more"
    same = (export_id(folder, held), held.get("digest")) == (record.export, record.digest)
    return "" if same else "another export lies there now"


def export_statuses(ledger: Ledger) -> list[ExportStatus]:
    """Return every export of a run: those recorded, and those that older versions left there."""
    found: dict[tuple[str, str], ExportStatus] = {}
    for record in recorded_exports(ledger):
        found.pop((record.place, record.export), None)  # its last writing counts
        found[(record.place, record.export)] = ExportStatus(
            str(record.folder(ledger)),
            record.figures,
            record.rows,
            record.digest,
            record.time,
            state_of(ledger, record),
        )
    places = {place for place, _ in found}
    older = [f.parent for f in sorted(ledger.root.glob(f"export-*/{MANIFEST}"))]
    unrecorded = [_unrecorded(folder) for folder in older if folder.name not in places]
    return [*unrecorded, *found.values()]


def _unrecorded(folder: Location) -> ExportStatus:
    try:
        held = load_manifest(folder)
        return ExportStatus(str(folder), "", int(held["rows"]), str(held["digest"]), "", "")
    except (DamageError, KeyError, TypeError, ValueError):
        return ExportStatus(str(folder), "", 0, "", "", "its manifest is damaged")


def plan_of(ledger: Ledger, record: ExportRecord) -> Plan | None:
    """Return the plan that an export was made by, or None where this version has no such plan.

    Raises:
        CodeNeededError: the plan has code of a user's that nobody has named.
    """
    try:
        # Its format may be code that is not at hand, and no plan depends on it.
        recipe = from_plain(Round, {**record.recipe, "export": to_plain(ExportConfig())})
        manifest = load_input(ledger, record.input)
        whole = plan_round(recipe, manifest, ledger)
        kept = [s for s in whole.shards if _ATTEMPT not in s or s in record.attempts]
        return compile_plan(recipe.stages(), kept)
    except CodeNeededError:
        raise
    except (CapfiltError, TypeError):
        return None
