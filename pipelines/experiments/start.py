"""What small models of the simulated world begin with, as BLIP's begin with ImageNet and BERT.

A model of 1.4 million weights, trained for minutes on pictures of one thing and what that is. From
there, pairs of whole scenes teach relations and several things at once.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capfilt.ledger.publish import Publisher, explained
from capfilt.simweb.human import HumanSet, write_human
from capfilt.simweb.scenes import EASY
from capfilt.train.data.mixture import Mixture, Stream
from capfilt.train.recipe import Itc, Optim, Pretrain
from pipelines.experiments.quality import MODELS

WORLD: Final = EASY + 7  # seed of the world of `make proof` and `make rounds`
_FIRST_SCENE: Final = 2_000_000  # apart from other sets of human pairs


@dataclass(frozen=True, slots=True)
class Beginning:
    """Sizes of the training on `images` pictures; `patch` and `side` in pixels."""

    images: int = 4000
    steps: int = 500
    batch_size: int = 64
    peak_lr: float = 2e-3
    queue_size: int = 1024
    max_tokens: int = 26
    side: int = 64
    patch: int = 16
    seed: int = WORLD


def small_start(how: Beginning, folder: Path, heard: Callable[[dict[str, float]], None]) -> Path:
    """Train the start in `folder`, or go on with it, or find it; returns its models."""
    from capfilt.train.loop import LoopOptions
    from capfilt.train.start import start_of
    from capfilt.train.training import Training, train

    labels = HumanSet(how.images, seed=how.seed, start=_FIRST_SCENE, items=1, side=how.side)
    write_human(labels, folder / "labels")
    write_architecture(how.patch, folder / "like")
    recipe = Pretrain(
        small_optim(how.steps, how.batch_size, how.peak_lr),
        small_itc(how.steps, how.queue_size),
        side=how.side,
        max_tokens=how.max_tokens,
    )
    training = Training(
        recipe,
        start_of(str(folder / "like"), fresh=True),
        Mixture((Stream(folder / "labels"),)),
        looping=LoopOptions(folder / "training", every=100, precision="bf16"),
    )
    train(training, heard)
    return folder / "training" / "model"


def small_optim(steps: int, batch_size: int, peak: float) -> Optim:
    """Return AdamW for a small model and few steps: a short memory, a bounded gradient."""
    warmup = min(100, steps // 10)
    return Optim(peak, steps, batch_size, warmup, min_lr_factor=0.02, betas=(0.9, 0.98), clip=1.0)


def small_itc(steps: int, queue_size: int) -> Itc:
    """Return ITC for few steps: a faster copy, soft targets from half of the steps on."""
    return Itc(queue_size=queue_size, momentum=0.99, alpha_ramp_steps=steps // 2)


def write_architecture(patch: int, folder: Path) -> None:
    """Publish what `--like` takes: the embedded models' shape with fewer layers, no weights."""
    if folder.exists():
        return
    source = MODELS / "captioner"
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["vision_config"] |= {"patch_size": patch, "num_hidden_layers": 3}
    config["text_config"] |= {"num_hidden_layers": 2}
    with Publisher(folder.parent).scratch_dir() as scratch:
        for file in source.glob("*.json"):
            shutil.copy(file, scratch)
        (scratch / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        with explained(folder):
            scratch.rename(folder)
