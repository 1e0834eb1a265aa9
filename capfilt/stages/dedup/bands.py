"""Codes of 64 bits that differ in few of them, found exactly without looking at all pairs.

A code is cut into three bands. Of two codes that differ in at most r bits, one band differs in at
most r // 3 (pigeonhole principle; multi-index hashing, Norouzi et al., arXiv 1307.2982). So each
band has a table, and a code is looked up under every value within r // 3 bits of its own.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint64]
Pairs = tuple[Places, Places]

_BANDS: Final = ((0, 22), (22, 21), (43, 21))  # first bit, bits
MOST_FLIPS: Final = 3  # in a band; with more the values that are looked up are too many
_CHUNK: Final = 1 << 18  # codes that are looked up at a time
_PIECE: Final = 1 << 21  # pairs that are compared at a time


@dataclass(frozen=True, slots=True)
class _Band:
    """The codes of a table in the order of their values in one band."""

    shift: int
    bits: int
    codes: Codes
    places: Places
    starts: Places  # of each value of the band, and one more

    def values(self, codes: Codes) -> npt.NDArray[np.int64]:
        """Return the band's value of each code."""
        return _values(codes, self.shift, self.bits)


@dataclass(frozen=True, slots=True)
class CodeTable:
    """Codes by their bands, for `near`."""

    size: int
    bands: tuple[_Band, ...]

    @classmethod
    def of(cls, codes: Codes) -> "CodeTable":
        """Sort the codes by each of their bands."""
        return cls(len(codes), tuple(_band(codes, *place) for place in _BANDS))

    def near(self, asked: Codes, radius: int) -> Iterator[Pairs]:
        """Yield (place in the table, place in `asked`) of codes within `radius` bits.

        A pair may come up to three times.
        """
        for start in range(0, len(asked), _CHUNK):
            chunk = asked[start : start + _CHUNK]
            for band in self.bands:
                values = band.values(chunk)
                for flips in _flips(band.bits, radius // len(_BANDS)):
                    for held, places in _within(band, chunk, values ^ flips, radius):
                        yield held, places + start


def _band(codes: Codes, shift: int, bits: int) -> _Band:
    values = _values(codes, shift, bits)
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values, minlength=1 << bits)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return _Band(shift, bits, codes[order], order.astype(np.int64), starts)


def _values(codes: Codes, shift: int, bits: int) -> npt.NDArray[np.int64]:
    mask = np.uint64((1 << bits) - 1)
    return ((codes >> np.uint64(shift)) & mask).astype(np.int64)


def _flips(bits: int, most: int) -> Iterator[int]:
    """Yield every value of a band with at most so many bits set, few first."""
    for count in range(most + 1):
        for chosen in itertools.combinations(range(bits), count):
            yield sum(1 << bit for bit in chosen)


def _within(band: _Band, asked: Codes, values: Places, radius: int) -> Iterator[Pairs]:
    """Yield the pairs of a band whose values are as asked and whose codes are near."""
    first = band.starts[values]
    counts = band.starts[values + 1] - first
    there = np.flatnonzero(counts)
    for some in _pieces(there, counts[there]):
        repeats = counts[some]
        places = np.repeat(some, repeats)
        ends = np.cumsum(repeats)
        held = np.arange(len(places)) + np.repeat(first[some] - (ends - repeats), repeats)
        near = hamming(band.codes[held], asked[places]) <= radius
        if near.any():
            yield band.places[held[near]], places[near]


def _pieces(places: Places, counts: Places) -> Iterator[Places]:
    """Cut places so that each piece has not many more than `_PIECE` pairs."""
    if not len(places):
        return
    total = np.cumsum(counts)
    cuts = np.searchsorted(total, np.arange(_PIECE, int(total[-1]), _PIECE))
    yield from (piece for piece in np.split(places, cuts) if len(piece))


def hamming(codes: Codes, others: Codes) -> npt.NDArray[np.uint8]:
    """Return in how many of 64 bits each code differs from its other."""
    count: npt.NDArray[np.uint8] = np.bitwise_count(codes ^ others)
    return count
