"""From command-line options to rounds: what is given overrides the pipeline's configuration."""

import dataclasses
from dataclasses import dataclass
from typing import Final

from capfilt.errors import InputError
from capfilt.models.recipe import TrainingPrecision
from capfilt.option import WORK, option
from capfilt.recipe.options import RoundOptions, changed_round, default_round
from capfilt.rounds.config import Rounds, load_rounds
from capfilt.train.data.augment import KEEPS_COLOUR, Augment
from capfilt.train.data.mixture import weighted
from capfilt.train.options import DATA, Augmentation, option_or
from capfilt.train.plan import PairFolder, TrainPlan

PRETRAINING: Final = "Pre-training"
FINE_TUNING: Final = "Fine-tuning of captioner and filter"


@dataclass(frozen=True, slots=True)
class RoundsOptions:
    """Options of `capfilt rounds`, each None where it was not given. See `capfilt rounds --help`.

    `human` are folders, each `DIR` or `DIR=WEIGHT`; `cleaning` has what a cleaning shares with
    `capfilt run`, the models for round 1 among it.
    """

    cleaning: RoundOptions
    count: int | None = None
    human: tuple[str, ...] = ()
    like: str | None = option(
        None, "New models are built like this checkpoint, with fresh weights", panel=DATA
    )
    init: str | None = option(
        None, "New models go on from the weights of this checkpoint", panel=DATA
    )
    web_weight: float | None = option(
        None, "Weight of the web's pairs beside those of --human", panel=DATA, shown="1"
    )
    epochs: int | None = option(None, "Times through all pairs", panel=PRETRAINING, shown="20")
    steps: int | None = option(None, "Steps, instead of --epochs", panel=PRETRAINING)
    batch_size: int | None = option(
        None, "Pairs a step, over all processes", panel=PRETRAINING, shown="2880, ViT-L 2400"
    )
    peak_lr: float | None = option(
        None, "Highest learning rate", panel=PRETRAINING, shown="3e-4, ViT-L 2e-4"
    )
    queue_size: int | None = option(
        None, "Features in the queue of the ITC loss", panel=PRETRAINING, shown="57600"
    )
    max_tokens: int | None = option(
        None, "Cut texts after so many tokens", panel=PRETRAINING, shown="40"
    )
    side: int | None = option(
        None, "Side of the square images, in pixels", panel=PRETRAINING, shown="the checkpoint's"
    )
    augment: Augmentation | None = option(
        None, "Augmentation of the images", panel=PRETRAINING, shown="none"
    )
    fine_tune_epochs: int | None = option(
        None, "Times through the human pairs", panel=FINE_TUNING, shown="5 and 6"
    )
    fine_tune_steps: int | None = option(None, "Steps, instead of epochs", panel=FINE_TUNING)
    fine_tune_batch_size: int | None = option(
        None, "Pairs a step, over all processes", panel=FINE_TUNING, shown="--batch-size"
    )
    fine_tune_lr: float | None = option(
        None, "Highest learning rate", panel=FINE_TUNING, shown="1e-5"
    )
    fine_tune_side: int | None = option(
        None, "Side of the square images, in pixels", panel=FINE_TUNING, shown="--side"
    )
    seed: int | None = option(
        None, "Seed of everything that is drawn at random", panel=WORK, shown="0"
    )
    precision: TrainingPrecision | None = option(
        None, "Precision of models and trainings", panel=WORK, shown="fp32"
    )
    every: int | None = option(None, "Steps between checkpoints", panel=WORK, shown="500")


def build_rounds(options: RoundsOptions) -> Rounds:
    """Return the rounds that the options describe.

    Raises:
        InputError: the pipeline file, a model or a value is unusable; it says which.
    """
    cleaning = options.cleaning
    pipeline = cleaning.get("pipeline")
    base = load_rounds(str(pipeline)) if pipeline else Rounds(default_round())
    models = [cleaning.get("captioner"), cleaning.get("matcher")]
    if (models[0] is None) != (models[1] is None):
        raise InputError("give both --captioner and --matcher to begin with, or neither")
    start = {"like": options.like, "init": options.init}
    if not any(start.values()):
        start = {"like": base.like, "init": base.init}
    given = {"count": options.count, "web_weight": options.web_weight}
    return dataclasses.replace(
        base,
        first=changed_round(base.first, cleaning),
        human=tuple(map(_folder, options.human)) or base.human,
        begin="models" if models[0] is not None else base.begin,
        pretrain=_pretrain(base.pretrain, options),
        captioner=_fine_tune(base.captioner, options),
        filter=_fine_tune(base.filter, options),
        **start,  # type: ignore[arg-type]  # the fields' own types
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]  # likewise
    )


def _pretrain(base: TrainPlan, options: RoundsOptions) -> TrainPlan:
    return _plan(
        base,
        options,
        epochs=options.epochs,
        steps=options.steps,
        batch_size=options.batch_size,
        peak_lr=options.peak_lr,
        side=options.side,
    )


def _fine_tune(base: TrainPlan, options: RoundsOptions) -> TrainPlan:
    return _plan(
        base,
        options,
        epochs=options.fine_tune_epochs,
        steps=options.fine_tune_steps,
        batch_size=option_or(options.fine_tune_batch_size, options.batch_size),
        peak_lr=options.fine_tune_lr,
        side=option_or(options.fine_tune_side, options.side),
    )


def _plan(base: TrainPlan, options: RoundsOptions, **given: object) -> TrainPlan:
    shared = {
        "queue_size": options.queue_size,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "precision": options.precision,
        "every": options.every,
        "augment": _augment(options),
    }
    wanted = {name: value for name, value in {**given, **shared}.items() if value is not None}
    if "epochs" in wanted or "steps" in wanted:
        base = dataclasses.replace(base, epochs=None, steps=None)  # one for the other
    if options.augment == "none":
        base = dataclasses.replace(base, augment=None)
    return dataclasses.replace(base, **wanted)  # type: ignore[arg-type]  # the fields' own types


def _augment(options: RoundsOptions) -> Augment | None:
    match options.augment:
        case "blip":
            return Augment()
        case "colour-safe":
            return Augment(operations=KEEPS_COLOUR)
        case _:
            return None


def _folder(given: str) -> PairFolder:
    """Read `DIR` or `DIR=WEIGHT`.

    Raises:
        InputError: the weight is no number.
    """
    return PairFolder(*weighted(given))
