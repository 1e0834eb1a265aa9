"""Reading a whole run again: which files are torn, altered, missing or foreign."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from capfilt.engine.attempts import attempt_of, lost_attempts
from capfilt.engine.evaluation import seen_plans
from capfilt.engine.exports import ExportRecord, plan_of, read_record, record_files, state_of
from capfilt.engine.plan import Plan, PlannedStage, is_barrier
from capfilt.engine.record import latest_round, load_record, plan_round, round_files
from capfilt.errors import CodeNeededError, DamageError
from capfilt.export.kept import Kept
from capfilt.export.verify import verify_export
from capfilt.ledger import source
from capfilt.ledger.ledger import SUFFIX, Ledger, Receipt, repair_advice
from capfilt.ledger.memory import cut_files, read_cut
from capfilt.ledger.publish import Publisher
from capfilt.ledger.source import manifest_files, read_manifest
from capfilt.progress import Advance, Progress, unheard
from capfilt.report.page import is_whole
from capfilt.store.location import Location, is_absolute, is_there, location

Kind = Literal["damaged", "missing", "foreign", "unfinished"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One file that is not as it should be; `detail` says what is wrong and what to do."""

    kind: Kind
    path: str
    detail: str


def verify_ledger(
    ledger: Ledger,
    plan: Plan,
    told: Advance = unheard,
    kept: Kept | None = None,
    exported: Sequence[Plan] = (),
) -> list[Problem]:
    """Check every file of the plan's stages, and find those that belong to none.

    A shard that a later stage has done and an earlier one has not is a missing file, and so is any
    of an `exported` plan; a shard that is merely not done yet is no problem. `told` is told rows
    as they are read. `kept`: the columns of the input that the export carries; they are there for
    every shard but those of retries.
    """
    found = _Found(ledger)
    for each in (plan, *exported):
        for stage_id in (source.STAGE, *(planned.id for planned in each.stages)):
            there = ledger.shards(stage_id)
            for shard in each.shards:
                if shard in there:
                    told(found.check(stage_id, shard, each.schema_of(stage_id)))
                elif (
                    each is not plan
                    or stage_id == source.STAGE
                    or _needed(ledger, each, stage_id, shard)
                ):
                    found.miss(stage_id, shard, "later ones were computed from it")
        found.compare(each)
    if kept is not None:
        _check_kept(found, plan, kept)
    return found.problems + _strays(ledger, set(plan.shards))


@dataclass(slots=True)
class _Found:
    """What was read: the receipts of whole files by (stage, shard), and the problems."""

    ledger: Ledger
    problems: list[Problem] = field(default_factory=list)
    receipts: dict[tuple[str, str], Receipt] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)
    stale: set[tuple[str, str]] = field(default_factory=set)

    def check(self, stage_id: str, shard: str, schema: pa.Schema) -> int:
        """Check a file once; returns the rows that were read."""
        if (stage_id, shard) in self.seen:
            return 0
        self.seen.add((stage_id, shard))
        try:
            receipt = self.ledger.check(stage_id, shard, schema)
        except DamageError as error:
            told = str(error).removesuffix(f"; {repair_advice(self.ledger.root)}")
            path = str(self.ledger.path(stage_id, shard))
            self._damaged(stage_id, shard, told.removeprefix(f"{path} "))
            return 0
        of_source = self.receipts.get((source.STAGE, shard), receipt)
        if receipt.rows != of_source.rows:
            detail = f"has {receipt.rows} rows, its shard has {of_source.rows}"
            self._damaged(stage_id, shard, detail)
        else:
            self.receipts[stage_id, shard] = receipt
        return receipt.rows

    def miss(self, stage_id: str, shard: str, why: str) -> None:
        """Note a file that should be there, once."""
        if (stage_id, shard) not in self.seen:
            self.seen.add((stage_id, shard))
            path = str(self.ledger.path(stage_id, shard))
            self.problems.append(Problem("missing", path, why))

    def compare(self, plan: Plan) -> None:
        """Find files that were computed from others than those that lie there.

        A barrier's answer for one shard depends on all, so all of its shards go with one.
        """
        for planned in plan.stages:
            stale = [shard for shard in plan.shards if self._is_stale(planned, shard)]
            if stale and is_barrier(planned.stage):
                stale = [s for s in plan.shards if (planned.id, s) in self.receipts]
            for shard in stale:
                del self.receipts[planned.id, shard]
                self.stale.add((planned.id, shard))
                self._damaged(planned.id, shard, "was computed from other files than lie there")

    def _is_stale(self, planned: PlannedStage, shard: str) -> bool:
        receipt = self.receipts.get((planned.id, shard))
        if receipt is None:
            return False
        for stage_id, sha256 in receipt.inputs.items():
            of = self.receipts.get((stage_id, shard))
            if (stage_id, shard) in self.stale or (of and of.data_sha256 != sha256):
                return True
        return False

    def _damaged(self, stage_id: str, shard: str, detail: str) -> None:
        self.problems.append(Problem("damaged", str(self.ledger.path(stage_id, shard)), detail))


def _check_kept(found: _Found, plan: Plan, kept: Kept) -> None:
    there = found.ledger.shards(kept.stage)
    for shard in plan.shards:
        if shard in there:
            found.check(kept.stage, shard, kept.schema)
        elif attempt_of(shard) == 0:
            found.miss(kept.stage, shard, "the export carries its columns; run again")


def _needed(ledger: Ledger, plan: Plan, stage_id: str, shard: str) -> bool:
    """Say whether a stage that reads from `stage_id` has done this shard."""
    return any(stage_id in p.upstream and ledger.has(p.id, shard) for p in plan.stages)


def _strays(ledger: Ledger, checked: set[str]) -> list[Problem]:
    """Return files in the stage folders that no stage writes, and what dead processes left."""
    problems = [
        Problem("unfinished", str(path), "a process died while writing it; `capfilt gc` removes it")
        for path in ledger.sweep()
    ]
    for stage_id in ledger.stages():
        for path in sorted(ledger.folder(stage_id).iterdir()):
            with contextlib.suppress(DamageError):
                named = path.suffix == SUFFIX and path.is_file()
                if named and (path.stem in checked or ledger.receipt(stage_id, path.stem)):
                    continue
            problems.append(Problem("foreign", str(path), "capfilt did not write it"))
    return problems


# --- a whole run folder


def damaged_records(ledger: Ledger) -> list[Problem]:
    """Return the records of rounds, inputs and exports of a run that are damaged."""
    rounds = _unreadable(round_files(ledger), load_record)
    inputs = _unreadable(manifest_files(ledger), read_manifest)
    cuts = _unreadable(cut_files(ledger), read_cut)
    return rounds + inputs + cuts + damaged_exports(ledger)


def damaged_exports(ledger: Ledger) -> list[Problem]:
    """Return the records of exports that are damaged."""
    return _unreadable(record_files(ledger), read_record)


def _unreadable(files: Sequence[Location], read: Callable[[Location], object]) -> list[Problem]:
    problems: list[Problem] = []
    for file in files:
        try:
            read(file)
        except CodeNeededError:
            continue  # it is whole, and its code is not at hand
        except DamageError as error:
            problems.append(Problem("damaged", str(file), str(error)))
    return problems


def verify_run(ledger: Ledger, progress: Progress) -> list[Problem]:
    """Check every file of the latest round of a run folder, its records, exports and reports.

    Raises:
        InputError: no round was ever run there.
    """
    problems = damaged_records(ledger)
    try:
        record, manifest = latest_round(ledger)
    except DamageError as error:  # nothing else can be told before it is made again
        told = {problem.detail for problem in problems}
        missing = Problem("missing", str(ledger.root), str(error))
        return problems + [missing for _ in range(str(error) not in told)]
    broken = {problem.path for problem in problems}
    records = [read_record(f) for f in record_files(ledger) if str(f) not in broken]
    plan = plan_round(record.round, manifest, ledger)
    exported = [_plan_where_it_lies(ledger, each) for each in records]
    plans = [p for p in exported if p is not None] + seen_plans(ledger, record.round)
    stages = {planned.id for each in (plan, *plans) for planned in each.stages}
    files = len(stages) + 1 + (record.round.export.kept is not None)  # of a shard
    with progress("verify", manifest.rows * files) as told_rows:
        problems += verify_ledger(ledger, plan, told_rows, record.round.export.kept, plans)
    fetch_id = plan.stages[0].id
    for _, shard in lost_attempts(ledger, manifest.shards, fetch_id):
        path = str(ledger.path(source.STAGE, shard))
        problems.append(Problem("missing", path, "an attempt was fetched from it"))
    return problems + _verify_exports(ledger, records) + _verify_reports(ledger)


def _plan_where_it_lies(ledger: Ledger, record: ExportRecord) -> Plan | None:
    return None if state_of(ledger, record) else plan_of(ledger, record)


def _verify_exports(ledger: Ledger, records: Sequence[ExportRecord]) -> list[Problem]:
    """Check the exports in the run folder; those elsewhere are checked by their own place."""
    last = {record.place: record for record in records}
    folders = {path.name for path in ledger.root.glob("export-*")}
    folders |= {place for place in last if not is_absolute(place)}
    problems: list[Problem] = []
    for place in sorted(folders):
        folder = ledger.root / place
        if folder.is_dir():
            files = last[place].files if place in last else ()
            found = verify_export(folder, files, own=True)
            problems += [Problem(each.kind, each.path, each.detail) for each in found]
    return problems


def _verify_reports(ledger: Ledger) -> list[Problem]:
    pages = sorted((ledger.root / "reports").glob("*.html"))
    detail = "is not as it was written; `capfilt run` makes it again"
    return [Problem("damaged", str(page), detail) for page in pages if not is_whole(page)]


def set_aside(publisher: Publisher, problems: Sequence[Problem]) -> list[tuple[str, str]]:
    """Move what is damaged or foreign below `damaged`; returns (from, to). Nothing is deleted."""
    moved: list[tuple[str, str]] = []
    for problem in problems:
        path = location(problem.path)
        if problem.kind in {"damaged", "foreign"} and (is_there(path) or path.is_dir()):
            moved.append((str(path), str(publisher.set_aside(path))))
    return moved
