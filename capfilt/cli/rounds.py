"""`capfilt rounds`: parse, call, print."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from capfilt.cli.console import AsJson, Quiet, errors, progress_bar, say, show
from capfilt.cli.places import local_place
from capfilt.cli.signature import takes
from capfilt.flags import constructed, flags_of
from capfilt.inputs import InputSpec
from capfilt.option import WORK
from capfilt.recipe.options import RoundOptions, round_flags
from capfilt.rounds import verbs
from capfilt.rounds.checks import RoundsRequest
from capfilt.rounds.options import RoundsOptions
from capfilt.train.options import DATA

_HUMAN = typer.Option(help="Human pairs: DIR, or DIR=WEIGHT for a mixture", rich_help_panel=DATA)
_HELD_OUT = typer.Option(
    help="Human pairs that every round's models are judged by", rich_help_panel=DATA
)
_DEVICE = typer.Option(
    help="auto, cpu, cuda, or a list such as cuda:0,cuda:2", rich_help_panel=WORK
)
_WORKERS = typer.Option(help="Number of processes of a cleaning", rich_help_panel=WORK)
_PROCESSES = typer.Option(
    help="Number of processes of a training, by torchrun [default: one for each device]",
    rich_help_panel=WORK,
)
_ENGINE = typer.Option(
    help="Who cleans: processes of this machine, or Ray's actors; trainings are this machine's",
    rich_help_panel=WORK,
)
_PLAN = typer.Option("--plan", help="Say what is missing and what it costs", rich_help_panel=WORK)


@takes(flags_of(RoundsOptions), flags_of(InputSpec), round_flags())
def rounds(
    count: Annotated[int, typer.Argument(metavar="N", help="Number of rounds", min=1)],
    inputs: Annotated[list[str], typer.Argument(help="The web's pairs: as for `capfilt run`")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder of all rounds; again: go on", parser=local_place, metavar="PATH"
        ),
    ],
    human: Annotated[list[str] | None, _HUMAN] = None,
    held_out: Annotated[str | None, _HELD_OUT] = None,
    device: Annotated[str, _DEVICE] = "auto",
    workers: Annotated[int | None, _WORKERS] = None,
    processes: Annotated[int | None, _PROCESSES] = None,
    engine: Annotated[Literal["local", "ray"], _ENGINE] = "local",
    plan: Annotated[bool, _PLAN] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,  # by flag
) -> None:
    """Run N bootstrap rounds: clean, train on what is clean, clean with what came out.

    Without --captioner and --matcher, round 0 trains the first models on the web's pairs as they
    are. The same command again goes on; with a larger N it adds rounds.
    """
    with errors():
        spec = constructed(InputSpec, given, paths=tuple(inputs))
        options = constructed(
            RoundsOptions,
            given,
            cleaning=RoundOptions.among(given),
            count=count,
            human=tuple(human or ()),
        )
        asked = RoundsRequest(spec, out, held_out, workers, device, processes, engine)
        if plan:
            show(verbs.plan_rounds(options, asked), as_json)
            return
        told = (lambda _: None) if quiet else say
        show(verbs.rounds(options, asked, progress_bar(quiet), told), as_json)
