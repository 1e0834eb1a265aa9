"""What the verbs that advance a round share: its checks, and the way to its end."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from capfilt.commands.hardware import Hardware, resources_for
from capfilt.engine import passes as engine
from capfilt.engine.finish import Finished, finish
from capfilt.engine.outdated import outdated
from capfilt.engine.passes import Resources
from capfilt.engine.plan import Plan, RunReader
from capfilt.engine.precision import check_precisions, precision_hint, precision_warning
from capfilt.engine.record import RecordedRound, plan_round
from capfilt.engine.status import run_outcome
from capfilt.engine.verify import Problem, damaged_exports, set_aside
from capfilt.errors import InputError, NothingUsableError
from capfilt.export.kept import kept_of
from capfilt.inputs import Input
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.publish import check_writable
from capfilt.ledger.source import SourceManifest, check_shard_rows, kept_stage
from capfilt.ledger.tally import Outcome
from capfilt.progress import Progress, Say
from capfilt.recipe.options import warnings_of
from capfilt.recipe.round import Round
from capfilt.report.failures import lines_of, plain_failures, why_nothing
from capfilt.store.location import Location, location

LATEST: Final = "latest"  # the link in a run folder to the export of its latest round


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to: `finished` is None where there is more to do, `left` says what then."""

    run_dir: str
    finished: Finished | None
    so_far: Outcome = Outcome()  # of a run that is not finished
    left: str = "Something is left to do; run the same command again."

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


def check_run(recipe: Round, out: Location, hardware: Hardware, say: Say) -> Resources:
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
    return resources_for(recipe, hardware)


def check_models(
    ledger: Ledger, recipe: Round, plan_: Plan, resources: Resources, say: Say
) -> None:
    """Say what is done again; load each model that has work to do, before the download.

    Raises:
        InputError: a precision that this machine does not have.
        ModelError: a checkpoint is incomplete or of the wrong kind.
    """
    for line in outdated(plan_, ledger):
        say(line)
    stages = engine.models_at_work(plan_, ledger)
    if not stages:
        return
    check_precisions(recipe.precisions, resources.devices)
    engine.check_models(stages)
    slow = precision_warning(recipe.precisions, resources.devices)
    hint = precision_hint(recipe.models, recipe.precisions, resources.devices)
    for line in filter(None, (slow, hint)):
        say(line)


def advance_round(
    ledger: Ledger,
    record: RecordedRound,
    manifest: SourceManifest,
    resources: Resources,
    progress: Progress,
    say: Say,
) -> RunResult:
    """Advance a recorded round as far as this rank can; at its end, export it.

    Raises:
        CapfiltError: what any stage, or the export, raises.
    """
    recipe = record.round
    move_away(ledger, damaged_exports(ledger), say)
    plan_ = plan_round(recipe, manifest, ledger)
    if not engine.advance(plan_, ledger, resources, progress, say):
        return RunResult(str(ledger.root), None, run_outcome(ledger, plan_))
    reader = RunReader(ledger, plan_)
    done = finish(reader, recipe, manifest, None, progress, say, of=record.name)
    point_to_latest(ledger, done, say)
    return RunResult(str(ledger.root), done)


def point_to_latest(ledger: Ledger, done: Finished, say: Say) -> None:
    """Let `latest` in the run folder lead to the export of its latest round."""
    if not ledger.publisher.point(LATEST, location(done.dataset).name):
        say(
            f"warning: {ledger.root / LATEST} is not the link to the latest export that it should "
            "be (a copy that followed links?); remove it, and the next run makes the link"
        )


def move_away(ledger: Ledger, damaged: Sequence[Problem], say: Say) -> None:
    """Move away damaged records, which the command at hand writes again."""
    for path, place in set_aside(ledger.publisher, damaged):
        say(f"warning: {path} was damaged; it lies in {place} now")


def carrying(recipe: Round, data: Input) -> Round:
    """Return the recipe whose export carries the columns that the input was asked for.

    Raises:
        InputError: two columns of the export would have the same name.
    """
    export = dataclasses.replace(recipe.export, kept=kept_of(kept_stage(data), data.kept))
    _ = export.carried  # refuses names that collide, before any work
    return dataclasses.replace(recipe, export=export)


def check_texts(recipe: Round, manifest: SourceManifest) -> None:
    """Refuse a round that keeps the input's texts, of which there are none."""
    if recipe.raw and manifest.empty_captions == manifest.rows:
        raise InputError(
            f"{manifest.described}: no row has a text, and the policy 'raw' keeps nothing else; "
            "give another --policy, whose captioner writes texts"
        )


def existing_ledger(run_dir: Location) -> Ledger:
    """Return the ledger of a run folder that is there.

    Raises:
        InputError: it is not.
    """
    if not run_dir.is_dir():
        raise InputError(f"there is no run folder {run_dir}; `capfilt run` makes one")
    return Ledger(run_dir)
