"""What commands have in common: progress on standard error, results on standard output, errors."""

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, NoReturn

import typer

from capfilt.errors import CapfiltError
from capfilt.process import lease, signals, streams
from capfilt.process.temporary import discard, in_private_folder
from capfilt.progress import Progress, show_progress
from capfilt.wording import inert

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress")]
_STOPPED: Final = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def run_and_show(
    work: Callable[[Progress], Any],  # any result: it renders itself
    as_json: bool,
    quiet: bool,
) -> None:
    """Do a command's work under a progress bar and print its result, or its error."""
    with errors():
        show(work(progress_bar(quiet)), as_json)


def progress_bar(quiet: bool) -> Progress:
    """Return what makes a bar, or lines, of a label and a number of rows or steps."""
    return partial(show_progress, quiet=quiet)


def say(line: str) -> None:
    """Tell a person something; standard output is kept for results."""
    typer.echo(inert(line), err=True)


def show(result: Any, as_json: bool) -> None:  # any result of `commands`
    """Print a result, which renders itself for people and for machines.

    Raises:
        CapfiltError: the result's own `error`, where it has one: it ends the command after all.
    """
    typer.echo(json.dumps(result.plain(), indent=1) if as_json else inert(result.text()))
    error: CapfiltError | None = getattr(result, "error", None)
    if error is not None:
        raise error


@contextmanager
def errors() -> Iterator[None]:
    """Print what capfilt raises on purpose as one message, with its exit code."""
    try:
        yield
    except CapfiltError as error:
        say(f"capfilt: {error}")
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(_stopped(error)) from None


def main(app: Callable[[], Any]) -> NoReturn:
    """Run a command line to its end, in a process that exists for that.

    What ends it, what it leaves in the temporary folder, and what becomes of its output are seen to
    here; see `signals`, `temporary` and `streams`.
    """
    streams.settle()
    sys.excepthook = _show_bug
    code: int | str | None = 0
    try:
        with in_private_folder() as folder, signals.raising(partial(_before_forced, folder)):
            try:
                app()
            except SystemExit as end:
                code = end.code
    except KeyboardInterrupt as error:  # before and after a command's own work
        code = _stopped(error)
    sys.exit(streams.exit_code(code if isinstance(code, int) else int(code is not None)))


def _stopped(error: KeyboardInterrupt) -> int:
    """Say how a command was stopped; returns its exit code."""
    number = error.number if isinstance(error, signals.Stopped) else signal.SIGINT
    _say_stopped(number)
    return 128 + number


@cache  # it is said once
def _say_stopped(number: int) -> None:
    how = _STOPPED.get(signal.Signals(number), "interrupted")
    say(f"capfilt: {how}; what is finished is kept; run the same command again to go on")


def _before_forced(folder: Path | None, number: int) -> None:
    _say_stopped(number)
    if folder is not None:
        discard(folder)
    lease.end_all()


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback; what it quotes can be a stranger's."""
    print(inert("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
