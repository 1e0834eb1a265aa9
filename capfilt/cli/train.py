"""`capfilt train pretrain|captioner|filter`: parse, call, print."""

from pathlib import Path
from typing import Annotated, Any

import typer

from capfilt.cli.console import AsJson, Quiet, errors, progress_bar, run_and_show, say
from capfilt.cli.places import local_place
from capfilt.cli.signature import takes
from capfilt.commands import train as commands
from capfilt.flags import constructed, flags_of
from capfilt.train.options import TrainOptions
from capfilt.train.ranks import rank

train = typer.Typer(
    help="Train on exports: pre-train MED, fine-tune a captioner or a filter (BLIP).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@train.command("pretrain", help="Pre-train MED with ITC, ITM and LM on cleaned pairs.")
@train.command("captioner", help="Fine-tune a captioner with LM on human pairs.")
@train.command("filter", help="Fine-tune a filter with ITC and ITM on human pairs.")
@takes(flags_of(TrainOptions))
def run(
    ctx: typer.Context,
    data: Annotated[list[str], typer.Argument(help="Exports: DIR, or DIR=WEIGHT for a mixture")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder of this training; run again to go on",
            parser=local_place,
            metavar="PATH",
        ),
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,  # by flag
) -> None:
    """Train one model. Several GPUs: torchrun --nproc-per-node N -m capfilt train …"""

    def work(bars: Any) -> Any:  # a result, which renders itself
        options = constructed(
            TrainOptions, given, kind=str(ctx.info_name), data=tuple(data), out=out
        )
        return commands.train(options, bars, say)

    if rank() == 0:
        run_and_show(work, as_json, quiet)
        return
    with errors():  # torchrun's other processes: one tells of steps and result
        work(progress_bar(quiet=True))
