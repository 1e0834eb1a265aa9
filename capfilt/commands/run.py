"""`capfilt run`: a round from its input to its export."""

from dataclasses import dataclass

from capfilt.commands.advance import (
    RunResult,
    advance_round,
    carrying,
    check_models,
    check_run,
    check_texts,
    move_away,
)
from capfilt.commands.hardware import Hardware
from capfilt.engine import attempts
from capfilt.engine.evaluation import check_sets, looking_for, see_sets, walked_sets
from capfilt.engine.record import fetched_models, moved_models, plan_round, record_round
from capfilt.engine.verify import damaged_records
from capfilt.inputs import Input, InputSpec, open_input
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.memory import Memory
from capfilt.ledger.source import SourceManifest, cut
from capfilt.progress import Progress, Say
from capfilt.recipe.options import RoundOptions, build_round, warnings_of
from capfilt.recipe.round import Round
from capfilt.stages.download.notes import fetch_notes
from capfilt.store.location import Location
from capfilt.wording import counted


def run(
    spec: InputSpec,
    options: RoundOptions,
    out: Location,
    hardware: Hardware,
    progress: Progress,
    say: Say,
) -> RunResult:
    """Check everything, cut the input, and advance the round as far as this rank can."""
    recipe = build_round(options)
    data = open_input(spec, Memory(Ledger(out), recipe.shard_rows))
    return run_round(data, recipe, out, hardware, progress, say, Against.of(spec))


@dataclass(frozen=True, slots=True)
class Against:
    """Evaluation sets, by their folders, and whether what stands in them is left out."""

    folders: tuple[str, ...] = ()
    drop: bool = True

    @classmethod
    def of(cls, spec: InputSpec) -> "Against":
        """Take what was given with an input."""
        return cls(spec.decontaminate, not spec.keep_contaminated)


def run_round(
    data: Input,
    recipe: Round,
    out: Location,
    hardware: Hardware,
    progress: Progress,
    say: Say,
    against: Against = Against(),
) -> RunResult:
    """Run a round that is given as a recipe; see `run`."""
    check_sets(against.folders, Ledger(out), recipe.shard_rows)
    resources = check_run(recipe, out, hardware, say)
    recipe = carrying(recipe, data)
    for warning in warnings_of(recipe):
        say(f"warning: {warning}")
    for note in [] if data.local else fetch_notes(recipe.fetch):
        say(f"note: {note}")
    for model in fetched_models(recipe):
        say(f"model: {model}")
    ledger = _writable(out)
    move_away(ledger, damaged_records(ledger), say)
    say(f"input: {data.describe()}")
    with progress("input", data.row_count_hint or 0) as told:
        manifest = cut(data, ledger, recipe.shard_rows, told, resources.host_workers)
    check_texts(recipe, manifest)
    say(_input_line(manifest))
    sets = walked_sets(against.folders, ledger, recipe.shard_rows, cut)
    recipe = looking_for(recipe, sets, against.drop)
    for name, seen in sets:
        say(f"evaluation set: {name}, {counted(seen.rows, 'row')}")
    for line in moved_models(ledger, recipe):
        say(line)
    check_models(ledger, recipe, plan_round(recipe, manifest, ledger), resources, say)
    record = record_round(ledger, recipe, manifest.id)
    plan_ = plan_round(recipe, manifest, ledger)
    if not see_sets(ledger, recipe, resources, progress):
        return RunResult(str(out), None)
    attempts.restore_attempts(ledger, manifest.shards, plan_.stages[0].id)
    return advance_round(ledger, record, manifest, resources, progress, say)


def _writable(out: Location) -> Ledger:
    """Return the ledger of a run folder that can be written, cleared of what the dead left."""
    ledger = Ledger(out)
    ledger.publisher.check()
    ledger.publisher.sweep()
    return ledger


def _input_line(manifest: SourceManifest) -> str:
    return (
        f"input: {counted(manifest.rows, 'row')} in {counted(len(manifest.shards), 'shard')}; "
        f"{manifest.duplicate_urls:,} with an address that an earlier row has, "
        f"{manifest.invalid_urls:,} without a usable one, "
        f"{manifest.empty_captions:,} without a text (their images are captioned all the same)"
    )
