"""A training before its data are there: BLIP's recipe or one's own, and what is changed in it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from capfilt.errors import InputError
from capfilt.fingerprint import NOT_IDENTITY
from capfilt.models.recipe import TrainingPrecision
from capfilt.train.data.augment import Augment
from capfilt.train.data.mixture import Mixture, Stream
from capfilt.train.options import AnyRecipe, Kind, TrainOptions, changed_recipe, recipe_of
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Pretrain

_KINDS: Final[tuple[tuple[Kind, type[AnyRecipe]], ...]] = (
    ("pretrain", Pretrain),
    ("captioner", FineTuneCaptioner),
    ("filter", FineTuneFilter),
)
_CHANGES: Final = (
    *("epochs", "steps", "batch_size", "accumulate", "peak_lr", "warmup_steps", "weight_decay"),
    *("clip", "side", "queue_size", "max_tokens"),
)


@dataclass(frozen=True, slots=True)
class PairFolder:
    """A folder of image-text pairs, and its part of a mixture (None: each sample once an epoch)."""

    folder: str
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How one kind of model is trained in every round.

    `recipe` None: BLIP's figures for as many samples as there turn out to be. The fields below it
    are None where the recipe's own figure is meant. `workers` threads decode images, a checkpoint
    is kept `every` so many steps; `recompute` takes less memory and more time.

    Raises:
        InputError: the recipe is of another kind, or has no epochs to change.
    """

    kind: Kind
    recipe: AnyRecipe | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    peak_lr: float | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None
    clip: float | None = None
    side: int | None = None
    queue_size: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    augment: Augment | None = None
    precision: TrainingPrecision = "fp32"
    workers: int = field(default=2, metadata=NOT_IDENTITY)
    every: int = field(default=500, metadata=NOT_IDENTITY)
    recompute: bool = field(default=False, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        """Check that recipe and changes fit together."""
        wanted = dict(_KINDS)[self.kind]
        if self.recipe is not None and not isinstance(self.recipe, wanted):
            raise InputError(
                f"the recipe of {self.kind!r} is a {type(self.recipe).__name__}; "
                f"give a {wanted.__name__}"
            )
        if self.every < 1 or self.workers < 0:
            raise InputError(
                f"a checkpoint every {self.every} steps, {self.workers} workers; give at least 1 "
                "step, and 0 workers or more"
            )
        if self.recipe is not None and self.epochs is not None:
            raise InputError(
                f"the recipe of {self.kind!r} counts steps, and how many pairs it was made for is "
                "not known; give steps instead of epochs"
            )
        if self.epochs is not None and self.steps is not None:
            raise InputError("epochs and steps exclude each other: give one")

    def recipe_for(self, samples: int, start: Path) -> AnyRecipe:
        """Return the recipe for so many samples, from the checkpoint in the folder `start`.

        Raises:
            InputError: a value is out of its range.
        """
        given = {name: getattr(self, name) for name in _CHANGES}
        options = TrainOptions(self.kind, (), Path(), seed=self.seed or 0, **given)
        if self.recipe is None:
            return recipe_of(options, samples, start)
        changed = changed_recipe(self.recipe, options)
        return changed if self.seed is None else dataclasses.replace(changed, seed=self.seed)


def mixture(folders: tuple[PairFolder, ...]) -> Mixture:
    """Return the mixture of these folders.

    Raises:
        InputError: a weight is not positive, or some have one and some have none.
    """
    return Mixture(tuple(Stream(Path(one.folder), weight=one.weight) for one in folders))
