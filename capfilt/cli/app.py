"""The command line: parse, call, print. Heavy libraries are imported by what a command calls."""

from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from capfilt import __version__
from capfilt.cli import rounds as cli_rounds
from capfilt.cli import train as cli_train
from capfilt.cli.console import errors, progress_bar, say, show

EXIT_CODES = """Exit codes: 0 done; 1 a bug or an unexpected failure; 2 the input, an option or a
model is unusable, nothing was run; 3 files of the run are torn, missing or foreign, or the run is
not complete; 4 the run folder cannot be written or a worker died: run again to go on; 130
interrupted: run again to go on."""

app = typer.Typer(
    name="capfilt",
    help="Bootstrap clean image-text training data from noisy web pairs (CapFilt, BLIP).\n\n"
    + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


Format = Literal["auto", "csv", "tsv", "jsonl", "parquet", "img2dataset", "webdataset", "images"]
DedupMethod = Literal["none", "sha256", "phash", "embedding", "both"]
ResizeMode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
ItmToken = Literal["enc", "cls"]
Precision = Literal["fp32", "bf16"]
PolicyName = Literal["blip", "blip2", "laion-coco", "nguyen", "datacomp", "fusion", "raw"]
Score = Literal["itm", "itc", "similarity"]
Origins = Literal["both", "web", "synthetic"]

Inputs = Annotated[
    list[str], typer.Argument(help="Files, folders or globs: CSV, TSV, JSON lines, Parquet, …")
]
RunDir = Annotated[Path, typer.Argument(help="The run folder", show_default=False)]
Out = Annotated[Path, typer.Option("--run", help="The run folder; made where it is missing")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress")]

_IN, _MODEL, _DECODE = "Input", "Models", "Decoding"
_INSTRUCTIONS = "Columns text_input, text_output: 'instructblip', or a file of instructions"
_FETCH, _POLICY, _WORK = "Download", "Policy and export", "Work"


def _opt(help_: str, panel: str, *names: str) -> Any:  # typer's own return type
    return typer.Option(*names, help=help_, rich_help_panel=panel, show_default=False)


_PLAN_HELP = """Say what `run` with these options would do: what is there, what is missing, and
roughly what it costs. Writes nothing."""


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command("run")
@app.command("plan", help=_PLAN_HELP)
def run(
    ctx: typer.Context,
    inputs: Inputs,
    out: Out,
    pipeline: Annotated[str | None, _opt("A file with ROUND = Round(…)", _MODEL)] = None,
    input_format: Annotated[Format, _opt("Default: by the file's name", _IN)] = "auto",
    url_col: Annotated[str | None, _opt("Column of addresses; url, URL … are known", _IN)] = None,
    caption_col: Annotated[str | None, _opt("Column of texts; caption, TEXT …", _IN)] = None,
    image_col: Annotated[str | None, _opt("Column of image names (images)", _IN)] = None,
    images_dir: Annotated[str | None, _opt("Folder of local images (images)", _IN)] = None,
    encoding: Annotated[str, _opt("Of text files; default utf-8", _IN)] = "utf-8",
    download_missing: Annotated[
        bool, _opt("img2dataset folder: fetch what it failed to fetch", _IN)
    ] = False,
    captioner: Annotated[str | None, _opt("Folder, hub name, or 'embedded'", _MODEL)] = None,
    matcher: Annotated[str | None, _opt("Folder, hub name, or 'embedded'", _MODEL)] = None,
    scorer: Annotated[
        str | None, _opt("A second matcher, for its similarity: a CLIP", _MODEL)
    ] = None,
    itm_token: Annotated[ItmToken | None, _opt("Position 0 for ITM: enc", _MODEL)] = None,
    precision: Annotated[Precision | None, _opt("fp32 or bf16", _MODEL)] = None,
    num_captions: Annotated[int | None, _opt("Captions an image: 1", _DECODE)] = None,
    beams: Annotated[int | None, _opt("Beam search instead of nucleus sampling", _DECODE)] = None,
    top_p: Annotated[float | None, _opt("Nucleus: 0.9", _DECODE)] = None,
    top_k: Annotated[int | None, _opt("0 is off: 50", _DECODE)] = None,
    temperature: Annotated[float | None, _opt("1.0", _DECODE)] = None,
    repetition_penalty: Annotated[float | None, _opt("1.1", _DECODE)] = None,
    min_length: Annotated[int | None, _opt("Tokens, with the prompt: 5", _DECODE)] = None,
    max_length: Annotated[int | None, _opt("Tokens, with the prompt: 20", _DECODE)] = None,
    prompt: Annotated[str | None, _opt("'a picture of '", _DECODE)] = None,
    seed: Annotated[int | None, _opt("Of sampling: 0", _DECODE)] = None,
    image_size: Annotated[int | None, _opt("Pixels, img2dataset's: 384", _FETCH)] = None,
    resize_mode: Annotated[ResizeMode | None, _opt("img2dataset's: keep_ratio", _FETCH)] = None,
    min_image_size: Annotated[int | None, _opt("Pixels: 0", _FETCH)] = None,
    max_aspect_ratio: Annotated[float | None, _opt("20", _FETCH)] = None,
    allow_private_hosts: Annotated[
        bool | None, _opt("Also fetch from private and loopback addresses", _FETCH)
    ] = None,
    timeout: Annotated[float | None, _opt("Seconds for each wait: 10", _FETCH)] = None,
    total_timeout: Annotated[float | None, _opt("Seconds for a whole request: 60", _FETCH)] = None,
    threads: Annotated[int | None, _opt("Requests at a time and worker: 32", _FETCH)] = None,
    dedup: Annotated[DedupMethod | None, _opt("How near-duplicates are found", _POLICY)] = None,
    dedup_radius: Annotated[int | None, _opt("phash, both: bits that may differ", _POLICY)] = None,
    dedup_similarity: Annotated[float | None, _opt("embedding, both: cosine", _POLICY)] = None,
    policy: Annotated[
        PolicyName | None, _opt("Which texts are kept: blip; raw asks no model", _POLICY)
    ] = None,
    threshold: Annotated[
        float | None, _opt("blip: keep a text from this ITM score, 0.5; datacomp", _POLICY)
    ] = None,
    origins: Annotated[Origins | None, _opt("blip: whose texts; default both", _POLICY)] = None,
    fraction: Annotated[
        float | None, _opt("nguyen, datacomp, fusion: the top share of texts, 0.3", _POLICY)
    ] = None,
    keep_texts: Annotated[
        int | None, _opt("blip2: texts kept an image, 2; laion-coco: 1", _POLICY)
    ] = None,
    score: Annotated[
        Score | None, _opt("What blip2, nguyen, datacomp rank by: similarity", _POLICY)
    ] = None,
    file_mb: Annotated[int | None, _opt("Size of an exported file in MB: 500", _POLICY)] = None,
    instructions: Annotated[str | None, _opt(_INSTRUCTIONS, _POLICY)] = None,
    shard_rows: Annotated[int | None, _opt("Rows a shard: 1000", _WORK)] = None,
    workers: Annotated[int | None, _opt("Processes; default: cores, or devices", _WORK)] = None,
    device: Annotated[str, _opt("auto, cpu, cuda, cuda:0,cuda:2", _WORK)] = "auto",
    rank: Annotated[int, _opt("Which job of a job array, from 0", _WORK)] = 0,
    world_size: Annotated[int, _opt("How many jobs the array has", _WORK)] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a round, or go on with one: download, caption, match, dedup, select, export.

    The same command again resumes: what is finished is never done twice. Changed options redo
    what depends on them.
    """
    from capfilt.commands import verbs as commands

    spec = _input_spec(
        inputs,
        kind=input_format,
        url_col=url_col,
        caption_col=caption_col,
        image_col=image_col,
        images_dir=images_dir,
        encoding=encoding,
        download_missing=download_missing,
    )
    options = _round_options(ctx)
    with errors():
        if ctx.command.name == "plan":
            show(commands.plan(spec, options, out), as_json)
        else:
            work = commands.Work(workers, device, rank, world_size)
            show(commands.run(spec, options, out, work, progress_bar(quiet), say), as_json)


@app.command()
def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Say how far a run is: shards and rows done by every stage, failures, and the funnel."""
    from capfilt.commands import verbs as commands

    with errors():
        show(commands.status(run_dir), as_json)


@app.command()
def retry(
    run_dir: RunDir,
    fetch_only: Annotated[bool, typer.Option(help="Only fetch; `run` does the rest")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for each wait: 10")] = None,
    total_timeout: Annotated[float | None, typer.Option(help="Seconds a request: 60")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0,cuda:2")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch again what failed in a way that can pass (time-outs, 5xx, connection errors).

    An attempt is added; nothing published is rewritten. Then the rest of the round runs for the
    rows that came, unless --fetch-only is given.
    """
    from capfilt.commands import verbs as commands

    work = commands.Work(workers, device)
    waits = commands.Waits(timeout, total_timeout)
    with errors():
        result = commands.retry(run_dir, waits, fetch_only, work, progress_bar(quiet), say)
        show(result, as_json)


@app.command()
def export(
    run_dir: RunDir,
    to: Annotated[Path | None, typer.Option(help="Folder; default: in the run folder")] = None,
    threshold: Annotated[float | None, typer.Option(help="Another ITM threshold")] = None,
    origins: Annotated[Origins | None, typer.Option(help="Whose texts; default both")] = None,
    file_mb: Annotated[int | None, typer.Option(help="Size of a file in MB: 500")] = None,
    instructions: Annotated[str | None, typer.Option(help=_INSTRUCTIONS)] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the cleaned dataset of a finished run again, elsewhere or with another threshold."""
    from capfilt.commands import verbs as commands

    with errors():
        how = commands.Exporting(to, threshold, origins, file_mb, instructions)
        show(commands.export(run_dir, how, progress_bar(quiet), say), as_json)


@app.command()
def verify(run_dir: RunDir, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Read everything again and check digests, counts and schemas. Exit code 3 on damage."""
    from capfilt.commands import verbs as commands

    with errors():
        found = commands.verify(run_dir, progress_bar(quiet))
        show(found, as_json)
        if found.problems:
            raise typer.Exit(3)


@app.command()
def evaluate(
    data: Annotated[
        str, typer.Argument(help="Parquet with image and text: a file, folder or glob")
    ],
    captioner: Annotated[str | None, _opt("Judge its captions: CIDEr, BLEU", _MODEL)] = None,
    matcher: Annotated[str | None, _opt("Judge its retrieval, and as a filter", _MODEL)] = None,
    truth_col: Annotated[
        str | None, _opt("Column that says whether a text is true: ROC-AUC", _IN)
    ] = None,
    limit: Annotated[int | None, _opt("At most so many images", _IN)] = None,
    top: Annotated[int, _opt("Candidates that ITM re-ranks", _MODEL)] = 128,
    threshold: Annotated[float, _opt("Of the filter", _POLICY)] = 0.5,
    precision: Annotated[Precision, _opt("fp32 or bf16", _MODEL)] = "fp32",
    device: Annotated[str, _opt("auto, cpu, cuda or cuda:1", _WORK)] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge models: retrieval TR@k and IR@k, captions by CIDEr and BLEU, a filter by ROC-AUC."""
    from capfilt.commands import verbs as commands

    with errors():
        found = commands.evaluate(
            data,
            commands.Judged(captioner, matcher, truth_col, limit),
            commands.Judging(top, threshold, precision, device),
            progress_bar(quiet),
        )
        show(found, as_json)


@app.command()
def gc(
    run_dir: RunDir,
    yes: Annotated[bool, typer.Option("--yes", help="Remove, not only list")] = False,
    keep: Annotated[int, typer.Option(help="How many of the latest rounds are kept", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """List what the latest round does not need; with --yes remove it."""
    from capfilt.commands import verbs as commands

    with errors():
        show(commands.gc(run_dir, keep, yes), as_json)


app.command("rounds")(cli_rounds.rounds)
app.add_typer(cli_train.app, name="train")


def main() -> NoReturn:
    """Run the command line."""
    app()
    raise AssertionError("typer exits by itself")


def _input_spec(inputs: list[str], **given: Any) -> Any:  # InputSpec, which is imported late
    from capfilt.inputs import InputSpec

    return InputSpec(paths=tuple(inputs), **given)


def _round_options(ctx: typer.Context) -> Any:  # RoundOptions, which is imported late
    """Collect the options of a round by their names."""
    import dataclasses

    from capfilt.recipe.options import RoundOptions

    names = {field.name for field in dataclasses.fields(RoundOptions)}
    return RoundOptions(**{name: given for name, given in ctx.params.items() if name in names})
