"""`capfilt run` and `capfilt plan`: parse, call, print."""

from typing import Annotated, Any

import typer

from capfilt.cli.console import AsJson, Quiet, errors, progress_bar, say, show
from capfilt.cli.places import place
from capfilt.cli.signature import takes
from capfilt.commands import Hardware
from capfilt.commands.plan import plan as plan_command
from capfilt.commands.run import run as run_command
from capfilt.flags import constructed, flags_of
from capfilt.inputs import InputSpec
from capfilt.recipe.options import RoundOptions, round_flags
from capfilt.store.location import Location

Inputs = Annotated[
    list[str], typer.Argument(help="Files, folders or globs: CSV, TSV, JSON lines, Parquet, …")
]
Out = Annotated[
    Location,
    typer.Option(
        "--run",
        help="The run folder; made where it is missing. Also s3://, gs://, az://",
        parser=place,
        metavar="PATH",
    ),
]


@takes(flags_of(InputSpec), round_flags(), flags_of(Hardware))
def run(
    inputs: Inputs,
    out: Out,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,  # by flag
) -> None:
    """Run a round, or go on with one: download, caption, match, dedup, select, export.

    The same command again resumes: what is finished is never done twice. Changed options redo
    what depends on them.
    """
    with errors():
        spec = constructed(InputSpec, given, paths=tuple(inputs))
        options, hardware = RoundOptions.among(given), constructed(Hardware, given)
        show(run_command(spec, options, out, hardware, progress_bar(quiet), say), as_json)


@takes(flags_of(InputSpec), round_flags(), flags_of(Hardware))
def plan(inputs: Inputs, out: Out, as_json: AsJson = False, **given: Any) -> None:  # by flag
    """Say what `run` with these options would do, and roughly what it costs; writes nothing."""
    with errors():
        spec = constructed(InputSpec, given, paths=tuple(inputs))
        options, hardware = RoundOptions.among(given), constructed(Hardware, given)
        show(plan_command(spec, options, out, hardware, say), as_json)
