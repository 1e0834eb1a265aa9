"""What `capfilt evaluate` does."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.engine.machine import choose_devices
from capfilt.engine.precision import check_precisions, precision_warning
from capfilt.models.recipe import PRECISION_HELP, Precision
from capfilt.option import INPUT, MODELS, POLICY, WORK, check_options, option
from capfilt.progress import Progress, Say

if TYPE_CHECKING:
    from capfilt.evaluate.models import Evaluation


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Options of `capfilt evaluate`: the models, the data they are judged by, and how."""

    captioner: str | None = option(None, "Judge its captions: CIDEr, BLEU", panel=MODELS)
    matcher: str | None = option(None, "Judge its retrieval, and as a filter", panel=MODELS)
    truth_col: str | None = option(
        None, "Column that says whether a text is true: ROC-AUC", panel=INPUT
    )
    limit: int | None = option(None, "At most so many images", panel=INPUT, at_least=1)
    top: int = option(128, "Candidates that ITM ranks again", panel=MODELS, at_least=1)
    threshold: float = option(
        0.5, "ITM score from which the filter keeps a text", panel=POLICY, at_least=0, at_most=1
    )
    precision: Precision = option("fp32", PRECISION_HELP, panel=MODELS)
    device: str = option("auto", "auto, cpu, cuda or cuda:1", panel=WORK)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)


def evaluate(data: str, options: EvaluateOptions, progress: Progress, say: Say) -> "Evaluation":
    """Judge models on image-text pairs; `say` hears of what makes that slow.

    Raises:
        InputError: the data or a model cannot be used.
    """
    from capfilt.evaluate.models import Settings, find_models
    from capfilt.evaluate.models import evaluate as evaluated
    from capfilt.evaluate.pairs import load_pairs

    models = find_models(options.captioner, options.matcher)
    settings = Settings(
        top=options.top,
        threshold=options.threshold,
        precision=options.precision,
        device=choose_devices(options.device)[0],
    )
    check_precisions([settings.precision], [settings.device])
    slow = precision_warning([settings.precision], [settings.device])
    if slow is not None:
        say(slow)
    pairs = load_pairs(data, options.truth_col, options.limit)
    with progress("evaluate", len(pairs.images) * models.count) as told:
        return evaluated(pairs, models, settings, told)
