"""Pictures a second of our resizer against img2dataset's (OpenCV), on the same photographs."""

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from capfilt.stages.download.decoder import decoder_process
from capfilt.stages.download.resizer import Resize, Resized, Resizer, Stream
from capfilt.stages.download.stage import quiet_dependencies
from tests.benchmarks.lines import Line

_WIDTHS: Final = (640, 1600, 4000)  # a thumbnail, a web page's picture, a camera's
_FORMATS: Final[tuple[tuple[str, dict[str, int]], ...]] = (
    ("JPEG", {"quality": 90}),
    ("PNG", {}),
    ("WEBP", {"quality": 85}),
)
_DIFFERENT: Final = 12  # photographs; the rest are repeats
_SECONDS: Final = 2.0  # the least that is measured


@dataclass(frozen=True, slots=True)
class _Contest:
    name: str
    pictures: Sequence[bytes]


def resizer_lines(pictures: int) -> list[Line]:
    """Resize the same photographs by both; rates are per second of processor time."""
    quiet_dependencies()
    from img2dataset.resizer import Resizer as Original

    how = Resize()
    theirs: Callable[[Stream], Resized] = Original(
        how.image_size, how.resize_mode, how.resize_only_if_bigger
    )
    lines = []
    with decoder_process(how) as apart:
        for contest in _contests(min(pictures, _DIFFERENT)):
            before = _rate(theirs, contest.pictures, time.process_time)
            ours = _rate(Resizer(how), contest.pictures, time.process_time)
            wall = _rate(apart, contest.pictures, time.perf_counter)
            lines += [
                Line(f"img2dataset's, {contest.name}", before, "pictures/s", note="OpenCV"),
                Line(f"resizer, {contest.name}", ours, "pictures/s", note=f"{ours / before:.2f} x"),
                Line(f"in its own process, {contest.name}", wall, "pictures/s", note="wall clock"),
            ]
    return lines


def _contests(count: int) -> Iterator[_Contest]:
    photographs = list(_photographs(count))
    for width in _WIDTHS:
        for form, options in _FORMATS:
            if form != "JPEG" and width != _WIDTHS[1]:
                continue
            yield _Contest(
                f"{form} {width} px", [_at(p, width, form, options) for p in photographs]
            )


def _rate(
    resize: Callable[[Stream], Resized], pictures: Sequence[bytes], clock: Callable[[], float]
) -> float:
    """Return pictures a second by a clock, after one that warms up."""
    resize(io.BytesIO(pictures[0]))
    done, began, started = 0, clock(), time.perf_counter()
    while time.perf_counter() - started < _SECONDS or not done:
        for data in pictures:
            reason = resize(io.BytesIO(data))[-1]
            if reason is not None:
                raise RuntimeError(f"a photograph was refused: {reason}")
        done += len(pictures)
    return done / (clock() - began)


def _photographs(count: int) -> Iterator[Image.Image]:
    """Yield COCO's photographs from CAPFILT_TEST_DATA, or pictures of as many details."""
    folder = Path(os.environ.get("CAPFILT_TEST_DATA", "/nowhere"), "smoke_ccby48", "images")
    files = sorted(folder.iterdir())[:count] if folder.is_dir() else []
    for file in files:
        with Image.open(file) as image:
            yield image.convert("RGB")
    for seed in range(count - len(files)):
        coarse = np.random.default_rng(seed).integers(0, 255, (120, 160, 3), np.uint8)
        yield Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)


def _at(image: Image.Image, width: int, form: str, options: dict[str, int]) -> bytes:
    height = round(image.height * width / image.width)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(out, form, **options)
    return out.getvalue()
