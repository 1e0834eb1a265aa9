"""The verbs on a run folder: status, retry, export, verify, gc. Their results render themselves."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from capfilt import schema
from capfilt.commands.advance import (
    RunResult,
    advance_round,
    check_models,
    existing_ledger,
    move_away,
    point_to_latest,
)
from capfilt.commands.hardware import Hardware, resources_for
from capfilt.engine import attempts
from capfilt.engine import passes as engine
from capfilt.engine.evaluation import plans_of
from capfilt.engine.exports import ExportStatus, export_statuses, exports_of, plan_of
from capfilt.engine.finish import check_place, finish
from capfilt.engine.garbage import Garbage, find_garbage, remove
from capfilt.engine.passes import Resources
from capfilt.engine.plan import Plan, RunReader
from capfilt.engine.record import fetched_models, latest_round, plan_round, recorded_rounds
from capfilt.engine.status import StageStatus, outcome_of, plain_status, run_outcome, stage_status
from capfilt.engine.verify import Problem, damaged_exports, set_aside, verify_run
from capfilt.errors import InputError
from capfilt.export.place import is_export
from capfilt.export.verify import verify_export
from capfilt.flags import replaced
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import load_manifest, rows_of
from capfilt.ledger.tally import Outcome
from capfilt.progress import Progress, Say
from capfilt.recipe.options import exported_with
from capfilt.report.failures import lines_of, plain_failures, why_nothing
from capfilt.report.funnel import Funnel, count_funnel
from capfilt.stages.download.notes import fetch_notes
from capfilt.store.location import Location
from capfilt.usercode import load_named
from capfilt.wording import counted


def retry(
    run_dir: Location,
    given: Mapping[str, object],
    fetch_only: bool,
    hardware: Hardware,
    progress: Progress,
    say: Say,
) -> RunResult:
    """Add an attempt for what failed in passing, fetch it, and go on unless `fetch_only`.

    `given` are options of the download that are no part of its identity, by flag. What failed for
    want of one of them is fetched again too.
    """
    ledger = existing_ledger(run_dir)
    record, manifest = latest_round(ledger)
    recipe = dataclasses.replace(record.round, fetch=replaced(record.round.fetch, given))
    for note in fetch_notes(recipe.fetch):
        say(f"note: {note}")
    resources = resources_for(recipe, hardware)
    plan = plan_round(recipe, manifest, ledger)
    fetch = plan.stages[0]
    attempts.add_attempts(ledger, plan.shards, fetch.id, attempts.cures_of(given))
    plan = plan_round(recipe, manifest, ledger)
    # Also those that a retry added which was killed before it fetched them.
    again = [shard for shard in plan.missing(ledger, fetch) if attempts.attempt_of(shard)]
    say(f"retry: {counted(rows_of(again, ledger), 'row')} to fetch again")
    if not fetch_only:
        check_models(ledger, recipe, plan, resources, say)
        record = dataclasses.replace(record, round=recipe)
        return advance_round(ledger, record, manifest, resources, progress, say)
    engine.run_pass(plan, ledger, (plan.stages[0],), resources, progress)
    came = _fetched(ledger, fetch.id, again)
    return RunResult(str(run_dir), None, run_outcome(ledger, plan), came)


def _fetched(ledger: Ledger, fetch_id: str, again: list[str]) -> str:
    """Say what came of the rows that were fetched again."""
    if not again:
        return "No row failed in a way that can pass; nothing was fetched again."
    receipts = [ledger.receipt(fetch_id, shard) for shard in again]
    tried = sum(receipt.rows for receipt in receipts)
    came = sum(receipt.counts.get(schema.SUCCESS, 0) for receipt in receipts)
    return f"{counted(tried, 'row')} fetched again, {came:,} came. `capfilt run` does the rest."


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Where an export goes (None: into the run folder), and the figures that differ from the run's.

    `figures` are options of the policy and of the export by the names of their flags. `replace`:
    another or a damaged export in the folder is replaced as a whole.
    """

    to: Location | None = None
    figures: Mapping[str, object] = field(default_factory=dict)
    replace: bool = False


def export(run_dir: Location, how: ExportRequest, progress: Progress, say: Say) -> RunResult:
    """Export a finished run again: elsewhere, by another threshold, in other file sizes."""
    for value in how.figures.values():
        load_named(value)  # the run may have been exported so too
    ledger = existing_ledger(run_dir)
    record, manifest = latest_round(ledger)
    recipe = exported_with(record.round, how.figures)
    plan = plan_round(recipe, manifest, ledger)
    unfinished = [p.stage.name for p in plan.stages[:-1] if plan.missing(ledger, p)]
    if unfinished:
        raise InputError(f"{run_dir} is not finished ({', '.join(unfinished)}); run it first")
    move_away(ledger, damaged_exports(ledger), say)
    check_place(plan, recipe, ledger, how.to, how.replace)
    engine.advance(plan, ledger, Resources(), progress)
    reader = RunReader(ledger, plan)
    done = finish(
        reader, recipe, manifest, how.to, progress, say, of=record.name, replace=how.replace
    )
    if how.to is None and recipe == record.round:
        point_to_latest(ledger, done, say)
    return RunResult(str(run_dir), done)


@dataclass(frozen=True, slots=True)
class StatusResult:
    """How far every stage is."""

    run_dir: str
    described: str
    stages: list[StageStatus]
    exports: list[ExportStatus]
    funnel: Funnel | None
    carried: tuple[str, ...] = ()  # columns of the input that the export carries
    models: list[str] = field(default_factory=list)  # those of a hub, with their commits

    @property
    def outcome(self) -> Outcome:
        """What the rows came to so far."""
        return outcome_of(self.stages)

    def text(self) -> str:
        """Return a line a stage, and the funnel where the policy has decided every row."""
        lines = [self.described, *self.models, *(stage.line() for stage in self.stages)]
        lines += [export.line() for export in self.exports]
        told = [self.funnel.text()] if self.funnel else lines_of(self.outcome.failed)
        nothing = why_nothing(self.outcome)
        told += ["", nothing] if nothing else []
        lines += [f"carried to the export: {', '.join(self.carried)}"] if self.carried else []
        return "\n".join([*lines, *(["", *told] if told else [])])

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        return {
            "run": self.run_dir,
            "input": self.described,
            "models": self.models,
            "stages": [plain_status(stage) for stage in self.stages],
            "failures": plain_failures(self.outcome.failed),
            "carried": list(self.carried),
            "exports": [asdict(export) for export in self.exports],
            "funnel": None if self.funnel is None else self.funnel.plain(),
        }


def status(run_dir: Location) -> StatusResult:
    """Say how far the latest round of a run folder is."""
    ledger = existing_ledger(run_dir)
    record, manifest = latest_round(ledger)
    plan = plan_round(record.round, manifest, ledger)
    stages = [stage_status(ledger, plan, planned) for planned in plan.stages]
    exports = export_statuses(ledger)
    decided = not plan.missing(ledger, plan.stages[-1])
    failed = outcome_of(stages).failed
    marked = "image_in" in plan.producers
    funnel = (
        count_funnel(RunReader(ledger, plan), manifest.rows, failed, marked) if decided else None
    )
    kept = record.round.export.kept
    return StatusResult(
        str(run_dir),
        manifest.described,
        stages,
        exports,
        funnel,
        kept.names if kept else (),
        fetched_models(record.round),
    )


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What is wrong in a run folder or an export; nothing, where `problems` is empty.

    `moved`: what was moved away, from where to where.
    """

    run_dir: str
    problems: list[Problem] = field(default_factory=list)
    moved: list[tuple[str, str]] = field(default_factory=list)

    def text(self) -> str:
        """Return a line a problem, a line a file that was moved, and what to do."""
        if not self.problems:
            return f"{self.run_dir}: every file is whole and as it was written"
        lines = [f"{p.kind}: {p.path}: {p.detail}" for p in self.problems]
        lines += [f"moved: {path} -> {place}" for path, place in self.moved]
        return "\n".join([*lines, f"{counted(len(self.problems), 'problem')}{self._advice()}"])

    def _advice(self) -> str:
        kinds = {p.kind for p in self.problems}
        again = "the command that made it, given again, makes what is missing"
        if self.moved or not kinds & {"damaged", "foreign"}:
            return f"; {again}" if self.moved or "missing" in kinds else ""
        command = f"capfilt verify {shlex.quote(self.run_dir)} --repair"
        return f"; `{command}` moves away what is in the way, and {again}"

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        return {
            "run": self.run_dir,
            "problems": [asdict(p) for p in self.problems],
            "moved": [{"from": path, "to": place} for path, place in self.moved],
        }


def verify(run_dir: Location, progress: Progress, repair: bool = False) -> VerifyResult:
    """Read every file of the latest round again and its exports, or an export's folder.

    With `repair`, what is damaged or foreign is moved away, so that it can be made again.
    """
    ledger = existing_ledger(run_dir)
    if not ledger.stages() and is_export(run_dir):
        found = [Problem(p.kind, p.path, p.detail) for p in verify_export(run_dir)]
    else:
        found = verify_run(ledger, progress)
    return VerifyResult(str(run_dir), found, set_aside(ledger.publisher, found) if repair else [])


@dataclass(frozen=True, slots=True)
class GcResult:
    """What is not needed, and whether it was removed."""

    garbage: list[Garbage]
    removed: bool

    def text(self) -> str:
        """Return a line a file or folder."""
        if not self.garbage:
            return "there is nothing that may go"
        total = sum(item.size for item in self.garbage)
        lines = [f"{item.size:>14,} B  {item.path}  ({item.why})" for item in self.garbage]
        done = "removed" if self.removed else "would be freed; give --yes to remove"
        return "\n".join([*lines, f"{total:,} B {done}"])

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        items = [{"path": str(i.path), "bytes": i.size, "why": i.why} for i in self.garbage]
        return {"removed": self.removed, "garbage": items}


def gc(run_dir: Location, keep: int, yes: bool) -> GcResult:
    """List what the latest `keep` rounds do not need; remove it where `yes`."""
    from capfilt.engine.finish import export_name

    ledger = existing_ledger(run_dir)
    latest_round(ledger)  # refuses a folder that is no run
    plans: list[Plan] = []
    exports: list[str] = []
    beside: list[str] = []
    kept_rounds = recorded_rounds(ledger)[-keep:]
    for record in kept_rounds:
        kept = record.round.export.kept
        beside += [kept.stage] if kept else []
        plan = plan_round(record.round, load_manifest(ledger, record.manifest_id), ledger)
        plans += [plan, *plans_of(ledger, record.round)]
        exports.append(export_name(plan, record.round))
    made = exports_of(ledger, {record.name for record in kept_rounds})
    plans += [plan for plan in (plan_of(ledger, each) for each in made) if plan is not None]
    exports += [each.place for each in made]
    garbage = find_garbage(ledger, plans, exports, beside)
    if yes:
        remove(garbage)
    return GcResult(garbage, yes)
