"""Which of very many digests came before, in memory that does not grow with them.

Digests are dealt out to files by their first bits; of the digests of one file all equal ones are
there, and one file is in memory at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from capfilt.ledger.records import Bytes

_AT_A_TIME: Final = 1 << 21  # digests that are in memory, and that are dealt out, at a time
_PLACE_BITS: Final = 40  # of a row in its piece; the bits above are the piece's
_ENTRY: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
_FOUND: Final = np.dtype([("row", "<u8"), ("count", "<u4")])
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Repeats:
    """The rows whose digest came before, in files of a folder."""

    files: tuple[Path, ...]

    def of(self, piece: int) -> tuple[Rows, Rows]:
        """Return the rows of a piece, rising, and how often the digest of each came before."""
        found = [_between(np.load(file, mmap_mode="r"), piece) for file in self.files]
        entries = np.concatenate([np.zeros(0, _FOUND), *found])
        entries.sort(order="row")
        rows = (entries["row"] & np.uint64((1 << _PLACE_BITS) - 1)).astype(np.int64)
        return rows, entries["count"].astype(np.int64)


def find_repeats(pieces: Sequence[Bytes], folder: Path) -> Repeats:
    """Find equal digests (16 bytes each) over all pieces; `folder` is for files of this alone."""
    folder.mkdir()
    parts = max(1, -(-sum(map(len, pieces)) // _AT_A_TIME))
    files = []
    for number, dealt in enumerate(_dealt(pieces, folder, parts)):
        files.append(folder / f"found-{number}.npy")
        np.save(files[-1], _repeated(np.fromfile(dealt, _ENTRY)))
        dealt.unlink()
    return Repeats(tuple(files))


def _dealt(pieces: Sequence[Bytes], folder: Path, parts: int) -> list[Path]:
    """Deal digests out to so many files, each with the row that it is of."""
    files = [folder / f"part-{part}" for part in range(parts)]
    streams = [file.open("wb") for file in files]
    try:
        for piece, digests in enumerate(pieces):
            for start in range(0, len(digests), _AT_A_TIME):
                entries = _entries(digests[start : start + _AT_A_TIME], piece, start)
                part = entries["high"] % np.uint64(parts)
                order = np.argsort(part, kind="stable") if parts > 1 else slice(None)
                ends = np.cumsum(np.bincount(part.astype(np.int64), minlength=parts))
                for stream, own in zip(streams, np.split(entries[order], ends[:-1]), strict=True):
                    stream.write(own.tobytes())
    finally:
        for stream in streams:
            stream.close()
    return files


def _entries(digests: Bytes, piece: int, start: int) -> npt.NDArray[np.void]:
    entries = np.zeros(len(digests), _ENTRY)
    words = np.ascontiguousarray(digests).view("<u8")
    entries["high"], entries["low"] = words[:, 0], words[:, 1]
    entries["row"] = np.arange(start, start + len(digests), dtype=np.uint64)
    entries["row"] |= np.uint64(piece << _PLACE_BITS)
    return entries


def _repeated(entries: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the rows of entries whose digest an earlier row has, rising, and how many have it."""
    order = np.argsort(entries["high"])
    high = entries["high"][order]
    shared = np.zeros(len(high), np.bool_)
    equal = high[1:] == high[:-1]
    shared[1:] |= equal
    shared[:-1] |= equal
    some = entries[order[shared]]  # of few digests the first half is another's too
    some = some[np.lexsort((some["row"], some["low"], some["high"]))]
    first = np.ones(len(some), np.bool_)
    first[1:] = (some["high"][1:] != some["high"][:-1]) | (some["low"][1:] != some["low"][:-1])
    places = np.arange(len(some))
    counts = places - np.maximum.accumulate(np.where(first, places, 0))
    found = np.zeros(int((~first).sum()), _FOUND)
    found["row"], found["count"] = some["row"][~first], counts[~first]
    found.sort(order="row")
    return found


def _between(found: npt.NDArray[np.void], piece: int) -> npt.NDArray[np.void]:
    ends = np.array([piece, piece + 1], np.uint64) << np.uint64(_PLACE_BITS)
    start, stop = np.searchsorted(found["row"], ends)
    return np.asarray(found[start:stop])
