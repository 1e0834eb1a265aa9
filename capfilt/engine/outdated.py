"""What a run does again because a stage's code has changed, and why: told once, before that."""

from collections.abc import Iterator

from capfilt.engine.plan import Plan, PlannedStage
from capfilt.errors import DamageError
from capfilt.ledger.ledger import Ledger


def outdated(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Yield a line for every stage whose missing shards an older version of it has done.

    Only stages that say what has changed (`changes`, see stage.py) are spoken of.
    """
    folders = ledger.stages()
    for planned in plan.stages:
        changes: dict[int, str] = getattr(planned.stage, "changes", {})
        if changes:
            yield from _told(plan, ledger, planned, changes, folders)


def _told(
    plan: Plan, ledger: Ledger, planned: PlannedStage, changes: dict[int, str], folders: list[str]
) -> Iterator[str]:
    stage = planned.stage
    missing = set(plan.missing(ledger, planned))
    again: set[str] = set()
    reasons: dict[int, str] = {}
    for folder in folders:
        done = missing & ledger.shards(folder) if folder.startswith(f"{stage.name}-") else set()
        version = _version(ledger, folder, min(done)) if done else stage.version
        if version < stage.version:
            again |= done
            reasons |= {v: why for v, why in changes.items() if version < v <= stage.version}
    if reasons:
        why = "; ".join(reasons[version] for version in sorted(reasons))
        yield (
            f"{stage.name}: {len(again):,} of {len(plan.shards):,} shards are there by an older "
            f"version of this stage. They are done again, with all that is built on them, because "
            f"{why}. The old files stay where they are"
        )


def _version(ledger: Ledger, folder: str, shard: str) -> int:
    try:
        return ledger.receipt(folder, shard).version
    except DamageError:
        return 1  # what cannot be read is of no use either way
