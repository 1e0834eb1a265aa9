"""From command-line options to a training: BLIP's recipe, with what is given changed."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from capfilt.errors import InputError
from capfilt.models.recipe import TrainingPrecision
from capfilt.option import WORK, option
from capfilt.train.data.augment import KEEPS_COLOUR, Augment
from capfilt.train.data.mixture import Mixture, Stream, weighted
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Optim, Pretrain

T = TypeVar("T")
Kind = Literal["pretrain", "captioner", "filter"]
AnyRecipe = Pretrain | FineTuneCaptioner | FineTuneFilter
Augmentation = Literal["none", "blip", "colour-safe"]
DATA: Final = "Data"
OPTIMISATION: Final = "Optimisation (the defaults are BLIP's)"


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of `capfilt train`, None where BLIP's own figure is meant."""

    kind: Kind
    data: tuple[str, ...]
    out: Path
    like: str | None = option(
        None, "Fresh weights, architecture and tokenizer of this checkpoint", panel=DATA
    )
    init: str | None = option(
        None, "Weights to go on from: a training's model/, a checkpoint", panel=DATA
    )
    one_text: bool = option(False, "One random text an image an epoch", panel=DATA)
    captions_per_image: int | None = option(
        None, "Texts of an image that LM sees at once; with --one-text", panel=DATA, shown="1"
    )
    max_tokens: int | None = option(None, "Cut texts after so many tokens", panel=DATA, shown="40")
    augment: Augmentation = option("none", "What is done to images", panel=DATA)
    side: int | None = option(
        None, "Side of the square images, in pixels", panel=DATA, shown="the checkpoint's"
    )
    epochs: int | None = option(
        None, "Times through the data", panel=OPTIMISATION, shown="20; captioner 5, filter 6"
    )
    steps: int | None = option(None, "Steps, instead of --epochs", panel=OPTIMISATION)
    batch_size: int | None = option(
        None,
        "Pairs a step, over all processes",
        panel=OPTIMISATION,
        shown="2880, ViT-L 2400; fine-tuning 256",
    )
    accumulate: int | None = option(
        None, "Parts that a step is computed in", panel=OPTIMISATION, shown="1"
    )
    peak_lr: float | None = option(
        None,
        "Highest learning rate",
        panel=OPTIMISATION,
        shown="3e-4, ViT-L 2e-4; fine-tuning 1e-5, ViT-L 2e-6 and 5e-6",
    )
    warmup_steps: int | None = option(
        None, "Steps of linear warm-up", panel=OPTIMISATION, shown="3000; fine-tuning 0"
    )
    weight_decay: float | None = option(
        None, "Weight decay of matrices", panel=OPTIMISATION, shown="0.05"
    )
    clip: float | None = option(
        None, "Bound of the gradient's norm", panel=OPTIMISATION, shown="none"
    )
    queue_size: int | None = option(
        None, "Features in the queue of the ITC loss", panel=OPTIMISATION, shown="57600"
    )
    seed: int = option(0, "Seed of everything that is drawn at random", panel=OPTIMISATION)
    precision: TrainingPrecision = option("fp32", "fp32, or bf16 autocast", panel=WORK)
    device: str = option("auto", "auto, cpu, cuda or cuda:1", panel=WORK)
    workers: int = option(2, "Threads that decode images", panel=WORK)
    every: int = option(500, "Steps from one checkpoint to the next", panel=WORK)
    recompute: bool = option(False, "Less memory, more time (checkpointing)", panel=WORK)


def mixture_of(options: TrainOptions) -> Mixture:
    """Return the data: folders, each `DIR` or `DIR=WEIGHT`.

    Raises:
        InputError: a weight is no number.
    """
    texts: Literal["all", "one"] = "one" if options.one_text else "all"
    return Mixture(tuple(_stream(given, texts) for given in options.data))


def _stream(given: str, texts: Literal["all", "one"]) -> Stream:
    folder, weight = weighted(given)
    return Stream(Path(folder), weight=weight, texts=texts)


def augment_of(options: TrainOptions) -> Augment | None:
    """Return what is done to images: nothing, BLIP's, or BLIP's less what could change a colour."""
    if options.augment == "none":
        return None
    return Augment() if options.augment == "blip" else Augment(operations=KEEPS_COLOUR)


def recipe_of(options: TrainOptions, samples: int, start: Path) -> AnyRecipe:
    """Return BLIP's recipe for so many samples, with what was given changed.

    Raises:
        InputError: a value is out of its range, or --epochs and --steps are both given.
    """
    if options.epochs is not None and options.steps is not None:
        raise InputError("--epochs and --steps exclude each other: give one")
    config = config_of(start)
    vit: Literal["base", "large"] = (
        "large" if config["vision_config"].get("hidden_size", 768) > 768 else "base"
    )
    kinds: dict[Kind, Any] = {
        "pretrain": Pretrain,
        "captioner": FineTuneCaptioner,
        "filter": FineTuneFilter,
    }
    epochs = {} if options.epochs is None else {"epochs": options.epochs}
    base = kinds[options.kind].blip(samples, vit, seed=options.seed, **epochs)
    side = config["vision_config"].get("image_size", 384)
    recipe = changed_recipe(dataclasses.replace(base, side=side), options)
    check_fits(recipe, config)
    return recipe


def check_fits(recipe: AnyRecipe, config: dict[str, Any]) -> None:
    """Check a recipe against the configuration of the checkpoint that it begins with.

    Raises:
        InputError: images of that side have no whole patches, or texts more tokens than places.
    """
    patch = config["vision_config"].get("patch_size", 16)
    if recipe.side % patch:
        raise InputError(
            f"{recipe.side} pixels are no multiple of the patch of {patch} pixels; give another "
            "--side"
        )
    places = config["text_config"].get("max_position_embeddings", 512)
    if recipe.max_tokens > places:
        raise InputError(
            f"max_tokens is {recipe.max_tokens}, and the checkpoint has places for {places}; give "
            f"--max-tokens {places} or less"
        )


def changed_recipe(base: AnyRecipe, options: TrainOptions) -> AnyRecipe:
    """Return a recipe with those of its figures changed that the options give.

    Raises:
        InputError: a value is out of its range.
    """
    optim, side = _optim(base.optim, options), option_or(options.side, base.side)
    tokens = option_or(options.max_tokens, base.max_tokens)
    changed = dataclasses.replace(base, optim=optim, side=side, max_tokens=tokens)
    if not isinstance(changed, FineTuneFilter):
        captions = option_or(options.captions_per_image, changed.captions_per_image)
        changed = dataclasses.replace(changed, captions_per_image=captions)
    elif options.captions_per_image is not None:
        raise InputError("--captions-per-image is nothing to a filter, which has no LM")
    if isinstance(changed, FineTuneCaptioner):
        return changed
    size = option_or(options.queue_size, changed.itc.queue_size)
    ramp = round(changed.itc.alpha_ramp_steps * base.optim.batch_size / optim.batch_size)
    itc = dataclasses.replace(changed.itc, queue_size=size, alpha_ramp_steps=ramp)
    return dataclasses.replace(changed, itc=itc)


def option_or(option: int | None, otherwise: T) -> int | T:
    """Return an option's value, 0 too, which is to be refused and not to be taken for nothing."""
    return otherwise if option is None else option


def _optim(base: Optim, options: TrainOptions) -> Optim:
    """Change BLIP's optimisation; as many epochs as it has, whatever the batch is."""
    batch = option_or(options.batch_size, base.batch_size)
    if batch < 1:
        raise InputError(f"batch_size is {batch}; it must be at least 1")
    steps = option_or(options.steps, max(1, round(base.steps * base.batch_size / batch)))
    warmup = options.warmup_steps
    if warmup is None:
        warmup = min(base.warmup_steps, steps // 10)
    given = {
        "peak_lr": options.peak_lr,
        "accumulate": options.accumulate,
        "weight_decay": options.weight_decay,
        "clip": options.clip,
    }
    kept = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(
        base,
        steps=steps,
        batch_size=batch,
        warmup_steps=warmup,
        **kept,  # type: ignore[arg-type]  # the fields' own types
    )


def config_of(start: Path) -> dict[str, Any]:  # JSON
    """Return the configuration of a checkpoint, or of the models in a training's folder.

    Raises:
        InputError: there is none.
    """
    for name in (".", "med", "captioner", "matcher"):
        file = start / name / "config.json"
        if file.exists():
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return config
    raise InputError(f"{start} has no config.json; give a checkpoint or an earlier training")
