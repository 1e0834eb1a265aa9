"""Fetching again what failed, where failing can be passing.

A retry adds an attempt; it rewrites nothing. The rows of shard S whose download failed in a way
that can pass become a shard of their own, `S~1.<download id>`, which goes through the same stages
as any other; `S~2…` holds those of `S~1…` that failed again. In S these rows stay failed, and the
counts of a run take the last attempt of each.
"""

from collections.abc import Iterable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.tally import again_tally
from capfilt.stages.download import can_pass

_MARK: Final = "~"


def with_attempts(ledger: Ledger, shards: Iterable[str], fetch_id: str) -> tuple[str, ...]:
    """Return `shards`, each followed by the attempts that exist for this download stage."""
    there = ledger.shards(source.STAGE)
    expanded: list[str] = []
    for shard in shards:
        name = shard
        while name in there or name == shard:
            expanded.append(name)
            name = next_attempt(name, fetch_id)
    return tuple(expanded)


def next_attempt(shard: str, fetch_id: str) -> str:
    """Return the name of the shard that holds what failed in `shard`."""
    base, _, rest = shard.partition(_MARK)
    attempt = int(rest.partition(".")[0]) if rest else 0
    return f"{base}{_MARK}{attempt + 1}.{fetch_id.rpartition('-')[2][:8]}"


def attempt_of(shard: str) -> int:
    """Return 0 for a shard of the input, n for the n-th attempt of one."""
    rest = shard.partition(_MARK)[2]
    return int(rest.partition(".")[0]) if rest else 0


def add_attempts(ledger: Ledger, shards: Iterable[str], fetch_id: str) -> list[str]:
    """Publish the next attempt of every shard whose last one left rows that can pass.

    Shards that are not downloaded yet are left alone. Returns the names of the new shards.
    """
    done, there = ledger.shards(fetch_id), ledger.shards(source.STAGE)
    added: list[str] = []
    for shard in shards:
        name = next_attempt(shard, fetch_id)
        if shard not in done or name in there:
            continue
        mask = _worth_again(ledger, shard, fetch_id)
        rows = _next_rows(ledger, shard, mask)
        if rows.num_rows:
            ledger.commit(_receipt(ledger, shard, fetch_id, name, mask), rows)
            added.append(name)
    return added


def _receipt(ledger: Ledger, shard: str, fetch_id: str, name: str, mask: pa.Array) -> Receipt:
    """Say of an attempt's rows of what they had failed, so that they are not counted twice."""
    had = again_tally(ledger, fetch_id, shard, mask)
    rows = pc.sum(mask).as_py()
    return Receipt(source.STAGE, name, rows, failures=had.kinds, failing_hosts=had.hosts)


def _worth_again(ledger: Ledger, shard: str, fetch_id: str) -> pa.Array:
    """Say which rows of a shard are worth another attempt."""
    outcome = ledger.read(fetch_id, shard, ["status", "error_message"])
    failed = pc.equal(outcome["status"], schema.FAILED_TO_DOWNLOAD).to_pylist()
    reasons = outcome["error_message"].to_pylist()
    mask = [bad and can_pass(reason) for bad, reason in zip(failed, reasons, strict=True)]
    return pa.array(mask, pa.bool_())


def _next_rows(ledger: Ledger, shard: str, mask: pa.Array) -> pa.Table:
    """Return the source rows of a shard that are tried again, with their attempt."""
    rows = ledger.read(source.STAGE, shard).filter(mask)
    attempts = pa.array([attempt_of(shard) + 1] * rows.num_rows, pa.int32())
    place = rows.schema.get_field_index("attempt")
    return rows.set_column(place, schema.SOURCE.field("attempt"), attempts)
