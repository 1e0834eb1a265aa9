"""`capfilt rounds`: parse, call, print."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from capfilt.cli.console import errors, progress_bar, say, show

_DATA, _TRAIN, _TUNE = "Data and models", "Pre-training", "Fine-tuning of captioner and filter"
_CLEAN, _WORK = "Cleaning", "Work"


def _opt(help_: str, panel: str, *names: str) -> Any:  # typer's own return type
    return typer.Option(*names, help=help_, rich_help_panel=panel, show_default=False)


def rounds(
    ctx: typer.Context,
    count: Annotated[int, typer.Argument(metavar="N", help="How many rounds", min=1)],
    inputs: Annotated[list[str], typer.Argument(help="The web's pairs: as for `capfilt run`")],
    out: Annotated[Path, _opt("Folder of all rounds; run again to go on", _DATA, "--out")],
    human: Annotated[
        list[str] | None, _opt("Human pairs: DIR, or DIR=WEIGHT for a mixture", _DATA)
    ] = None,
    like: Annotated[
        str | None, _opt("New models are built like this checkpoint, with fresh weights", _DATA)
    ] = None,
    init: Annotated[str | None, _opt("They go on from this checkpoint's weights", _DATA)] = None,
    captioner: Annotated[
        str | None, _opt("Clean round 1 with this one, and train nothing on raw pairs", _DATA)
    ] = None,
    matcher: Annotated[str | None, _opt("Its filter", _DATA)] = None,
    pipeline: Annotated[
        str | None, _opt("A file with ROUNDS = Rounds(…), or with ROUND = Round(…)", _DATA)
    ] = None,
    held_out: Annotated[
        str | None, _opt("Human pairs that every round's models are judged by", _DATA)
    ] = None,
    web_weight: Annotated[
        float | None, _opt("The web's weight beside those of --human: 1", _DATA)
    ] = None,
    input_format: Annotated[
        Literal["auto", "csv", "tsv", "jsonl", "parquet", "img2dataset", "webdataset"],
        _opt("Default: by the file's name", _DATA),
    ] = "auto",
    url_col: Annotated[str | None, _opt("Column of addresses", _DATA)] = None,
    caption_col: Annotated[str | None, _opt("Column of texts", _DATA)] = None,
    epochs: Annotated[int | None, _opt("Times through all pairs: 20", _TRAIN)] = None,
    steps: Annotated[int | None, _opt("Steps, instead of --epochs", _TRAIN)] = None,
    batch_size: Annotated[int | None, _opt("Pairs a step, over all processes", _TRAIN)] = None,
    peak_lr: Annotated[float | None, _opt("Highest learning rate", _TRAIN)] = None,
    queue_size: Annotated[int | None, _opt("Features that ITC remembers: 57600", _TRAIN)] = None,
    max_tokens: Annotated[int | None, _opt("Where texts are cut: 40", _TRAIN)] = None,
    side: Annotated[int | None, _opt("Pixels; default: the checkpoint's", _TRAIN)] = None,
    augment: Annotated[
        Literal["none", "blip", "colour-safe"] | None, _opt("Of images; default none", _TRAIN)
    ] = None,
    fine_tune_epochs: Annotated[
        int | None, _opt("Times through the human pairs: 5 and 6", _TUNE)
    ] = None,
    fine_tune_steps: Annotated[int | None, _opt("Steps, instead of epochs", _TUNE)] = None,
    fine_tune_batch_size: Annotated[int | None, _opt("Default: --batch-size", _TUNE)] = None,
    fine_tune_lr: Annotated[float | None, _opt("Highest learning rate: 1e-5", _TUNE)] = None,
    fine_tune_side: Annotated[int | None, _opt("Pixels; default: --side", _TUNE)] = None,
    threshold: Annotated[float | None, _opt("Keep a text from this ITM score: 0.5", _CLEAN)] = None,
    num_captions: Annotated[int | None, _opt("Captions an image: 1", _CLEAN)] = None,
    image_size: Annotated[int | None, _opt("Pixels of downloaded images: 384", _CLEAN)] = None,
    allow_private_hosts: Annotated[
        bool | None, _opt("Also fetch from private and loopback addresses", _CLEAN)
    ] = None,
    timeout: Annotated[float | None, _opt("Seconds for each wait: 10", _CLEAN)] = None,
    total_timeout: Annotated[float | None, _opt("Seconds a request: 60", _CLEAN)] = None,
    shard_rows: Annotated[int | None, _opt("Rows a shard: 1000", _CLEAN)] = None,
    seed: Annotated[int | None, _opt("Of all that is drawn: 0", _WORK)] = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None, _opt("Of models and trainings: fp32", _WORK)
    ] = None,
    device: Annotated[str, _opt("auto, cpu, cuda, cuda:0,cuda:2", _WORK)] = "auto",
    workers: Annotated[int | None, _opt("Processes of a cleaning", _WORK)] = None,
    processes: Annotated[
        int | None, _opt("Of a training, by torchrun; default: one a device", _WORK)
    ] = None,
    every: Annotated[int | None, _opt("Steps between checkpoints: 500", _WORK)] = None,
    plan: Annotated[
        bool, _opt("Say what there is, what is missing and what it costs", _WORK, "--plan")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress")] = False,
) -> None:
    """Run N bootstrap rounds: clean, train on what is clean, clean with what came out.

    Without --captioner and --matcher, round 0 trains the first models on the web's pairs as they
    are. The same command again goes on; with a larger N it adds rounds.
    """
    from capfilt.inputs import InputSpec
    from capfilt.rounds import verbs
    from capfilt.rounds.checks import Given

    spec = InputSpec(
        paths=tuple(inputs), kind=input_format, url_col=url_col, caption_col=caption_col
    )
    given = Given(spec, out, held_out, workers, device, processes)
    with errors():
        options = _options(ctx)
        if plan:
            show(verbs.plan_rounds(options, given), as_json)
            return
        told = (lambda _: None) if quiet else say
        show(verbs.rounds(options, given, progress_bar(quiet), told), as_json)


def _options(ctx: typer.Context) -> Any:  # RoundsOptions, which is imported late
    """Collect the options by their names; those that both know are of both."""
    import dataclasses

    from capfilt.recipe.options import RoundOptions
    from capfilt.rounds.options import RoundsOptions

    def named(cls: Any) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(cls)}
        return {name: value for name, value in ctx.params.items() if name in names}

    own = named(RoundsOptions)
    human = tuple(own.pop("human") or ())
    return RoundsOptions(cleaning=RoundOptions(**named(RoundOptions)), human=human, **own)
