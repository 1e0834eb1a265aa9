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
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from capfilt.bench.checkpoints import BASE, configuration
from capfilt.bench.lines import Line
from capfilt.demo.train import SIDE, model_config
from capfilt.demo.vocab import build_tokenizer
from capfilt.models.recipe import Precision
from capfilt.train.augment import Augment
from capfilt.train.batch import Batch
from capfilt.train.data import Mixture, Stream
from capfilt.train.reader import Reader, Reading

_STORED: Final = 384  # pixels of the pictures' sides, as a crawl is usually kept
_TEXT: Final = "a small red circle to the left of a large blue square on a grey background"
_QUALITY: Final = 95


@dataclass(frozen=True, slots=True)
class Contest:
    """An architecture to train: images of `side` pixels, `batch` pairs a step."""

    name: str
    config: Any  # transformers' configurations are untyped
    side: int
    batch: int


def contests(batch: int) -> tuple[Contest, Contest]:
    """Return BLIP-base at its pre-training size, and the embedded models'."""
    base = configuration(BASE)
    base.vision_config.image_size = 224
    return Contest("BLIP-base, 224 px", base, 224, batch), Contest(
        "embedded, 64 px", model_config(), SIDE, 16 * batch
    )


def reader_lines(pictures: int, steps: int, batch: int) -> list[Line]:
    """Return samples a second of the reader, and over those of the bare step beside it."""
    import torch

    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), pictures)
        for contest in contests(batch):
            bare = _rate(_ours(contest, "pretrain", "bf16"), contest, steps)
            for label, augment, workers in _READINGS:
                found = _reading_rate(Path(folder), contest, augment, workers)
                name = f"reader, {contest.side} px{label}, {workers} workers"
                lines.append(Line(name, found, "samples/s"))
                over = f"{name}, over the bare step of {contest.name}"
                lines.append(Line(over, found / bare, "", "> 1", f"step: {bare:.3g} samples/s"))
    return lines


_READINGS: Final[tuple[tuple[str, Augment | None, int], ...]] = (
    ("", None, 0),
    (", augmented", Augment(), 0),
    (", augmented", Augment(), 2),
)


def step_lines(steps: int, batch: int) -> list[Line]:
    """Return samples a second of transformers' LM, and of our steps over it."""
    import torch

    torch.set_num_threads(1)
    lines: list[Line] = []
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for contest, precision in itertools.product(contests(batch), precisions):
        theirs = _rate(_transformers(contest, precision), contest, steps)
        named = f"{contest.name}, {precision}"
        lines.append(Line(f"transformers, LM: {named}", theirs, "samples/s", note="one thread"))
        for kind, told in (("captioner", "LM"), ("pretrain", "ITC + ITM + LM")):
            ours = _rate(_ours(contest, kind, precision), contest, steps)
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

    from capfilt.demo.render import render
    from capfilt.demo.scenes import sample_scene

    for number in range(64):
        yield _stored(render(sample_scene(3, number), _STORED, _STORED, Random(number)))


def _stored(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.resize((_STORED, _STORED)).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _reading_rate(folder: Path, contest: Contest, augment: Augment | None, workers: int) -> float:
    """Read all pictures once; returns samples a second."""
    reading = Reading(contest.batch, contest.side, epochs=1, augment=augment, workers=workers)
    began, seen = time.perf_counter(), 0
    for batch in Reader(Mixture((Stream(folder),)), reading):
        seen += len(batch)
    return seen / (time.perf_counter() - began)


def _rate(step: Callable[[Batch, int], None], contest: Contest, steps: int) -> float:
    """Return samples a second of a step on a batch that lies ready."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (contest.batch, contest.side, contest.side, 3), np.uint8)
    keys = tuple(map(str, range(contest.batch)))
    batch = Batch(pixels, (_TEXT,) * contest.batch, keys, ("human",) * contest.batch)
    step(batch, 0)  # warms up
    began = time.perf_counter()
    for number in range(1, 1 + steps):
        step(batch, number)
    return steps * contest.batch / (time.perf_counter() - began)


def _ours(contest: Contest, kind: str, precision: Precision) -> Callable[[Batch, int], None]:
    """Return a step of capfilt's trainer, the optimiser's part included."""
    from capfilt.train.jobs import At, Job
    from capfilt.train.loop import Looping, optimizer_of, take_step
    from capfilt.train.med import Med
    from capfilt.train.recipe import FineTuneCaptioner, Itc, Optim, Pretrain

    optim = Optim(1e-4, 1000, contest.batch)
    recipe: Pretrain | FineTuneCaptioner = FineTuneCaptioner(optim, side=contest.side)
    if kind == "pretrain":
        recipe = Pretrain(optim, Itc(queue_size=1024), side=contest.side)
    job = Job(Med.new(contest.config, 0), build_tokenizer(), recipe)
    how, optimizer = Looping(Path(), precision=precision), optimizer_of(job)

    def step(batch: Batch, number: int) -> None:
        take_step(job, job, optimizer, iter([batch]), At(number, 0, 0), how)

    return step


def _transformers(contest: Contest, precision: Precision) -> Callable[[Batch, int], None]:
    """Return a step of transformers' BLIP: LM with labels, AdamW."""
    import torch
    from transformers import BlipForConditionalGeneration

    from capfilt.train.batch import normalised

    config = contest.config.__class__.from_dict(contest.config.to_dict())
    config.vision_config.initializer_range = 0.02
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
