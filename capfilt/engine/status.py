"""How far a run is: what every stage has done, from the files that exist and their receipts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from capfilt import schema
from capfilt.engine.attempts import next_attempt
from capfilt.engine.plan import Plan, PlannedStage
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.source import rows_of
from capfilt.ledger.tally import UNDECODABLE, Outcome, Tally, counts_failures, less, merged, summed
from capfilt.wording import counted


@dataclass(frozen=True, slots=True)
class StageStatus:
    """What one stage has done. `seconds` is compute time over all workers; `counts` rows.

    `counts` and `failed` take the last attempt of a row; the other figures count every attempt.
    """

    id: str
    shards_done: int
    shards: int
    rows_done: int
    rows: int
    seconds: float
    counts: dict[str, int]
    failed: Tally = field(default_factory=Tally)

    @property
    def rows_per_second(self) -> float | None:
        """Rows that one worker does in a second, or None before the first shard."""
        return self.rows_done / self.seconds if self.seconds > 0 and self.rows_done else None

    def line(self) -> str:
        """Return one line for a person."""
        share = 100 * self.rows_done / self.rows if self.rows else 100.0
        rate = f", {self.rows_per_second:,.1f} rows/s a worker" if self.rows_per_second else ""
        failed = {k: n for k, n in self.counts.items() if k != "success"} or {
            reason: sum(kinds.values()) for reason, kinds in self.failed.kinds.items()
        }
        told = "".join(f", {name} {count:,}" for name, count in sorted(failed.items()))
        return (
            f"{self.id:<34} {self.shards_done:>6,} of {counted(self.shards, 'shard'):<8} "
            f"{counted(self.rows_done, 'row'):>14} ({share:.0f} %){rate}{told}"
        )


def stage_status(ledger: Ledger, plan: Plan, planned: PlannedStage) -> StageStatus:
    """Read the receipts of a stage."""
    there = ledger.shards(planned.id)
    done = [shard for shard in plan.shards if shard in there]
    return _summed(ledger, plan, planned, done)


def run_outcome(ledger: Ledger, plan: Plan) -> Outcome:
    """Read the receipts of those stages that can fail a row."""
    able = [planned for planned in plan.stages if counts_failures(planned.stage.adds)]
    return outcome_of([stage_status(ledger, plan, planned) for planned in able])


def outcome_of(stages: Sequence[StageStatus]) -> Outcome:
    """Add up the failed rows of several stages, the download's first.

    A stage of which nothing is done says nothing.
    """
    fetch = next((stage for stage in stages if stage.counts), None)
    if fetch is None:
        return Outcome()
    failed = merged(stage.failed for stage in stages)
    undecodable = max(sum(s.failed.kinds.get(UNDECODABLE, {}).values()) for s in stages)
    usable = fetch.counts.get(schema.SUCCESS, 0) - undecodable
    invalid = fetch.counts.get(schema.INVALID_URL, 0)
    return Outcome(fetch.shards_done == fetch.shards, usable, invalid, failed)


def _summed(ledger: Ledger, plan: Plan, planned: PlannedStage, done: Sequence[str]) -> StageStatus:
    counts: Counter[str] = Counter()
    rows, seconds = 0, 0.0

    def tallies() -> Iterator[Tally]:
        nonlocal rows, seconds
        for receipt in _last_attempts(ledger, planned.id, done):
            rows += receipt.rows
            seconds += receipt.seconds
            counts.update(receipt.counts)
            yield Tally(receipt.failures, receipt.failing_hosts)

    failed = summed(tallies())
    total = rows_of(plan.shards, ledger)
    return StageStatus(
        planned.id,
        len(done),
        len(plan.shards),
        rows,
        total,
        round(seconds, 3),
        dict(counts),
        failed,
    )


def _last_attempts(ledger: Ledger, stage: str, done: Iterable[str]) -> Iterator[Receipt]:
    """Yield the receipts of a stage, less the failures of rows that were fetched again since."""
    there = set(done)
    for shard in done:
        receipt = ledger.receipt(stage, shard)
        later = next_attempt(shard, stage)
        yield less(receipt, ledger.receipt(source.STAGE, later)) if later in there else receipt


def plain_status(status: StageStatus) -> dict[str, Any]:  # JSON
    """Return a stage's status for machines."""
    plain = {name: value for name, value in asdict(status).items() if name != "failed"}
    return {
        **plain,
        "rows_per_second": status.rows_per_second,
        "failures": status.failed.kinds,
    }
