"""`capfilt train pretrain|captioner|filter`: parse, call, print."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from capfilt.cli.console import errors, progress_bar, run_and_show, say
from capfilt.train.ranks import rank

app = typer.Typer(
    help="Train on exports: pre-train MED, fine-tune a captioner or a filter (BLIP).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _opt(help_: str, panel: str) -> Any:  # typer's own return type
    return typer.Option(help=help_, rich_help_panel=panel, show_default=False)


_DATA = "Data"
_OPTIM = "Optimisation (default: BLIP's figures for this many pairs)"
_WORK = "Work"


@app.command("pretrain", help="Pre-train MED with ITC, ITM and LM on cleaned pairs.")
@app.command("captioner", help="Fine-tune a captioner with LM on human pairs.")
@app.command("filter", help="Fine-tune a filter with ITC and ITM on human pairs.")
def train(
    ctx: typer.Context,
    data: Annotated[list[str], typer.Argument(help="Exports: DIR, or DIR=WEIGHT for a mixture")],
    out: Annotated[Path, typer.Option("--out", help="Folder of this training; run again to go on")],
    like: Annotated[
        str | None, _opt("Fresh weights, architecture and tokenizer of this checkpoint", _DATA)
    ] = None,
    init: Annotated[
        str | None, _opt("Weights to go on from: a training's model/, a checkpoint", _DATA)
    ] = None,
    one_text: Annotated[bool, _opt("One random text an image an epoch", _DATA)] = False,
    captions_per_image: Annotated[
        int | None, _opt("Texts of an image that LM sees at once: 1; with --one-text", _DATA)
    ] = None,
    max_tokens: Annotated[int | None, _opt("Where texts are cut: 40", _DATA)] = None,
    augment: Annotated[
        Literal["none", "blip", "colour-safe"], _opt("Of images; default none", _DATA)
    ] = "none",
    side: Annotated[int | None, _opt("Pixels; default: the checkpoint's", _DATA)] = None,
    epochs: Annotated[int | None, _opt("Times through the data", _OPTIM)] = None,
    steps: Annotated[int | None, _opt("Steps, instead of --epochs", _OPTIM)] = None,
    batch_size: Annotated[int | None, _opt("Pairs a step, over all processes", _OPTIM)] = None,
    accumulate: Annotated[int | None, _opt("Parts that a step is computed in", _OPTIM)] = None,
    peak_lr: Annotated[float | None, _opt("Highest learning rate", _OPTIM)] = None,
    warmup_steps: Annotated[int | None, _opt("Steps of linear warm-up", _OPTIM)] = None,
    weight_decay: Annotated[float | None, _opt("Of matrices", _OPTIM)] = None,
    clip: Annotated[float | None, _opt("Bound of the gradient's norm", _OPTIM)] = None,
    queue_size: Annotated[int | None, _opt("Features that ITC remembers", _OPTIM)] = None,
    seed: Annotated[int, _opt("Of all that is drawn", _OPTIM)] = 0,
    precision: Annotated[Literal["fp32", "bf16"], _opt("fp32 or bf16 autocast", _WORK)] = "fp32",
    device: Annotated[str, _opt("auto, cpu, cuda or cuda:1", _WORK)] = "auto",
    workers: Annotated[int, _opt("Threads that decode images", _WORK)] = 2,
    every: Annotated[int, _opt("Steps from one checkpoint to the next", _WORK)] = 500,
    recompute: Annotated[bool, _opt("Less memory, more time (checkpointing)", _WORK)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress")] = False,
) -> None:
    """Train one model. Several GPUs: torchrun --nproc-per-node N -m capfilt train …"""
    from capfilt.commands import train as commands_train

    given = {name: value for name, value in ctx.params.items() if name not in {"as_json", "quiet"}}
    kind = str(ctx.info_name)

    def work(bars: Any) -> Any:  # types that are imported late
        return commands_train.train(kind, given, bars, say)

    if rank() == 0:
        run_and_show(work, as_json, quiet)
        return
    with errors():  # torchrun's other processes: one tells of steps and result
        work(progress_bar(quiet=True))
