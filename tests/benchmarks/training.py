"""Training: whether the reader keeps up with the step, and the step beside transformers' own LM.

Both sides compute in one thread, as capfilt trains on a CPU (one result whatever the machine).
"""

import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from capfilt.models.recipe import TrainingPrecision
from capfilt.simweb.vocab import build_tokenizer
from capfilt.train.data.augment import Augment
from capfilt.train.data.batch import Batch
from capfilt.train.data.mixture import Mixture, Stream
from capfilt.train.data.reader import Reader, ReaderOptions
from pipelines.experiments.train import SIDE, model_config
from tests.benchmarks.checkpoints import BASE, configuration
from tests.benchmarks.lines import Line

_STORED: Final = 384  # pixels of the pictures' sides, as a crawl is usually kept
_TEXT: Final = "a small red circle to the left of a large blue square on a grey background"
_QUALITY: Final = 95
_EPOCHS: Final = 4  # of the pictures at least, and
_BATCHES: Final = 8  # so many: what a reader has read ahead weighs little then


@dataclass(frozen=True, slots=True)
class Contest:
    """An architecture to train: images of `side` pixels, `batch` pairs a step."""

    name: str
    config: Any  # transformers' configurations are untyped
    side: int
    batch: int
    steps: int  # that are timed


def contests(steps: int, batch: int, layers: int) -> tuple[Contest, Contest]:
    """Return BLIP-base at its pre-training size, and the embedded models'."""
    base = configuration(BASE)
    base.vision_config.image_size = 224
    base.vision_config.num_hidden_layers = base.text_config.num_hidden_layers = layers
    small = Contest("embedded, 64 px", model_config(), SIDE, 16 * batch, 5 * steps)
    return Contest("BLIP-base, 224 px", base, 224, batch, steps), small


def reader_lines(pictures: int, entered: tuple[Contest, ...]) -> list[Line]:
    """Return samples a second of the reader, and over those of the bare steps beside it."""
    import torch

    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), pictures)
        for contest in entered:
            bare = {
                told: _rate(_ours(contest, kind, "bf16"), contest) for kind, told in _STEPS.items()
            }
            for label, augment, workers in _READINGS:
                epochs = max(_EPOCHS, -(-_BATCHES * contest.batch // pictures))
                reading = ReaderOptions(
                    contest.batch, contest.side, epochs=epochs, augment=augment, workers=workers
                )
                found = _reading_rate(Path(folder), reading)
                name = f"reader, {contest.side} px{label}, {workers} workers"
                lines.append(Line(name, found, "samples/s"))
                for told, rate in bare.items():
                    over = f"{name}, over the bare {told} step, {contest.name}"
                    lines.append(Line(over, found / rate, "", "> 1", f"step: {rate:.3g} samples/s"))
    return lines


_STEPS: Final = {"captioner": "LM", "pretrain": "ITC + ITM + LM"}


_READINGS: Final[tuple[tuple[str, Augment | None, int], ...]] = (
    ("", None, 0),
    ("", None, 2),
    (", augmented", Augment(), 0),
    (", augmented", Augment(), 2),
)


def step_lines(entered: tuple[Contest, ...]) -> list[Line]:
    """Return samples a second of transformers' LM, and of our steps over it."""
    import torch

    torch.set_num_threads(1)
    lines: list[Line] = []
    precisions: tuple[TrainingPrecision, ...] = ("fp32", "bf16")
    for contest, precision in itertools.product(entered, precisions):
        theirs = _rate(_transformers(contest, precision), contest)
        named = f"{contest.name}, {precision}"
        lines.append(Line(f"transformers, LM: {named}", theirs, "samples/s", note="one thread"))
        for kind, told in _STEPS.items():
            ours = _rate(_ours(contest, kind, precision), contest)
            aim = ">= 1" if kind == "captioner" else ""
            lines.append(Line(f"capfilt, {told}: {named}", ours, "samples/s"))
            lines.append(
                Line(f"capfilt, {told} over transformers: {named}", ours / theirs, "", aim)
            )
    return lines


def write_pairs(folder: Path, count: int) -> None:
    """Write `count` pairs: photographs where CAPFILT_TEST_DATA has some, else drawn scenes."""
    pictures = list(itertools.islice(itertools.cycle(_pictures()), count))
    rows = [
        {"key": f"{n:09d}", "image": {"bytes": data, "path": f"{n}.jpg"}, "text": _TEXT}
        for n, data in enumerate(pictures)
    ]
    (folder / "data").mkdir()
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet", row_group_size=200)


def _pictures() -> Iterator[bytes]:
    """Yield JPEG files of 384 pixels a side."""
    given = os.environ.get("CAPFILT_TEST_DATA", "")
    photographs = sorted(Path(given, "smoke_ccby48").rglob("*.jpg")) if given else []
    if photographs:
        for file in photographs:
            with Image.open(file) as image:
                yield _stored(image.convert("RGB"))
        return
    from random import Random

    from capfilt.simweb.render import render
    from capfilt.simweb.scenes import sample_scene

    for number in range(64):
        yield _stored(render(sample_scene(3, number), _STORED, _STORED, Random(number)))


def _stored(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.resize((_STORED, _STORED)).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _reading_rate(folder: Path, reading: ReaderOptions) -> float:
    """Read all pictures some times; returns samples a second from the first batch on."""
    batches = iter(Reader(Mixture((Stream(folder),)), reading))
    next(batches)  # workers have started
    began = time.perf_counter()
    seen = sum(map(len, batches))
    return seen / (time.perf_counter() - began)


def _rate(step: Callable[[Batch, int], None], contest: Contest) -> float:
    """Return samples a second of a step on a batch that lies ready, by the median of some."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (contest.batch, contest.side, contest.side, 3), np.uint8)
    keys = tuple(map(str, range(contest.batch)))
    batch = Batch(pixels, (_TEXT,) * contest.batch, keys, ("human",) * contest.batch)
    step(batch, 0)  # warms up
    return contest.batch / median(_timed(step, batch, 1 + n) for n in range(contest.steps))


def _timed(step: Callable[[Batch, int], None], batch: Batch, number: int) -> float:
    began = time.perf_counter()
    step(batch, number)
    return time.perf_counter() - began


def _ours(
    contest: Contest, kind: str, precision: TrainingPrecision
) -> Callable[[Batch, int], None]:
    """Return a step of capfilt's trainer, the optimiser's part included."""
    from capfilt.train.jobs import At, Job
    from capfilt.train.loop import LoopOptions, optimizer_of, take_step
    from capfilt.train.model.med import Med
    from capfilt.train.recipe import FineTuneCaptioner, Optim, Pretrain

    optim = Optim(1e-4, 1000, contest.batch)
    recipe: Pretrain | FineTuneCaptioner = FineTuneCaptioner(optim, side=contest.side)
    if kind == "pretrain":
        recipe = Pretrain(optim, side=contest.side)
    job = Job(Med.new(contest.config, 0), build_tokenizer(), recipe)
    if job.momentum is not None:  # a full queue costs what it costs in all but the first steps
        job.momentum.written.fill_(len(job.momentum.id_queue))
    how, optimizer = LoopOptions(Path(), precision=precision), optimizer_of(job)

    def step(batch: Batch, number: int) -> None:
        take_step(job, job, optimizer, iter([batch]), At(number, 0, 0), how)

    return step


def _transformers(contest: Contest, precision: TrainingPrecision) -> Callable[[Batch, int], None]:
    """Return a step of transformers' BLIP: LM with labels, AdamW."""
    import torch
    from transformers import BlipForConditionalGeneration

    from capfilt.train.data.batch import normalised
    from capfilt.train.recipe import Lm

    config = contest.config.__class__.from_dict(contest.config.to_dict())
    config.vision_config.initializer_range = 0.02
    config.text_config.label_smoothing = Lm().label_smoothing
    torch.manual_seed(0)
    model: Any = BlipForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokenizer = build_tokenizer()

    def step(batch: Batch, _: int) -> None:
        told = ["a picture of " + text for text in batch.texts]
        encoded = tokenizer(told, padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
            loss = model(
                pixel_values=torch.from_numpy(normalised(batch.pixels)),
                input_ids=encoded.input_ids,
                attention_mask=encoded.attention_mask,
                labels=encoded.input_ids,
            ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
