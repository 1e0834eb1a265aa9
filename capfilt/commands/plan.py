"""`capfilt plan`: what a run would do, and what that costs."""

from dataclasses import dataclass
from typing import Any

from capfilt.commands.advance import carrying, check_models, check_run, check_texts
from capfilt.commands.hardware import Hardware
from capfilt.engine.evaluation import looking_for, walked_sets
from capfilt.engine.record import plan_round
from capfilt.inputs import InputSpec, open_input
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.memory import Memory
from capfilt.ledger.source import peek
from capfilt.progress import Say
from capfilt.recipe.options import RoundOptions, build_round
from capfilt.stages.download.notes import fetch_notes
from capfilt.store.location import Location
from capfilt.wording import counted


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
    spec: InputSpec, options: RoundOptions, out: Location, hardware: Hardware, say: Say
) -> PlanResult:
    """Say what a run would do, without writing anything; refuses what `run` refuses."""
    from capfilt.engine.cost import estimate

    recipe = build_round(options)
    data = open_input(spec, Memory(Ledger(out), recipe.shard_rows))
    resources = check_run(recipe, out, hardware, say)
    recipe = carrying(recipe, data)
    if not data.local:
        fetch_notes(recipe.fetch)  # refuses what `run` refuses
    ledger = Ledger(out)
    manifest = peek(data, ledger, recipe.shard_rows)
    check_texts(recipe, manifest)
    sets = walked_sets(spec.decontaminate, ledger, recipe.shard_rows, peek)
    recipe = looking_for(recipe, sets, not spec.keep_contaminated)
    planned = plan_round(recipe, manifest, ledger)
    check_models(ledger, recipe, planned, resources, say)
    lines = [estimate(ledger, planned, entry) for entry in planned.stages]
    return PlanResult(data.describe(), manifest.rows, lines)
