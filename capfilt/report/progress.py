"""Progress: a tqdm bar with rate and ETA on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, TextIO

_SECONDS_BETWEEN_LINES: Final = 15.0


@contextlib.contextmanager
def progress(
    label: str, total: int | None, *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more rows are done.

    `total` None: unknown. On a terminal a bar; elsewhere a line now and then, and one at the end.
    """
    out = stream or sys.stderr
    if quiet or total == 0:
        yield lambda _: None
    elif out.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit="row", file=out, dynamic_ncols=True) as bar:

            def advance(rows: int) -> None:
                bar.update(rows)

            yield advance
    else:
        lines = _Lines(label, total, out)
        yield lines.advance
        lines.say(final=True)


class _Lines:
    def __init__(self, label: str, total: int | None, out: TextIO) -> None:
        self._label, self._total, self._out = label, total, out
        self._done = 0
        self._began = self._said = time.monotonic()

    def advance(self, rows: int) -> None:
        self._done += rows
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self.say()

    def say(self, *, final: bool = False) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        rate = self._done / seconds if seconds > 0 else 0.0
        of = f" of {self._total:,}" if self._total is not None else ""
        left = ""
        if not final and self._total is not None and rate > 0:
            left = f", {max(self._total - self._done, 0) / rate:,.0f} s left"
        end = f" in {seconds:,.1f} s" if final else ""
        line = f"{self._label}: {self._done:,}{of} rows{end}, {rate:,.1f} rows/s{left}"
        print(line, file=self._out, flush=True)
