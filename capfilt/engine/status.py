"""How far a run is: what every stage has done, from the files that exist and their receipts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capfilt.engine.plan import Plan, Planned
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import rows_of


@dataclass(frozen=True, slots=True)
class StageStatus:
    """What one stage has done. `seconds` is compute time over all workers; `counts` rows."""

    id: str
    shards_done: int
    shards: int
    rows_done: int
    rows: int
    seconds: float
    counts: dict[str, int]

    @property
    def rows_per_second(self) -> float | None:
        """Rows that one worker does in a second, or None before the first shard."""
        return self.rows_done / self.seconds if self.seconds > 0 and self.rows_done else None

    def line(self) -> str:
        """Return one line for a person."""
        share = 100 * self.rows_done / self.rows if self.rows else 100.0
        rate = f", {self.rows_per_second:,.1f} rows/s a worker" if self.rows_per_second else ""
        failed = {k: n for k, n in self.counts.items() if k != "success"}
        told = "".join(f", {name} {count:,}" for name, count in sorted(failed.items()))
        return (
            f"{self.id:<34} {self.shards_done:>6,} of {self.shards:,} shards  "
            f"{self.rows_done:>9,} rows ({share:.0f} %){rate}{told}"
        )


def stage_status(ledger: Ledger, plan: Plan, planned: Planned) -> StageStatus:
    """Read the receipts of a stage."""
    there = ledger.shards(planned.id)
    done = [shard for shard in plan.shards if shard in there]
    return _summed(ledger, plan, planned, done)


def _summed(ledger: Ledger, plan: Plan, planned: Planned, done: Sequence[str]) -> StageStatus:
    counts: Counter[str] = Counter()
    rows, seconds = 0, 0.0
    for shard in done:
        receipt = ledger.receipt(planned.id, shard)
        rows += receipt.rows
        seconds += receipt.seconds
        counts.update(receipt.counts)
    total = rows_of(plan.shards, ledger)
    return StageStatus(
        planned.id, len(done), len(plan.shards), rows, total, round(seconds, 3), dict(counts)
    )


def plain_status(status: StageStatus) -> dict[str, Any]:  # JSON
    """Return a stage's status for machines."""
    return {**asdict(status), "rows_per_second": status.rows_per_second}
