"""Fetching again what failed, where failing can be passing.

A retry adds an attempt; it rewrites nothing. The rows of shard S whose download failed in a way
that can pass become a shard of their own, `S~1.<download id>`, which goes through the same stages
as any other; `S~2…` holds those whose last attempt failed so again. In S these rows stay failed,
and the counts of a run take the last attempt of each.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import DamageError
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt, data_sha256
from capfilt.ledger.tally import again_tally, summed
from capfilt.stages.failures import can_pass

_MARK: Final = "~"
_CURES: Final[dict[str, set[str]]] = {
    "allow_private_hosts": {"private_address"},
    "user_agent": {"http_401", "http_403", "http_406"},
    "referer": {"http_401", "http_403", "http_406"},
    "proxy": {"dns"},  # a proxy resolves names itself
}


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


def add_attempts(
    ledger: Ledger, shards: Iterable[str], fetch_id: str, also: frozenset[str] = frozenset()
) -> list[str]:
    """Publish the next attempt of every shard that has rows whose last failure can pass.

    `also`: kinds of failure that are tried again as well, since what led to them has changed.
    Shards that are not downloaded yet, or whose last attempt is not, are left alone. Returns the
    names of the new shards.
    """
    done = ledger.shards(fetch_id)
    added: list[str] = []
    for shard in shards:
        chain = with_attempts(ledger, [shard], fetch_id)
        if attempt_of(shard) or not done.issuperset(chain):
            continue
        last = _last_outcomes(ledger, chain, fetch_id)
        worth = {key for key, (_, kind) in last.items() if can_pass(kind) or kind in also}
        if worth:
            name = next_attempt(chain[-1], fetch_id)
            receipt = _receipt(ledger, chain, fetch_id, last, worth)
            rows = _next_rows(ledger, chain, worth)
            ledger.commit(dataclasses.replace(receipt, shard=name), rows)
            added.append(name)
    return added


def cures_of(given: Mapping[str, object]) -> frozenset[str]:
    """Return kinds of failure that do not pass by themselves, but may with these options."""
    return frozenset().union(*(kinds for name, kinds in _CURES.items() if given.get(name)))


def _last_outcomes(
    ledger: Ledger, chain: Sequence[str], fetch_id: str
) -> dict[str, tuple[str, str | None]]:
    """Return in which shard each row's last outcome stands, and the kind of its failure.

    `chain`: the shard and its attempts. An attempt holds only what was worth one at its time, so a
    row's last outcome can be in any of them.
    """
    last: dict[str, tuple[str, str | None]] = {}
    for shard in chain:
        outcome = ledger.read(fetch_id, shard, ["status", "failure"])
        failed = pc.equal(outcome["status"], schema.FAILED_TO_DOWNLOAD).to_pylist()
        kinds = outcome["failure"].to_pylist()
        for key, bad, kind in zip(_keys(ledger, shard), failed, kinds, strict=True):
            last[key] = (shard, kind if bad else None)
    return last


def _receipt(
    ledger: Ledger,
    chain: Sequence[str],
    fetch_id: str,
    last: Mapping[str, tuple[str, str | None]],
    worth: Set[str],
) -> Receipt:
    """Say of an attempt's rows of what they had failed, so that they are not counted twice."""
    tallies = []
    for shard in chain:
        mask = [key in worth and last[key][0] == shard for key in _keys(ledger, shard)]
        tallies.append(again_tally(ledger, fetch_id, shard, pa.array(mask, pa.bool_())))
    had = summed(tallies)
    return Receipt(source.STAGE, "", len(worth), failures=had.kinds, failing_hosts=had.hosts)


def _next_rows(ledger: Ledger, chain: Sequence[str], worth: Set[str]) -> pa.Table:
    """Return the source rows of a shard that are tried again, with their attempt."""
    mask = [key in worth for key in _keys(ledger, chain[0])]
    rows = ledger.read(source.STAGE, chain[0]).filter(pa.array(mask, pa.bool_()))
    attempts = pa.array([attempt_of(chain[-1]) + 1] * rows.num_rows, pa.int32())
    place = rows.schema.get_field_index("attempt")
    return rows.set_column(place, schema.SOURCE.field("attempt"), attempts)


def lost_attempts(
    ledger: Ledger, shards: Iterable[str], fetch_id: str
) -> list[tuple[list[str], str]]:
    """Return (shard and attempts before, attempt) where an attempt was fetched and has no rows."""
    done, there = ledger.shards(fetch_id), ledger.shards(source.STAGE)
    everything = done | there
    lost: list[tuple[list[str], str]] = []
    for shard in shards:
        chain = [shard]
        while (following := next_attempt(chain[-1], fetch_id)) in everything:
            if following not in there:
                lost.append((list(chain), following))
            chain.append(following)
    return lost


def restore_attempts(ledger: Ledger, shards: Iterable[str], fetch_id: str) -> None:
    """Publish the rows of lost attempts again: those that had failed by then.

    Raises:
        DamageError: no retry that there can have been gives the rows that were fetched.
    """
    for chain, name in lost_attempts(ledger, shards, fetch_id):
        wanted = ledger.receipt(fetch_id, name).inputs.get(source.STAGE)
        if not any(_restored(ledger, chain, name, fetch_id, also, wanted) for also in _all_cures()):
            raise DamageError(
                f"{ledger.path(source.STAGE, name)} is missing and cannot be made again; remove "
                f"{ledger.path(fetch_id, name)} as well, and `capfilt retry` fetches its rows again"
            )


def _restored(
    ledger: Ledger,
    chain: Sequence[str],
    name: str,
    fetch_id: str,
    also: frozenset[str],
    wanted: str | None,
) -> bool:
    """Publish a lost attempt again, if a retry with these cures had begun it."""
    last = _last_outcomes(ledger, chain, fetch_id)
    worth = {key for key, (_, kind) in last.items() if can_pass(kind) or kind in also}
    rows = _next_rows(ledger, chain, worth)
    if rows.num_rows != ledger.receipt(fetch_id, name).rows:
        return False
    if wanted is not None and data_sha256(rows) != wanted:
        return False
    receipt = dataclasses.replace(_receipt(ledger, chain, fetch_id, last, worth), shard=name)
    return ledger.commit(receipt, rows)


def _all_cures() -> list[frozenset[str]]:
    """Return what retries can have tried besides what can pass, from nothing to all."""
    each = sorted({frozenset(kinds) for kinds in _CURES.values()}, key=sorted)
    sets = [some for n in range(len(each) + 1) for some in itertools.combinations(each, n)]
    return [frozenset().union(*some) for some in sets]


def _keys(ledger: Ledger, shard: str) -> list[str]:
    keys: list[str] = ledger.read(source.STAGE, shard, ["key"])["key"].to_pylist()
    return keys
