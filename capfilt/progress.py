"""Progress: a tqdm bar with rate and ETA on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol, TextIO

Say = Callable[[str], None]  # tells a person a line
Advance = Callable[[int], None]  # hears how many more rows are done; a `Bar` is one
_SECONDS_BETWEEN_LINES: Final = 15.0


class Bar(Protocol):
    """Hears how many more rows, or steps, are done, and a word on them."""

    def __call__(self, done: int, note: str = "", /) -> None:
        """Hear it."""


class Progress(Protocol):
    """Makes a bar, or lines, of a label, a total (None: unknown) and what is counted."""

    def __call__(
        self, label: str, total: int | None, /, *, unit: str = "row"
    ) -> AbstractContextManager[Bar]:
        """Return what is entered for as long as the work goes on."""


def unsaid(line: str, /) -> None:
    """Say nothing."""


def unheard(done: int, note: str = "", /) -> None:
    """Hear nothing."""


@contextlib.contextmanager
def show_progress(
    label: str,
    total: int | None,
    *,
    unit: str = "row",
    quiet: bool = False,
    stream: TextIO | None = None,
) -> Iterator[Bar]:
    """Yield a function that is told how many more rows are done.

    `total` None: unknown. On a terminal a bar; elsewhere a line now and then, and one at the end.
    """
    out = stream or sys.stderr
    if quiet or total == 0 or out is None:  # None: a program without standard streams
        yield unheard
    elif out.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit=unit, file=out, dynamic_ncols=True) as bar:

            def advance(done: int, note: str = "", /) -> None:
                if note:
                    bar.set_postfix_str(note, refresh=False)
                if unit == "step" and not bar.n:
                    bar.n = bar.initial = done - 1  # of an earlier run, and no part of the rate
                    done = 1
                bar.update(done)

            yield advance
    else:
        lines = _Lines(label, total, unit, out)
        yield lines.advance
        lines.say(final=True)


def hear_metrics(told: Bar) -> Callable[[dict[str, float]], None]:
    """Return what hears a training's metrics (`step` from 1, `loss`), and tells of its steps.

    A training that goes on tells of the steps before it at once.
    """
    done = 0

    def heard(metrics: dict[str, float]) -> None:
        nonlocal done
        step = int(metrics["step"])
        told(step - done, f"loss {metrics['loss']:.3f}")
        done = step

    return heard


class _Lines:
    def __init__(self, label: str, total: int | None, unit: str, out: TextIO) -> None:
        self._label, self._total, self._unit, self._out = label, total, unit, out
        self._done = self._before = 0
        self._note = ""
        self._began = self._said = time.monotonic()

    def advance(self, done: int, note: str = "", /) -> None:
        if self._unit == "step" and not self._done:
            self._before = done - 1  # of an earlier run, and no part of this one's rate
        self._done += done
        self._note = note or self._note
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self.say()

    def say(self, *, final: bool = False) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        rate = (self._done - self._before) / seconds if seconds > 0 else 0.0
        of = f" of {self._total:,}" if self._total is not None else ""
        note = f", {self._note}" if self._note else ""
        left = ""
        if not final and self._total is not None and rate > 0:
            left = f", {max(self._total - self._done, 0) / rate:,.0f} s left"
        end = f" in {seconds:,.1f} s" if final else ""
        last = self._done if self._total is None else self._total
        unit = self._unit if last == 1 else f"{self._unit}s"
        print(
            f"{self._label}: {self._done:,}{of} {unit}{end}{note}, "
            f"{rate:,.1f} {self._unit}s/s{left}",
            file=self._out,
            flush=True,
        )
