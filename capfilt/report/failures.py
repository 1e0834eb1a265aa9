"""Telling why pictures are missing: kinds and hosts, what each kind means, and what helps."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from capfilt import schema
from capfilt.ledger.tally import OTHER_HOSTS, UNKNOWN, Outcome, Tally, largest_hosts
from capfilt.stages.failures import FAILURES, can_pass
from capfilt.wording import counted

_MOST: Final = 10  # kinds of a reason, and hosts, that a person is told
_RETRY: Final = "capfilt retry"
_MEANINGS: Final = {
    schema.INVALID_URL: "the input has no usable address or image there",
    UNKNOWN: "no reason was given",
}


@dataclass(frozen=True, slots=True)
class FailureLine:
    """A line on a kind of failure; `remedy` is what the user can do, where something helps."""

    kind: str
    rows: int
    meaning: str
    remedy: str | None

    @property
    def words(self) -> str:
        """Return meaning and remedy."""
        return "; ".join(part for part in (self.meaning, self.remedy) if part)


def told(kind: str, rows: int) -> FailureLine:
    """Return what is to be said of a kind of failure."""
    known = FAILURES.get(kind)
    remedy = known.remedy if known is not None else None
    if remedy is None and can_pass(kind):
        remedy = _RETRY
    return FailureLine(kind, rows, _meaning(kind), remedy)


def kinds_told(kinds: Mapping[str, int]) -> list[FailureLine]:
    """Return the most frequent kinds, largest first, and all others as one."""
    ordered = _ordered(kinds)
    lines = [told(kind, rows) for kind, rows in ordered[:_MOST]]
    if rest := ordered[_MOST:]:
        others = counted(len(rest), "other kind")
        lines.append(FailureLine(others, sum(rows for _, rows in rest), "", None))
    return lines


def hosts_told(failed: Tally) -> list[tuple[str, int, str]]:
    """Return (host, rows, its kinds) of the hosts with the most failures, and of all others."""
    return [
        ("other hosts" if host == OTHER_HOSTS else host, sum(kinds.values()), _kinds(kinds))
        for host, kinds in largest_hosts(failed.hosts, _MOST)
    ]


def lines_of_kinds(kinds: Mapping[str, int]) -> list[str]:
    """Return lines for a person, to stand below the reason that they belong to."""
    return [f"  {each.kind:<18} {each.rows:>10,}  {each.words}" for each in kinds_told(kinds)]


def lines_of_hosts(failed: Tally) -> list[str]:
    """Return lines for a person, with a head; none where nothing failed on the web."""
    lines = [f"  {host:<28} {rows:>10,}  {kinds}" for host, rows, kinds in hosts_told(failed)]
    return ["failures by host", *lines] if lines else []


def lines_of(failed: Tally) -> list[str]:
    """Return all lines on failures, for a run whose funnel is not known yet."""
    lines: list[str] = []
    for reason, kinds in sorted(failed.kinds.items()):
        lines += [f"{reason:<20} {sum(kinds.values()):>10,}", *lines_of_kinds(kinds)]
    return [*lines, *lines_of_hosts(failed)]


def plain_failures(failed: Tally) -> dict[str, Any]:  # JSON
    """Return failures for machines: every kind, and the hosts with the most of them."""
    hosts = largest_hosts(failed.hosts, _MOST)
    other = [sum(kinds.values()) for host, kinds in hosts if host == OTHER_HOSTS]
    return {
        "rows": failed.total.total(),
        "kinds": [
            {"reason": reason, "kind": kind, "rows": rows, **_plain(told(kind, rows))}
            for reason, kinds in sorted(failed.kinds.items())
            for kind, rows in _ordered(kinds)
        ],
        "hosts": [
            {"host": host, "rows": sum(kinds.values()), "kinds": dict(_ordered(kinds))}
            for host, kinds in hosts
            if host != OTHER_HOSTS
        ],
        "other_hosts_rows": sum(other),
    }


def why_nothing(outcome: Outcome) -> str | None:
    """Say in a line why no row has a usable picture, though every row was tried; else None."""
    kinds = outcome.failed.total + Counter({schema.INVALID_URL: outcome.invalid})
    if not outcome.fetched or outcome.usable > 0 or not kinds:
        return None
    kind, rows = _ordered(kinds)[0]
    words = told(kind, rows).words
    return (
        f"every row failed, none has a usable picture: {rows:,} of {counted(kinds.total(), 'row')} "
        f"by {kind}{f' ({words})' if words else ''}"
    )


def _plain(line: FailureLine) -> dict[str, str | None]:
    return {"meaning": line.meaning, "remedy": line.remedy}


def _ordered(kinds: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the kinds, largest first, equals by name."""
    return sorted(kinds.items(), key=lambda entry: (-entry[1], entry[0]))


def _kinds(kinds: Mapping[str, int]) -> str:
    ordered = _ordered(kinds)
    more = [f"{len(ordered) - 3} more"] if len(ordered) > 3 else []
    return ", ".join([*(f"{kind} {rows:,}" for kind, rows in ordered[:3]), *more])


def _meaning(kind: str) -> str:
    if kind in FAILURES:
        return FAILURES[kind].meaning
    with contextlib.suppress(ValueError):  # no number, or none that HTTP knows
        return HTTPStatus(int(kind.removeprefix("http_"))).phrase.lower()
    return _MEANINGS.get(kind, "")
