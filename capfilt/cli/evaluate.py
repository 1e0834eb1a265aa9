"""`capfilt evaluate`: parse, call, print."""

from typing import Annotated, Any

import typer

from capfilt.cli.console import AsJson, Quiet, run_and_show, say
from capfilt.cli.signature import takes
from capfilt.commands.evaluate import EvaluateOptions
from capfilt.commands.evaluate import evaluate as evaluated
from capfilt.flags import constructed, flags_of

Data = Annotated[str, typer.Argument(help="Parquet with image and text: a file, folder or glob")]


@takes(flags_of(EvaluateOptions))
def evaluate(
    data: Data,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **given: Any,  # by flag
) -> None:
    """Judge models: retrieval TR@k and IR@k, captions by CIDEr and BLEU, a filter by ROC-AUC."""
    run_and_show(
        lambda bars: evaluated(data, constructed(EvaluateOptions, given), bars, say), as_json, quiet
    )
