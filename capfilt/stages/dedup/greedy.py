"""Which row each near-duplicate is a copy of: greedily, from the best row down.

A row's place is its rank: the better-scored row has the lower place. A row that is near a row that
was kept before it is a duplicate of the best such row; what is a duplicate keeps no other row out.
So rows need only be compared with kept ones, and a crowd of rows that are all near each other,
whose pairs would be as many as its square, is gone once its best row is known.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from capfilt.stages.dedup.bands import MOST_FLIPS, Codes, CodeTable, Pairs, Places, hamming

# Says of pairs of places whether they are near by another measure too.
Alike = Callable[[Places, Places], npt.NDArray[np.bool_]]
_FEW: Final = 1 << 14  # rows of which all pairs are looked at: faster than tables
_SMALLEST: Final = 1 << 11  # rows that are not solved in halves
_PAIRS_A_ROW: Final = 4  # more than these, and rows are solved in halves
_BLOCK: Final = 1 << 22  # pairs that are looked at at a time
_PAIRS: Final = 1 << 20  # but so many are always held


@dataclass(frozen=True, slots=True)
class Winners:
    """Duplicates (rising places) and the kept row of each."""

    worse: Places
    better: Places


def winners_by_hash(codes: Codes, radius: int, alike: Alike | None = None) -> Winners:
    """Find duplicates of rows whose codes differ in at most `radius` bits, and that are `alike`.

    Exact; with a radius above 11 all pairs are looked at. Without `alike`, rows of one code share
    what becomes of the best of them.
    """
    search = _Search(codes, radius, alike)
    if alike is not None:
        search.solve(np.arange(len(codes)))
        return _winners(search.owner)
    _, best, inverse = np.unique(codes, return_index=True, return_inverse=True)
    search.solve(np.sort(best))
    own = best[inverse]  # the best row of each row's code
    others = np.where(own == np.arange(len(codes)), -1, own)
    return _winners(np.where(search.owner[own] < 0, others, search.owner[own]))


def winners_of_pairs(count: int, pairs: Iterable[Pairs]) -> Winners:
    """Find duplicates of `count` rows whose near pairs (better, worse) are known."""
    owner = np.full(count, -1, np.int64)
    _decide(owner, *_joined(list(pairs)))
    return _winners(owner)


def _winners(owner: Places) -> Winners:
    worse = np.flatnonzero(owner >= 0)
    return Winners(worse, owner[worse])


@dataclass(slots=True)
class _Search:
    """A search as it goes on: `owner` is the kept row of each duplicate, -1 of all others."""

    codes: Codes
    radius: int
    alike: Alike | None
    owner: Places = field(init=False)

    def __post_init__(self) -> None:
        self.owner = np.full(len(self.codes), -1, np.int64)

    def solve(self, rows: Places) -> Places:
        """Decide on rows (rising places) that are near no row kept before; returns those kept."""
        pairs = self._pairs_among(rows)
        if pairs is None:
            half = len(rows) // 2
            kept = self.solve(rows[:half])
            return np.concatenate([kept, self.solve(self._near_none(rows[half:], kept))])
        _decide(self.owner, *pairs)
        return rows[self.owner[rows] < 0]

    def _near_none(self, rows: Places, kept: Places) -> Places:
        """Give rows that are near kept ones the best of these; returns the others."""
        best = np.full(len(rows), len(self.codes), np.int64)
        for held, asked in self._near(kept, rows):
            np.minimum.at(best, asked, kept[held])
        found = best < len(self.codes)
        self.owner[rows[found]] = best[found]
        return rows[~found]

    def _pairs_among(self, rows: Places) -> Pairs | None:
        """Return the near pairs (better, worse) of these rows; None where they are too many."""
        most = max(_PAIRS, _PAIRS_A_ROW * len(rows))
        found: list[Pairs] = []
        count = 0
        for held, asked in self._near(rows, rows, ordered=True):
            count += len(held)
            if count > most and len(rows) > _SMALLEST:
                return None
            found.append((rows[held], rows[asked]))
        return _joined(found)

    def _near(self, kept: Places, rows: Places, ordered: bool = False) -> Iterator[Pairs]:
        """Yield (place in `kept`, place in `rows`) of near pairs, `ordered` ones better first."""
        codes, asked = self.codes[kept], self.codes[rows]
        if self.radius // 3 > MOST_FLIPS or len(kept) <= _FEW:
            pairs = _all_pairs(codes, asked, self.radius, ordered)
        else:
            pairs = CodeTable.of(codes).near(asked, self.radius)
        for held, places in pairs:
            near = kept[held] < rows[places] if ordered else np.ones(len(held), np.bool_)
            if self.alike is not None:
                near[near] = self.alike(kept[held[near]], rows[places[near]])
            yield held[near], places[near]


def _joined(pairs: list[Pairs]) -> Pairs:
    nothing = np.zeros(0, np.int64)
    better, worse = zip(*pairs, strict=True) if pairs else ((nothing,), (nothing,))
    return np.concatenate(better), np.concatenate(worse)


def _decide(owner: Places, better: Places, worse: Places) -> None:
    """Settle near pairs in the order of the worse row, then of the better."""
    order = np.lexsort((better, worse))
    for one, other in zip(better[order].tolist(), worse[order].tolist(), strict=True):
        if owner[one] < 0 and owner[other] < 0:
            owner[other] = one


def _all_pairs(codes: Codes, asked: Codes, radius: int, ordered: bool) -> Iterator[Pairs]:
    """Yield near pairs by looking at all of them, in blocks; `ordered`: at those before alone."""
    block = max(1, _BLOCK // max(1, len(codes)))
    for start in range(0, len(asked), block):
        stop = start + block
        near = hamming(codes[None, : stop if ordered else None], asked[start:stop, None]) <= radius
        places, held = np.nonzero(near)
        yield held, places + start
