"""Failures counted: by kind and by host, for a shard's receipt and over the receipts of a run.

A stage's receipt says how many of the shard's rows failed, of which kind and at which host, so
that nothing reads the rows again to know it. A row that was fetched again counts by its last
attempt: the source receipt of an attempt says of what its rows had failed, and that is taken off.

Host names are strangers' text: they are cut, lower-cased, and hold ASCII letters and digits alone.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt

# A reason of the funnel, or a host -> kind of failure -> rows.
Counts = dict[str, dict[str, int]]

UNDECODABLE: Final = "undecodable"
# The column of failures that a stage adds, and what the funnel calls such rows; None: as their
# `status` does.
_COLUMNS: Final = {"failure": None, "caption_error": UNDECODABLE, "match_error": UNDECODABLE}
_FETCHED: Final = (schema.FAILED_TO_DOWNLOAD, schema.FAILED_TO_RESIZE)
ORIGIN: Final = ("url", "image_ref")  # the source's columns that say of which host a row is
OTHER_HOSTS: Final = "*"  # no host is called so
_NO_HOST: Final = "-"
UNKNOWN: Final = "unknown"  # a row that failed without a word
_MOST_HOSTS: Final = 256  # in a receipt; a shard of 1,000 rows hardly ever has more that fail
_MOST_HOSTS_OF_A_RUN: Final = 50_000  # counted apart at a time
_LONGEST_HOST: Final = 253  # characters; no name is longer (RFC 1035)
_NOT_OF_A_HOST: Final = re.compile(r"[^a-z0-9.:_-]")
_KIND: Final = re.compile(r"\w{1,40}")


@dataclass(frozen=True, slots=True)
class Tally:
    """Rows that failed: by the funnel's reason and kind, and those of the web by host and kind."""

    kinds: Counts = field(default_factory=dict)
    hosts: Counts = field(default_factory=dict)

    @property
    def total(self) -> Counter[str]:
        """Rows of each kind, whatever the reason."""
        found: Counter[str] = Counter()
        for kinds in self.kinds.values():
            found.update(kinds)
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run's rows came to so far, by the receipts of its stages.

    `fetched`: whether every row was tried. `invalid`: rows without a usable address. `usable`: rows
    with a picture that no model's decoder refused.
    """

    fetched: bool = False
    usable: int = 0
    invalid: int = 0
    failed: Tally = field(default_factory=Tally)


def counts_failures(columns: pa.Schema) -> bool:
    """Say whether a stage that adds these columns says of rows that they failed."""
    return any(name in columns.names for name in _COLUMNS)


def tally(
    added: pa.Table, origin: pa.Table | None = None, known: Collection[str] | None = None
) -> Tally:
    """Count the failures of a shard.

    Args:
        added: the columns that a stage added.
        origin: the source's `url` and `image_ref` of the same rows, for the hosts.
        known: the hosts that are counted apart; None: those with the most failures.
    """
    kinds: Counts = {}
    for name, reason in _COLUMNS.items():
        if name in added.schema.names:
            for said, kind in _failed(added, name, reason):
                _add(kinds, said, kind)
    hosts = {} if origin is None else _hosts(added, origin)
    if known is None:
        known = _largest(hosts, _MOST_HOSTS)
    return Tally(kinds, _folded(hosts, known))


def host_of(url: str | None) -> str:
    """Return the host of an address, fit to be shown: `xn--…` for one that is not ASCII."""
    try:
        host = (urlsplit((url or "").strip()).hostname or "").rstrip(".")[:_LONGEST_HOST].lower()
        host = host.encode("idna").decode("ascii").lower() if not host.isascii() else host
    except ValueError:  # no address, or a name that IDNA has no spelling of
        return _NO_HOST
    return _NOT_OF_A_HOST.sub("_", host) or _NO_HOST


def again_tally(ledger: Ledger, fetch_id: str, shard: str, mask: pa.Array) -> Tally:
    """Count why the rows of a shard that are fetched again (`mask`) had failed."""
    outcome = ledger.read(fetch_id, shard, ["status", "failure"]).filter(mask)
    origin = ledger.read(source.STAGE, shard, ORIGIN).filter(mask)
    return tally(outcome, origin, ledger.receipt(fetch_id, shard).failing_hosts)


def less(receipt: Receipt, again: Receipt) -> Receipt:
    """Take the failures of rows that were fetched again off a receipt.

    `again` is the source receipt of their attempt.
    """
    counts = Counter(receipt.counts)
    counts.subtract({reason: sum(own.values()) for reason, own in again.failures.items()})
    return dataclasses.replace(
        receipt,
        counts=dict(+counts),
        failures=_difference(receipt.failures, again.failures),
        failing_hosts=_difference(receipt.failing_hosts, again.failing_hosts),
    )


def summed(tallies: Iterable[Tally]) -> Tally:
    """Add tallies up. Of very many hosts those with few failures are put together."""
    kinds: Counts = {}
    hosts: Counts = {}
    for one in tallies:
        _merge(kinds, one.kinds)
        _merge(hosts, one.hosts)
        if len(hosts) > _MOST_HOSTS_OF_A_RUN:
            hosts = _folded(hosts, _largest(hosts, _MOST_HOSTS_OF_A_RUN // 2))
    return Tally(kinds, hosts)


def merged(tallies: Iterable[Tally]) -> Tally:
    """Put the tallies of several stages together.

    The captioner and the matcher decode the same pictures, so both count the same rows: of two
    counts of one kind the larger is taken.
    """
    kinds: Counts = {}
    hosts: Counts = {}
    for one in tallies:
        for reason, counts in one.kinds.items():
            own = kinds.setdefault(reason, {})
            own.update({kind: max(n, own.get(kind, 0)) for kind, n in counts.items()})
        _merge(hosts, one.hosts)
    return Tally(kinds, hosts)


def largest_hosts(hosts: Counts, count: int) -> list[tuple[str, dict[str, int]]]:
    """Return the hosts with the most failures, largest first; all others are the last entry."""
    names = [name for name in _largest(hosts, count + 1) if name != OTHER_HOSTS][:count]
    folded = _folded(hosts, names)
    rest = [OTHER_HOSTS] if OTHER_HOSTS in folded else []
    return [(name, folded[name]) for name in [*names, *rest]]


def _failed(added: pa.Table, column: str, reason: str | None) -> Iterable[tuple[str, str]]:
    """Yield (reason, kind) of the rows that failed by a column of failures."""
    mask = _mask(added, column)
    words = map(_kind, added[column].filter(mask).to_pylist())
    if reason is not None:
        return ((reason, word) for word in words)
    return zip(added["status"].filter(mask).to_pylist(), words, strict=True)


def _mask(added: pa.Table, column: str) -> pa.ChunkedArray:
    """Say which rows failed; those that the input itself refused did not, they were not tried."""
    if _COLUMNS[column] is not None:
        return pc.is_valid(added[column])
    return pc.is_in(added["status"], pa.array(_FETCHED))


def _kind(word: str | None) -> str:
    """Return the word that a failure begins with: a decoder's message goes on after a colon."""
    found = _KIND.match(word or "")
    return found[0] if found else UNKNOWN


def _hosts(added: pa.Table, origin: pa.Table) -> Counts:
    """Count by host what failed of the rows that come from the web."""
    hosts: Counts = {}
    if "failure" in added.schema.names:
        mask = pc.and_(_mask(added, "failure"), pc.is_null(origin["image_ref"]))
        urls = origin["url"].filter(mask).to_pylist()
        for url, word in zip(urls, added["failure"].filter(mask).to_pylist(), strict=True):
            _add(hosts, host_of(url), _kind(word))
    return hosts


def _difference(counts: Counts, less: Counts) -> Counts:
    left: Counts = {}
    for name, own in counts.items():
        if kept := +(Counter(own) - Counter(less.get(name, {}))):
            left[name] = dict(kept)
    return left


def _add(counts: Counts, name: str, kind: str, rows: int = 1) -> None:
    own = counts.setdefault(name, {})
    own[kind] = own.get(kind, 0) + rows


def _merge(into: Counts, counts: Mapping[str, Mapping[str, int]]) -> None:
    for name, own in counts.items():
        for kind, rows in own.items():
            _add(into, name, kind, rows)


def _largest(hosts: Counts, count: int) -> list[str]:
    """Return the names with the most failures; equals by name."""
    return sorted(hosts, key=lambda name: (-sum(hosts[name].values()), name))[:count]


def _folded(hosts: Counts, known: Collection[str]) -> Counts:
    """Put all hosts together that are not `known`."""
    found: Counts = {}
    names = set(known)
    for host, own in hosts.items():
        _merge(found, {host if host in names else OTHER_HOSTS: own})
    return found
