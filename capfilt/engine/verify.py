"""Reading a whole run again: which files are torn, altered, missing or foreign."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from capfilt import schema
from capfilt.engine.attempts import attempt_of
from capfilt.engine.plan import Plan
from capfilt.errors import DamageError
from capfilt.export.kept import Kept
from capfilt.ledger import source
from capfilt.ledger.ledger import SUFFIX, Ledger
from capfilt.ledger.source import rows_of

Kind = Literal["damaged", "missing", "foreign", "unfinished"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One file that is not as it should be; `detail` says what and what to do."""

    kind: Kind
    path: str
    detail: str


def verify_ledger(
    ledger: Ledger,
    plan: Plan,
    told: Callable[[int], None] = lambda _: None,
    kept: Kept | None = None,
) -> list[Problem]:
    """Check every file of the plan's stages, and find those that belong to none.

    A shard that a later stage has done and an earlier one has not is a missing file; a shard that
    is merely not done yet is no problem. `told` is told rows as they are read. `kept`: the columns
    of the input that the export carries; they are there for every shard but those of retries.
    """
    problems: list[Problem] = []
    schemas = {source.STAGE: schema.SOURCE} | {p.id: p.stage.adds for p in plan.planned}
    for stage_id, expected in schemas.items():
        there = ledger.shards(stage_id)
        for shard in plan.shards:
            if shard in there:
                problems += _check(ledger, stage_id, shard, expected)
                told(rows_of([shard], ledger))
            elif stage_id == source.STAGE or _needed(ledger, plan, stage_id, shard):
                path = str(ledger.path(stage_id, shard))
                problems.append(Problem("missing", path, "later stages were computed from it"))
    if kept is not None:
        problems += _check_kept(ledger, plan, kept)
    return problems + _strays(ledger, set(plan.shards))


def _check(ledger: Ledger, stage_id: str, shard: str, expected: object) -> list[Problem]:
    path = str(ledger.path(stage_id, shard))
    try:
        receipt = ledger.check(stage_id, shard, expected)
        rows = ledger.receipt(source.STAGE, shard).rows
    except DamageError as error:
        return [Problem("damaged", path, str(error))]
    if receipt.rows != rows:
        return [Problem("damaged", path, f"has {receipt.rows} rows, its shard has {rows}")]
    return []


def _check_kept(ledger: Ledger, plan: Plan, kept: Kept) -> list[Problem]:
    there = ledger.shards(kept.stage)
    problems: list[Problem] = []
    for shard in plan.shards:
        if shard in there:
            problems += _check(ledger, kept.stage, shard, kept.schema)
        elif attempt_of(shard) == 0:
            path = str(ledger.path(kept.stage, shard))
            problems.append(Problem("missing", path, "the export carries its columns; run again"))
    return problems


def _needed(ledger: Ledger, plan: Plan, stage_id: str, shard: str) -> bool:
    """Say whether a stage that reads from `stage_id` has done this shard."""
    return any(stage_id in p.upstream and ledger.has(p.id, shard) for p in plan.planned)


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
