"""`capfilt demo`: parse, call, print."""

from pathlib import Path
from typing import Annotated, Any

import typer

from capfilt.cli.console import AsJson, Quiet, errors, progress_bar, say, show
from capfilt.cli.places import place
from capfilt.cli.signature import takes
from capfilt.flags import constructed, flags_of
from capfilt.simweb.demo import DemoOptions, run_demo
from capfilt.store.location import Location


@takes(flags_of(DemoOptions))
def demo(
    out: Annotated[
        Location,
        typer.Option(
            "--run",
            help="The run folder. Also s3://, gs://, az://",
            parser=place,
            metavar="PATH",
        ),
    ] = Path("runs/demo"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,  # by flag
) -> None:
    """Run a whole round on a simulated web, on this machine alone; needs no hub and no internet.

    The same command again resumes. At the end the web's known truth, which the round never saw,
    says how clean the data is.
    """
    with errors():
        options = constructed(DemoOptions, given)
        show(run_demo(out, options, progress_bar(quiet), say), as_json)
