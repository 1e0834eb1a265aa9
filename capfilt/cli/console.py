"""What commands have in common: progress on standard error, results on standard output, errors."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import typer

from capfilt.errors import CapfiltError
from capfilt.report.progress import Bars, progress

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress")]


def run_and_show(
    work: Callable[[Bars], Any],  # any result: it renders itself
    as_json: bool,
    quiet: bool,
) -> None:
    """Do a command's work under a progress bar and print its result, or its error."""
    with errors():
        show(work(progress_bar(quiet)), as_json)


def progress_bar(quiet: bool) -> Bars:
    """Return what makes a bar, or lines, of a label and a number of rows or steps."""
    return partial(progress, quiet=quiet)


def say(line: str) -> None:
    """Tell a person something; standard output is kept for results."""
    typer.echo(line, err=True)


def show(result: Any, as_json: bool) -> None:  # any result of `commands`
    """Print a result, which renders itself for people and for machines.

    Raises:
        CapfiltError: the result's own `error`, where it has one: it ends the command after all.
    """
    typer.echo(json.dumps(result.plain(), indent=1) if as_json else result.text())
    error: CapfiltError | None = getattr(result, "error", None)
    if error is not None:
        raise error


@contextmanager
def errors() -> Iterator[None]:
    """Print what capfilt raises on purpose as one message, with its exit code."""
    try:
        yield
    except CapfiltError as error:
        typer.echo(f"capfilt: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("capfilt: interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from None
