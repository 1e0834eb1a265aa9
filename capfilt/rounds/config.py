"""The whole bootstrap loop as one frozen configuration."""

import dataclasses
from dataclasses import dataclass
from typing import Final, Literal

from capfilt.errors import InputError
from capfilt.export.formats import Parquet
from capfilt.models.recipe import ModelRef
from capfilt.recipe.pipeline_file import run_pipeline
from capfilt.recipe.round import Round
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.policies.raw import RawWeb
from capfilt.train.plan import PairFolder, TrainPlan

# Stands for a model that an earlier step trains.
UNTRAINED: Final = ModelRef(digest="", name="trained by the round before", path="")


@dataclass(frozen=True, slots=True)
class Rounds:
    """`count` bootstrap rounds over one input.

    first: the recipe of the cleaning. Every round has it, with the models of the round before.
    human: pairs that people wrote. They join every pre-training, and captioner and filter are
        fine-tuned on them alone. With weights, the web's part has the weight `web_weight`.
    like, init: what every pre-training begins with: fresh weights of the checkpoint `like`, or the
        weights of the checkpoint `init`; one of the two. A new model in every round is better than
        one that goes on (BLIP, Table 13).
    begin: "raw" trains the first models on the web's texts as they are (round 0); "models" cleans
        round 1 with the captioner and matcher of `first`.
    pretrain, captioner, filter: the three trainings of a round.

    Raises:
        InputError: a value is out of its range, or values contradict each other.
    """

    first: Round
    human: tuple[PairFolder, ...] = ()
    count: int = 1
    like: str | None = None
    init: str | None = None
    begin: Literal["raw", "models"] = "raw"
    web_weight: float | None = None
    pretrain: TrainPlan = TrainPlan("pretrain")
    captioner: TrainPlan = TrainPlan("captioner")
    filter: TrainPlan = TrainPlan("filter")

    def __post_init__(self) -> None:
        """Check what needs no file."""
        if self.count < 1:
            raise InputError(f"{self.count} rounds; give at least 1")
        if self.like is not None and self.init is not None:
            raise InputError(
                "give --like CHECKPOINT (fresh weights of its architecture) or --init MODEL (go on "
                "from its weights), not both"
            )
        if not isinstance(self.first.export.format, Parquet):
            raise InputError(
                "the rounds train on what they export, and training reads Parquet alone; leave "
                "--format out, and export in it afterwards: `capfilt export OUT/run --format …`"
            )
        for plan, kind in zip(self.trainings, ("pretrain", "captioner", "filter"), strict=True):
            if plan.kind != kind:
                raise InputError(f"the training {kind!r} of the rounds is a plan of {plan.kind!r}")

    @property
    def trainings(self) -> tuple[TrainPlan, TrainPlan, TrainPlan]:
        """The three trainings of a round, in their order."""
        return self.pretrain, self.captioner, self.filter

    @property
    def start(self) -> tuple[str, bool]:
        """Name of the checkpoint that a pre-training begins with, and whether only its shape.

        Raises:
            InputError: none is named.
        """
        if self.init is not None:
            return self.init, False
        if self.like is not None:
            return self.like, True
        if self.begin == "models":
            return self.first.caption.model.path, True
        raise InputError(
            "give --like CHECKPOINT (the architecture of the new models) or --init MODEL, or begin "
            "with models of yours: --captioner and --matcher"
        )

    def raw(self) -> Round:
        """Return the round that downloads everything and keeps the web's texts as they are.

        Its near-duplicates are those of equal bytes where the recipe would compare a model's
        embeddings, which no model has written yet.
        """
        dedup = self.first.dedup
        if dedup is not None and "image_embedding" in dedup.needs:
            dedup = Dedup("sha256")
        return dataclasses.replace(
            self.first.next(UNTRAINED, UNTRAINED), select=RawWeb(), dedup=dedup, scorer=None
        )

    def pretraining_data(self, export: str) -> tuple[PairFolder, ...]:
        """Return what a pre-training reads: the export of its round, and the human pairs."""
        weight = self.web_weight
        if weight is None and any(pairs.weight is not None for pairs in self.human):
            weight = 1.0
        return PairFolder(export, weight), *self.human


def load_rounds(path: str) -> Rounds:
    """Run a pipeline file and return its `ROUNDS`, or one made of its `ROUND`.

    Raises:
        InputError: there is no such file, it fails, or it defines neither.
    """
    module = run_pipeline(path)
    found = getattr(module, "ROUNDS", None)
    if isinstance(found, Rounds):
        return found
    recipe = getattr(module, "ROUND", None)
    if isinstance(recipe, Round):
        return Rounds(recipe)
    raise InputError(
        f"{path} defines neither ROUNDS = Rounds(…) nor ROUND = Round(…); see pipelines/"
    )
