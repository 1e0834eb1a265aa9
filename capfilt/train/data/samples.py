"""Samples of one stream by their number, of which one window is held in memory."""

from collections.abc import Callable

from capfilt.train.data.batch import Skip
from capfilt.train.data.index import StreamIndex
from capfilt.train.data.order import Window, window_at
from capfilt.train.data.rows import GroupRows, Sample, read_rows


class Source:
    """The endless sequence of a stream's samples, epoch after epoch.

    Row groups are read when a first sample of theirs is asked for, and dropped with their window,
    so numbers should rise: going back to an earlier window reads it again.
    """

    def __init__(
        self,
        index: StreamIndex,
        window: int,
        seed: tuple[int, ...],
        read: Callable[[], None] = lambda: None,
        captions: int = 1,
    ) -> None:
        """`read` is called for each row group that was read; a sample has `captions` texts."""
        self._captions = captions
        self._index, self._size, self._seed, self._read = index, window, seed, read
        self._samples = index.samples
        self._total = int(self._samples.sum())
        self._window: Window | None = None
        self._rows: dict[int, GroupRows] = {}

    def sample(self, n: int) -> Sample | Skip:
        """Return the n-th sample, or why the row gives none.

        Raises:
            DamageError: a file cannot be read any more.
        """
        epoch, offset = divmod(n, self._total)
        window = self._at(epoch, offset)
        group, row = (int(each[offset - window.start]) for each in (window.group, window.row))
        if group not in self._rows:
            self._rows[group] = read_rows(self._index, group)
            self._read()
        return self._rows[group].sample(row, epoch, *self._seed, captions=self._captions)

    def _at(self, epoch: int, offset: int) -> Window:
        held = self._window
        if held and held.epoch == epoch and held.start <= offset < held.stop:
            return held
        self._rows.clear()  # before the next ones are read: never two windows at once
        self._window = window_at(self._samples, self._size, offset, epoch, *self._seed)
        return self._window
