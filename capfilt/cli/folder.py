"""The verbs that look at a run folder or go on with it: parse, call, print."""

import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from capfilt.cli.console import AsJson, Quiet, errors, progress_bar, say, show
from capfilt.cli.places import local_place, place
from capfilt.cli.signature import takes
from capfilt.commands import Hardware
from capfilt.commands import folder as verbs
from capfilt.errors import InputError
from capfilt.export import ExportConfig
from capfilt.flags import constructed, flags_of
from capfilt.recipe.pipeline_file import run_pipeline
from capfilt.stages.download import Download
from capfilt.stages.policies.presets import Policy
from capfilt.store.location import Location

Code = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline",
        help="A file of code of your own that the run has (again for another)",
        show_default=False,
    ),
]
RunDir = Annotated[
    Location,
    typer.Argument(help="The run folder", parser=place, metavar="RUN_DIR", show_default=False),
]


def status(run_dir: RunDir, pipeline: Code = None, as_json: AsJson = False) -> None:
    """Say how far a run is: shards and rows done by every stage, failures, and the funnel."""
    with errors():
        _load(pipeline)
        show(verbs.status(run_dir), as_json)


@takes(flags_of(Download, identity=False), flags_of(Hardware))
def retry(
    run_dir: RunDir,
    fetch_only: Annotated[bool, typer.Option(help="Only fetch; `run` does the rest")] = False,
    pipeline: Code = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,  # by flag
) -> None:
    """Fetch again what failed in a way that can pass (time-outs, 5xx, connection errors).

    With --allow-private-hosts also what was refused as no public address; with --user-agent or
    --referer also what was forbidden (401, 403, 406); with --proxy also what has no known name. An
    attempt is added; nothing published is rewritten. Then the rest of the round runs for the rows
    that came, unless --fetch-only is given.
    """
    with errors():
        _load(pipeline)
        hardware = constructed(Hardware, given)
        bars = progress_bar(quiet)
        show(verbs.retry(run_dir, given, fetch_only, hardware, bars, say), as_json)


@takes(flags_of(*typing.get_args(Policy)), flags_of(ExportConfig))
def export(
    run_dir: RunDir,
    to: Annotated[
        Location | None,
        typer.Option(
            help="Folder; default: in the run folder. Also s3://, gs://, az://",
            parser=place,
            metavar="PATH",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another or a damaged export that lies there")
    ] = False,
    pipeline: Code = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,  # by flag
) -> None:
    """Write the cleaned dataset of a finished run again, elsewhere or by other figures.

    The run itself stays what it is; `status` lists its exports.
    """
    with errors():
        _load(pipeline)
        how = verbs.ExportRequest(to, given, replace)
        show(verbs.export(run_dir, how, progress_bar(quiet), say), as_json)


def push(
    name: Annotated[str, typer.Argument(help="The dataset on the hub, org/name")],
    folder: Annotated[
        Path,
        typer.Argument(
            help="An export, or a run folder (its latest)", parser=local_place, metavar="FOLDER"
        ),
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see a dataset that is new there")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another export that lies there")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload an export to the Hugging Face Hub, after checking it; again: go on.

    The token is that of `hf auth login` or HF_TOKEN.
    """
    with errors():
        from capfilt.commands.push import push as upload

        show(upload(name, folder, not public, replace, say), as_json)


def query(
    run_dir: Annotated[
        Path,
        typer.Argument(
            help="The run folder", parser=local_place, metavar="RUN_DIR", show_default=False
        ),
    ],
    sql: Annotated[
        str | None, typer.Argument(help="A question about the views `rows` and `texts`")
    ] = None,
    print_view: Annotated[
        bool, typer.Option("--print-view", help="Print the views' SQL, for a DuckDB of your own")
    ] = False,
    pipeline: Code = None,
    as_json: AsJson = False,
) -> None:
    """Ask the latest round by SQL: `rows` has a row of the input a row, `texts` a text.

    For example: "select origin, avg(itm_score), avg(kept::int) from texts group by all".
    """
    with errors():
        from capfilt.commands.query import query as ask
        from capfilt.commands.query import view_sql

        _load(pipeline)
        if print_view == (sql is not None):
            raise InputError("give a question in SQL, or --print-view")
        if sql is None:
            typer.echo(view_sql(run_dir), nl=False)
        else:
            show(ask(run_dir, sql, all_rows=as_json), as_json)


def verify(
    run_dir: Annotated[
        Location,
        typer.Argument(help="The run folder, or an export's", parser=place, metavar="RUN_DIR"),
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what is damaged to `damaged`; run makes it again")
    ] = False,
    pipeline: Code = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read everything again and check digests, counts and schemas. Exit code 3 on damage."""
    with errors():
        _load(pipeline)
        found = verbs.verify(run_dir, progress_bar(quiet), repair)
        show(found, as_json)
        if found.problems:
            raise typer.Exit(3)


def gc(
    run_dir: RunDir,
    yes: Annotated[bool, typer.Option("--yes", help="Remove, not only list")] = False,
    keep: Annotated[int, typer.Option(help="How many of the latest rounds are kept", min=1)] = 1,
    pipeline: Code = None,
    as_json: AsJson = False,
) -> None:
    """List what the latest round does not need; with --yes remove it."""
    with errors():
        _load(pipeline)
        show(verbs.gc(run_dir, keep, yes), as_json)


def _load(pipelines: list[str] | None) -> None:
    """Run code of the user's; it is never run because a folder names it."""
    for pipeline in pipelines or []:
        run_pipeline(pipeline)
