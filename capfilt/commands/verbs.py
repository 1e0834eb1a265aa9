"""What the verbs of the command line do. Each returns a result that renders itself."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from capfilt import schema
from capfilt.engine import attempts
from capfilt.engine import passes as engine
from capfilt.engine.exports import ExportStatus, export_statuses, exports_of, plan_of
from capfilt.engine.finish import Finished, check_place, finish
from capfilt.engine.garbage import Garbage, find_garbage, remove
from capfilt.engine.outdated import outdated
from capfilt.engine.passes import Progress, Resources
from capfilt.engine.plan import Plan, RunReader
from capfilt.engine.status import (
    StageStatus,
    outcome_of,
    plain_status,
    run_outcome,
    stage_status,
)
from capfilt.engine.verify import Problem, damaged_exports, damaged_records, set_aside, verify_run
from capfilt.errors import InputError, NothingUsableError
from capfilt.export.kept import kept_of
from capfilt.export.place import is_export
from capfilt.export.verify import verify_export
from capfilt.flags import replaced
from capfilt.inputs import Input, InputSpec, open_input
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.publish import check_writable
from capfilt.ledger.source import (
    SourceManifest,
    check_shard_rows,
    cut,
    kept_stage,
    load_manifest,
    peek,
    rows_of,
)
from capfilt.ledger.tally import Outcome
from capfilt.option import WORK, check_options, option
from capfilt.recipe.options import RoundOptions, build_round, exported_with, warnings_of
from capfilt.recipe.round import (
    RecordedRound,
    Round,
    fetched_models,
    latest_round,
    moved_models,
    plan_round,
    record_round,
    recorded_rounds,
)
from capfilt.report.failures import lines_of, plain_failures, why_nothing
from capfilt.report.funnel import Funnel, count_funnel
from capfilt.stages.download.notes import fetch_notes
from capfilt.usercode import load_named
from capfilt.wording import counted

Say = Callable[[str], None]
LATEST: Final = "latest"  # the link in a run folder to the export of its latest round


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a command may use of this machine, and which job of an array it is."""

    workers: int | None = option(
        None,
        "Processes",
        panel=WORK,
        shown="as many as cores, or devices, and memory bear",
        at_least=1,
    )
    device: str = option("auto", "auto, cpu, cuda, or some: cuda:0,cuda:2", panel=WORK)
    rank: int = option(0, "Which job of a job array, counted from 0", panel=WORK, at_least=0)
    world_size: int = option(1, "How many jobs the array has", panel=WORK, at_least=1)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to: `finished` is None where there is more to do, `left` says what then."""

    run_dir: str
    finished: Finished | None
    so_far: Outcome = Outcome()  # of a run that is not finished
    left: str = "This rank is done. When all ranks are, run once more without --rank."

    @property
    def outcome(self) -> Outcome:
        """What the rows came to."""
        return self.so_far if self.finished is None else self.finished.outcome

    @property
    def error(self) -> NothingUsableError | None:
        """Why this is no success, though nothing broke: every row failed."""
        why = why_nothing(self.outcome)
        return None if why is None else NothingUsableError(why)

    def text(self) -> str:
        """Return what a person reads at the end."""
        if self.finished is None:
            return "\n".join([*lines_of(self.outcome.failed), self.left])
        return self.finished.text()

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        finished = None if self.finished is None else self.finished.plain()
        return {
            "run": self.run_dir,
            "complete": self.finished is not None,
            "failures": plain_failures(self.outcome.failed),
            "result": finished,
        }


def run(
    spec: InputSpec,
    options: RoundOptions,
    out: Path,
    hardware: Hardware,
    progress: Progress,
    say: Say,
) -> RunResult:
    """Check everything, cut the input, and advance the round as far as this rank can."""
    data = open_input(spec)
    return run_round(data, build_round(options), out, hardware, progress, say)


def run_round(
    data: Input, recipe: Round, out: Path, hardware: Hardware, progress: Progress, say: Say
) -> RunResult:
    """Run a round that is given as a recipe; see `run`."""
    resources = check_run(recipe, out, hardware, say)
    recipe = _carrying(recipe, data)
    for warning in warnings_of(recipe):
        say(f"warning: {warning}")
    for note in [] if data.local else fetch_notes(recipe.fetch):
        say(f"note: {note}")
    for model in fetched_models(recipe):
        say(f"model: {model}")
    ledger = _writable(out)
    _move_away(ledger, damaged_records(ledger), say)
    say(f"input: {data.describe()}")
    with progress("input", data.row_count_hint or 0) as told:
        manifest = cut(data, ledger, recipe.shard_rows, told)
    _check_texts(recipe, manifest)
    say(_input_line(manifest))
    for line in moved_models(ledger, recipe):
        say(line)
    _check_models(ledger, recipe, plan_round(recipe, manifest, ledger), resources, say)
    record = record_round(ledger, recipe, manifest.id)
    plan_ = plan_round(recipe, manifest, ledger)
    attempts.restore_attempts(ledger, manifest.shards, plan_.planned[0].id)
    return _advance(ledger, record, manifest, resources, progress, say)


def check_run(recipe: Round, out: Path, hardware: Hardware, say: Say) -> Resources:
    """Check what needs no reading of the input and no writing, for `run` and for `plan`.

    Returns what may be used.

    Raises:
        InputError: the run folder is a file, or what may be used is not there.
        StorageError: the run folder cannot be written.
    """
    for warning in warnings_of(recipe):
        say(f"warning: {warning}")
    if out.exists() and not out.is_dir():
        raise InputError(f"--run {out} is a file; give a folder")
    check_writable(out)
    check_shard_rows(recipe.shard_rows)
    return _resources(recipe, hardware)


def retry(
    run_dir: Path,
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
    ledger = _existing(run_dir)
    record, manifest = latest_round(ledger)
    recipe = dataclasses.replace(record.round, fetch=replaced(record.round.fetch, given))
    for note in fetch_notes(recipe.fetch):
        say(f"note: {note}")
    resources = _resources(recipe, hardware)
    plan = plan_round(recipe, manifest, ledger)
    fetch = plan.planned[0]
    attempts.add_attempts(ledger, plan.shards, fetch.id, attempts.cures_of(given))
    plan = plan_round(recipe, manifest, ledger)
    # Also those that a retry added which was killed before it fetched them.
    again = [shard for shard in plan.missing(ledger, fetch) if attempts.attempt_of(shard)]
    say(f"retry: {counted(rows_of(again, ledger), 'row')} to fetch again")
    if not fetch_only:
        _check_models(ledger, recipe, plan, resources, say)
        record = dataclasses.replace(record, round=recipe)
        return _advance(ledger, record, manifest, resources, progress, say)
    engine.run_pass(plan, ledger, (plan.planned[0],), resources, progress)
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
class Exporting:
    """Where an export goes (None: into the run folder), and the figures that differ from the run's.

    `figures` are options of the policy and of the export by the names of their flags. `replace`:
    another or a damaged export in the folder is replaced as a whole.
    """

    to: Path | None = None
    figures: Mapping[str, object] = field(default_factory=dict)
    replace: bool = False


def export(run_dir: Path, how: Exporting, progress: Progress, say: Say) -> RunResult:
    """Export a finished run again: elsewhere, by another threshold, in other file sizes."""
    for value in how.figures.values():
        load_named(value)  # the run may have been exported so too
    ledger = _existing(run_dir)
    record, manifest = latest_round(ledger)
    recipe = exported_with(record.round, how.figures)
    plan = plan_round(recipe, manifest, ledger)
    unfinished = [p.stage.name for p in plan.planned[:-1] if plan.missing(ledger, p)]
    if unfinished:
        raise InputError(f"{run_dir} is not finished ({', '.join(unfinished)}); run it first")
    _move_away(ledger, damaged_exports(ledger), say)
    check_place(plan, recipe, ledger, how.to, how.replace)
    engine.advance(plan, ledger, Resources(), progress)
    reader = RunReader(ledger, plan)
    done = finish(
        reader, recipe, manifest, how.to, progress, say, of=record.name, replace=how.replace
    )
    if how.to is None and recipe == record.round:
        _point_to_latest(ledger, done, say)
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


def status(run_dir: Path) -> StatusResult:
    """Say how far the latest round of a run folder is."""
    ledger = _existing(run_dir)
    record, manifest = latest_round(ledger)
    plan = plan_round(record.round, manifest, ledger)
    stages = [stage_status(ledger, plan, planned) for planned in plan.planned]
    exports = export_statuses(ledger)
    decided = not plan.missing(ledger, plan.planned[-1])
    failed = outcome_of(stages).failed
    funnel = count_funnel(RunReader(ledger, plan), manifest.rows, failed) if decided else None
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


def verify(run_dir: Path, progress: Progress, repair: bool = False) -> VerifyResult:
    """Read every file of the latest round again and its exports, or an export's folder.

    With `repair`, what is damaged or foreign is moved away, so that it can be made again.
    """
    ledger = _existing(run_dir)
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


def gc(run_dir: Path, keep: int, yes: bool) -> GcResult:
    """List what the latest `keep` rounds do not need; remove it where `yes`."""
    from capfilt.engine.finish import export_name

    ledger = _existing(run_dir)
    latest_round(ledger)  # refuses a folder that is no run
    plans: list[Plan] = []
    exports: list[str] = []
    beside: list[str] = []
    kept_rounds = recorded_rounds(ledger)[-keep:]
    for record in kept_rounds:
        kept = record.round.export.kept
        beside += [kept.stage] if kept else []
        plan = plan_round(record.round, load_manifest(ledger, record.manifest_id), ledger)
        plans.append(plan)
        exports.append(export_name(plan, record.round))
    made = exports_of(ledger, {record.name for record in kept_rounds})
    plans += [plan for plan in (plan_of(ledger, each) for each in made) if plan is not None]
    exports += [each.place for each in made]
    garbage = find_garbage(ledger, plans, exports, beside)
    if yes:
        remove(garbage)
    return GcResult(garbage, yes)


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a run would do: per stage the shards and rows that are missing."""

    described: str
    rows: int
    lines: list[dict[str, Any]]  # JSON: stage id, shards and rows missing, estimated seconds

    def text(self) -> str:
        """Return a line a stage."""
        lines = [f"{self.described}: {counted(self.rows, 'row')}"]
        for entry in self.lines:
            seconds = entry["estimated_seconds"]
            cost = f"about {seconds:,.0f} s" if seconds is not None else "cost unknown yet"
            lines.append(
                f"{entry['stage']:<34} {entry['shards_missing']:>6,} of "
                f"{counted(entry['shards'], 'shard')} to do, "
                f"{counted(entry['rows_missing'], 'row')}, {cost}"
            )
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        return {"input": self.described, "rows": self.rows, "stages": self.lines}


def plan(
    spec: InputSpec, options: RoundOptions, out: Path, hardware: Hardware, say: Say
) -> PlanResult:
    """Say what a run would do, without writing anything; refuses what `run` refuses."""
    from capfilt.engine.cost import estimate

    data = open_input(spec)
    recipe = build_round(options)
    resources = check_run(recipe, out, hardware, say)
    recipe = _carrying(recipe, data)
    if not data.local:
        fetch_notes(recipe.fetch)  # refuses what `run` refuses
    ledger = Ledger(out)
    manifest = peek(data, ledger, recipe.shard_rows)
    _check_texts(recipe, manifest)
    planned = plan_round(recipe, manifest, ledger)
    _check_models(ledger, recipe, planned, resources, say)
    lines = [estimate(ledger, planned, entry) for entry in planned.planned]
    return PlanResult(data.describe(), manifest.rows, lines)


def _check_models(
    ledger: Ledger, recipe: Round, plan_: Plan, resources: Resources, say: Say
) -> None:
    """Say what is done again; load each model that has work to do, before the download.

    Raises:
        ModelError: a checkpoint is incomplete or of the wrong kind.
    """
    for line in outdated(plan_, ledger):
        say(line)
    if engine.check_models(plan_, ledger):
        slow = engine.bf16_warning(recipe.precisions, resources.devices)
        hint = engine.precision_hint(recipe.models, recipe.precisions, resources.devices)
        for line in filter(None, (slow, hint)):
            say(line)


def _advance(
    ledger: Ledger,
    record: RecordedRound,
    manifest: SourceManifest,
    resources: Resources,
    progress: Progress,
    say: Say,
) -> RunResult:
    recipe = record.round
    _move_away(ledger, damaged_exports(ledger), say)
    plan_ = plan_round(recipe, manifest, ledger)
    if not engine.advance(plan_, ledger, resources, progress):
        return RunResult(str(ledger.root), None, run_outcome(ledger, plan_))
    reader = RunReader(ledger, plan_)
    done = finish(reader, recipe, manifest, None, progress, say, of=record.name)
    _point_to_latest(ledger, done, say)
    return RunResult(str(ledger.root), done)


def _point_to_latest(ledger: Ledger, done: Finished, say: Say) -> None:
    """Let `latest` in the run folder lead to the export of its latest round."""
    if not ledger.publisher.point(LATEST, Path(done.dataset).name):
        say(
            f"warning: {ledger.root / LATEST} is not the link to the latest export that it should "
            "be (a copy that followed links?); remove it, and the next run makes the link"
        )


def _move_away(ledger: Ledger, damaged: Sequence[Problem], say: Say) -> None:
    """Move away damaged records, which the command at hand writes again."""
    for path, place in set_aside(ledger.publisher, damaged):
        say(f"warning: {path} was damaged; it lies in {place} now")


def _resources(recipe: Round, hardware: Hardware) -> Resources:
    devices = engine.choose_devices(hardware.device)
    workers = engine.choose_workers(hardware.workers, recipe.models, devices)
    host_workers = engine.choose_host_workers(hardware.workers)
    return Resources(workers, host_workers, devices, hardware.rank, hardware.world_size)


def _carrying(recipe: Round, data: Input) -> Round:
    """Return the recipe whose export carries the columns that the input was asked for.

    Raises:
        InputError: two columns of the export would have the same name.
    """
    export = dataclasses.replace(recipe.export, kept=kept_of(kept_stage(data), data.kept))
    _ = export.carried  # refuses names that collide, before any work
    return dataclasses.replace(recipe, export=export)


def _check_texts(recipe: Round, manifest: SourceManifest) -> None:
    """Refuse a round that keeps the input's texts, of which there are none."""
    if recipe.raw and manifest.empty_captions == manifest.rows:
        raise InputError(
            f"{manifest.described}: no row has a text, and the policy 'raw' keeps nothing else; "
            "give another --policy, whose captioner writes texts"
        )


def _writable(out: Path) -> Ledger:
    """Return the ledger of a run folder that can be written, cleared of what the dead left."""
    ledger = Ledger(out)
    with ledger.publisher.scratch_dir():
        pass  # raises a StorageError that says why, before any work
    ledger.publisher.sweep()
    return ledger


def _existing(run_dir: Path) -> Ledger:
    if not run_dir.is_dir():
        raise InputError(f"there is no run folder {run_dir}; `capfilt run` makes one")
    return Ledger(run_dir)


def _input_line(manifest: SourceManifest) -> str:
    return (
        f"input: {counted(manifest.rows, 'row')} in {counted(len(manifest.shards), 'shard')}; "
        f"{manifest.duplicate_urls:,} with an address that an earlier row has, "
        f"{manifest.invalid_urls:,} without a usable one, "
        f"{manifest.empty_captions:,} without a text (their images are captioned all the same)"
    )
