"""The experiment's trainings: pre-training of an arm, and fine-tuning on human pairs."""

from pathlib import Path
from typing import Literal

from capfilt.train.data.mixture import Mixture, Stream
from capfilt.train.loop import LoopOptions
from capfilt.train.recipe import (
    FineTuneCaptioner,
    FineTuneFilter,
    Pretrain,
)
from capfilt.train.start import start_of
from capfilt.train.training import Training, train
from pipelines.experiments.proof.design import Design
from pipelines.experiments.start import small_itc, small_optim

Kind = Literal["captioner", "filter", "both"]


def pretrain(
    design: Design, root: Path, start: Path, pairs: Path, copies: int, seed: int, out: Path
) -> Path:
    """Pre-train on an arm's pairs and the human ones; returns the folder of the models."""
    web = (1.0 - design.human_weight) / copies
    streams = [
        Stream(root / "human", weight=design.human_weight),
        *(Stream(pairs, weight=web) for _ in range(copies)),
    ]
    recipe = Pretrain(
        small_optim(design.steps, design.batch_size, design.peak_lr),
        small_itc(design.steps, design.queue_size),
        side=design.side,
        seed=seed,
        max_tokens=design.max_tokens,
    )
    return _trained(recipe, start, Mixture(tuple(streams)), out)


def fine_tune(
    design: Design, root: Path, kind: Kind, start: Path, steps: int, seed: int, out: Path
) -> Path:
    """Fine-tune a pre-trained model on the human pairs; returns the folder of the models.

    `both`: one model with all three losses, which is what Table 4 warns of.
    """
    optim = small_optim(steps, design.batch_size, design.fine_tune_lr)
    itc = small_itc(steps, design.queue_size)
    recipe: Pretrain | FineTuneCaptioner | FineTuneFilter
    if kind == "captioner":
        recipe = FineTuneCaptioner(optim, side=design.side, seed=seed)
    elif kind == "filter":
        recipe = FineTuneFilter(optim, itc, side=design.side, seed=seed)
    else:
        recipe = Pretrain(optim, itc, side=design.side, seed=seed)
    return _trained(recipe, start, Mixture((Stream(root / "human"),)), out)


def _trained(
    recipe: Pretrain | FineTuneCaptioner | FineTuneFilter,
    start: Path,
    data: Mixture,
    out: Path,
) -> Path:
    looping = LoopOptions(out, every=200, precision="bf16")
    training = Training(recipe, start_of(str(start), fresh=False), data, looping=looping)
    train(training, lambda _: None)
    return out / "model"
