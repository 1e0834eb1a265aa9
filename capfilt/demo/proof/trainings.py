"""The experiment's trainings: pre-training of an arm, and fine-tuning on human pairs."""

from pathlib import Path
from typing import Literal

from capfilt.demo.proof.design import Design
from capfilt.train.data import Mixture, Stream
from capfilt.train.loop import Looping
from capfilt.train.recipe import (
    FineTuneCaptioner,
    FineTuneFilter,
    Itc,
    Optim,
    Pretrain,
)
from capfilt.train.run import Training, train
from capfilt.train.start import start_of

Kind = Literal["captioner", "filter", "both"]


def begin(design: Design, root: Path, out: Path) -> Path:
    """Train what every pre-training starts from on labelled pictures; returns its models."""
    recipe = Pretrain(
        _optim(design, design.label_steps, design.label_lr),
        _itc(design, design.label_steps),
        side=design.side,
        max_tokens=design.max_tokens,
    )
    return _trained(recipe, root / "like", True, Mixture((Stream(root / "labels"),)), out)


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
        _optim(design, design.steps, design.peak_lr),
        _itc(design, design.steps),
        side=design.side,
        seed=seed,
        max_tokens=design.max_tokens,
    )
    return _trained(recipe, start, False, Mixture(tuple(streams)), out)


def fine_tune(
    design: Design, root: Path, kind: Kind, start: Path, steps: int, seed: int, out: Path
) -> Path:
    """Fine-tune a pre-trained model on the human pairs; returns the folder of the models.

    `both`: one model with all three losses, which is what Table 4 warns of.
    """
    optim, itc = _optim(design, steps, design.fine_tune_lr), _itc(design, steps)
    recipe: Pretrain | FineTuneCaptioner | FineTuneFilter
    if kind == "captioner":
        recipe = FineTuneCaptioner(optim, side=design.side, seed=seed)
    elif kind == "filter":
        recipe = FineTuneFilter(optim, itc, side=design.side, seed=seed)
    else:
        recipe = Pretrain(optim, itc, side=design.side, seed=seed)
    return _trained(recipe, start, False, Mixture((Stream(root / "human"),)), out)


def _trained(
    recipe: Pretrain | FineTuneCaptioner | FineTuneFilter,
    start: Path,
    fresh: bool,
    data: Mixture,
    out: Path,
) -> Path:
    looping = Looping(out, every=200, precision="bf16")
    training = Training(recipe, start_of(str(start), fresh=fresh), data, looping=looping)
    train(training, lambda _: None)
    return out / "model"


def _optim(design: Design, steps: int, peak: float) -> Optim:
    warmup = min(100, steps // 10)
    return Optim(
        peak,
        steps,
        design.batch_size,
        warmup,
        min_lr_factor=0.02,
        betas=(0.9, 0.98),
        clip=1.0,
    )


def _itc(design: Design, steps: int) -> Itc:
    return Itc(queue_size=design.queue_size, momentum=0.99, alpha_ramp_steps=steps // 2)
