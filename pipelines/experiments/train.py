"""Training the embedded models on human pairs of the simulated world, by capfilt's own trainer.

    python -m pipelines.experiments.train --out DIR

As BLIP does it (section 3.3): one model is pre-trained, then fine-tuned twice, apart: the captioner
with LM, the filter with ITC and ITM, whose hard negatives are those of the batch and a text beside
each pair that is almost true. Two things are for a small model and little time: pre-training has LM
alone, with four texts an image at once, and begins on pictures of one thing.

Every training is resumable: the same command goes on where a killed one was. DIR/captioner,
DIR/matcher and DIR/quality.json are the results.
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import BlipConfig

from capfilt.errors import CapfiltError
from capfilt.ledger.publish import Publisher, explained
from capfilt.progress import hear_metrics, show_progress
from capfilt.simweb import vocab
from capfilt.simweb.human import HumanSet, write_human
from capfilt.train.data.mixture import Mixture, Stream
from capfilt.train.loop import LoopOptions
from capfilt.train.model.med import Med
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Itc, Optim
from capfilt.train.start import start_of
from capfilt.train.training import Trained, Training, train
from pipelines.experiments.quality import Quality, measure

SIDE: Final = 64  # pixels that the models see
_STORED: Final = 128  # pixels of the pictures' shorter side, decoded and squashed as in a round
_LABELS_START: Final = 1_000_000
_DURATION: Final = (
    "About 70 minutes on two cores with bf16 matrix units (AMX); several times that without."
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Sizes of the training; the defaults gave the shipped models.

    `texts` an image are stored, `captions` of them are drawn each time it is used.
    """

    labels: int = 10_000  # pictures of one thing: colour and shape first
    images: int = 40_000
    texts: int = 8
    captions: int = 4
    label_steps: int = 500
    pretrain_steps: int = 6_000
    captioner_steps: int = 1_500
    filter_steps: int = 3_000
    batch: int = 64
    queue: int = 2048
    seed: int = 1


QUICK: Final = Schedule(
    labels=64,
    images=128,
    texts=2,
    captions=2,
    label_steps=20,
    pretrain_steps=20,
    captioner_steps=10,
    filter_steps=20,
    batch=16,
    queue=32,
)


@dataclass(frozen=True, slots=True)
class Phase:
    """One training: `start` is the phase before it, None for fresh weights."""

    name: str
    start: str | None
    data: str
    peak: float
    steps: int
    matches: bool = False  # ITC and ITM instead of LM


def phases(plan: Schedule) -> tuple[Phase, Phase, Phase, Phase]:
    """Return the beginning and the rest of the pre-training, the captioner, the filter."""
    return (
        Phase("labels", None, "labels", 1e-3, plan.label_steps),
        Phase("pretrain", "labels", "pairs", 1e-3, plan.pretrain_steps),
        Phase("captioner", "pretrain", "pairs", 3e-4, plan.captioner_steps),
        Phase("filter", "pretrain", "pairs", 5e-4, plan.filter_steps, matches=True),
    )


def model_config() -> BlipConfig:
    """Return the architecture: 64 px, patch 8, width 128, 4 vision and 3 text layers."""
    text = {
        "vocab_size": len(vocab.vocabulary()),
        "hidden_size": 128,
        "encoder_hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "projection_dim": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": vocab.PAD,
        "bos_token_id": vocab.DEC,
        "eos_token_id": vocab.SEP,
        "sep_token_id": vocab.SEP,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "projection_dim": 64,
    }
    return BlipConfig(
        text_config=text, vision_config=vision, projection_dim=64, image_text_hidden_size=64
    )


def train_models(plan: Schedule, out: Path) -> dict[str, Trained]:
    """Run all trainings, or what is left of them; returns what each came to.

    Raises:
        InputError: `out` holds trainings of another schedule.
    """
    write_sets(plan, out)
    labels, pretrain, captioner, match = phases(plan)
    found = {phase.name: train_phase(plan, out, phase) for phase in (labels, pretrain)}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        tuned = [pool.submit(train_phase, plan, out, phase) for phase in (captioner, match)]
        found |= {"captioner": tuned[0].result(), "filter": tuned[1].result()}
    _publish(out, "captioner", lambda folder: _captioner(out).export_captioner(folder, torch.half))
    _publish(out, "matcher", lambda folder: _matcher(out).export_matcher(folder, torch.half))
    return found


def write_sets(plan: Schedule, out: Path) -> None:
    """Write the pictures of one thing, the pairs, and the architecture, or find them."""
    labels = HumanSet(
        plan.labels, plan.texts, plan.seed, _LABELS_START, items=1, side=_STORED, worn=True
    )
    pairs = HumanSet(
        plan.images, plan.texts, plan.seed, side=_STORED, hard_negatives=True, worn=True
    )
    for name, wanted in (("labels", labels), ("pairs", pairs)):
        write_human(wanted, out / "data" / name)
    _publish(out, "architecture", model_config().save_pretrained)


def train_phase(plan: Schedule, out: Path, phase: Phase) -> Trained:
    """Run a training, or go on with it, or find that it is done."""
    start = out / "architecture" if phase.start is None else _models(out, phase.start)
    data = Stream(out / "data" / phase.data, texts="one")
    training = Training(
        recipe=_recipe(plan, phase),
        start=start_of(str(start), fresh=phase.start is None),
        mixture=Mixture((data,)),
        looping=LoopOptions(out / "trainings" / phase.name, precision="bf16"),
        workers=1,
    )
    with show_progress(phase.name, phase.steps, unit="step") as told:
        return train(training, hear_metrics(told))


def _recipe(plan: Schedule, phase: Phase) -> FineTuneCaptioner | FineTuneFilter:
    warmup = min(300, phase.steps // 10)
    optim = Optim(
        phase.peak,
        phase.steps,
        plan.batch,
        warmup,
        min_lr_factor=0.01,
        betas=(0.9, 0.98),
        clip=1.0,
    )
    if not phase.matches:
        return FineTuneCaptioner(optim, side=SIDE, captions_per_image=plan.captions, seed=plan.seed)
    itc = Itc(queue_size=plan.queue, alpha_ramp_steps=phase.steps // 5)
    return FineTuneFilter(optim, itc, side=SIDE, seed=plan.seed)


def _models(out: Path, phase: str) -> Path:
    return out / "trainings" / phase / "model"


def _captioner(out: Path) -> Med:
    return Med.from_folders(_models(out, "captioner") / "captioner", None)


def _matcher(out: Path) -> Med:
    return Med.from_folders(None, _models(out, "filter") / "matcher")


def _publish(out: Path, name: str, write: Callable[[Path], object]) -> None:
    """Put a model folder with its vocabulary and preprocessing into its place, whole."""
    if (out / name).exists():
        return
    with Publisher(out).scratch_dir() as scratch:
        write(scratch)
        vocab.save_processors(scratch, SIDE)
        with explained(out / name):
            scratch.rename(out / name)


def report(plan: Schedule, found: dict[str, Trained], quality: Quality) -> str:
    """Return what quality.json says: figures, sizes, seeds and versions."""
    told: dict[str, Any] = {
        "quality": asdict(quality),
        "schedule": asdict(plan),
        "final_losses": {name: round(one.last["loss"], 4) for name, one in found.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    return json.dumps(told, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, and say what came out."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.experiments.train", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    parser.add_argument("--seed", type=int, default=Schedule().seed)
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the script")
    given = parser.parse_args(arguments)
    plan = replace(QUICK if given.quick else Schedule(), seed=given.seed)
    print("a minute" if given.quick else _DURATION, flush=True)
    try:
        found = train_models(plan, given.out)
    except CapfiltError as error:
        parser.exit(error.exit_code, f"{error}\n")
    for name, one in found.items():
        print(f"{name:<10} loss {one.first['loss']:.3f} -> {one.last['loss']:.3f}")
    quality = measure(given.out, 100 if given.quick else 2000)
    (given.out / "quality.json").write_text(report(plan, found, quality), encoding="utf-8")
    print(quality.table())


if __name__ == "__main__":
    main()
