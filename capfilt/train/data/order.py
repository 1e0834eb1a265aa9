"""In which order samples come: pure functions of seeds and counts, so that nothing need be stored.

A stream's epoch is its row groups in a shuffled order, cut into windows of about `window` samples,
and each window shuffled within: a shuffle buffer that is filled, emptied and filled again. A
buffer that is refilled sample by sample mixes a little better, but what it holds depends on all
that came before; a window is known from (seed, epoch, position), and a row group lies in one only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt.train.data.randomness import shuffled

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Samples `start` to `stop` of an epoch: the n-th is sample `row[n]` of group `group[n]`."""

    epoch: int
    start: int
    stop: int
    group: Places
    row: Places


def window_at(samples: Places, size: int, offset: int, epoch: int, *seed: int | str) -> Window:
    """Return the window of about `size` samples in which sample `offset` of the epoch lies.

    samples: of every group, (G,); 0 <= offset < its sum. A group larger than `size` is a window by
    itself.
    """
    order = np.flatnonzero(samples)
    order = order[shuffled(len(order), "groups", *seed, epoch)]
    ends = np.cumsum(samples[order])
    window_of = (ends - samples[order]) // size  # by each group's first sample
    own = window_of[np.searchsorted(ends, offset, side="right")]
    groups = order[window_of == own]
    start = int((ends - samples[order])[window_of == own][0])
    counts = samples[groups]
    group = np.repeat(groups, counts)
    row = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    mixed = shuffled(len(group), "window", *seed, epoch, start)
    return Window(epoch, start, start + len(group), group[mixed], row[mixed])


def draw_samples(
    shares: tuple[int, ...], seed: int, epoch: int, position: int
) -> Iterator[tuple[int, int]]:
    """Yield (stream, n) for ever, from `position` of `epoch` on: the n-th sample of that stream.

    An epoch has sum(shares) samples, of which stream j gives shares[j], in random order. `n` counts
    from the beginning of the training. Two bytes a sample of the epoch are held, and sixteen for a
    moment as an epoch begins.
    """
    while True:
        lanes = _lanes(shares, seed, epoch)
        before = np.bincount(lanes[:position], minlength=len(shares)).tolist()
        seen = [epoch * share + count for share, count in zip(shares, before, strict=True)]
        for lane in lanes[position:].data:
            yield lane, seen[lane]
            seen[lane] += 1
        epoch, position = epoch + 1, 0


def _lanes(shares: tuple[int, ...], seed: int, epoch: int) -> npt.NDArray[np.uint16]:
    lanes = np.repeat(np.arange(len(shares), dtype=np.uint16), shares)
    if len(shares) == 1:
        return lanes
    mixed: npt.NDArray[np.uint16] = lanes[shuffled(len(lanes), "mixture", seed, epoch)]
    return mixed
