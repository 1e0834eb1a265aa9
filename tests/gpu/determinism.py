"""Whether what comes out depends on nothing but the input: runs, neighbours, graphs, slices."""

import dataclasses
import os
from typing import Final

import numpy as np

from capfilt.models.blip import BlipCaptioner
from capfilt.models.compute.graphs import SWITCH
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Precision
from tests.gpu.bench import Bench, Findings, free

_PART: Final = 7  # of ten pictures: what is asked again, in another order
# fp32 takes ten times as long as bf16.
_CAPTIONS: Final[dict[Precision, tuple[int, ...]]] = {"bf16": (1, 2, 3, 4), "fp32": (1,)}
_SHARE: Final[dict[Precision, int]] = {"bf16": 2, "fp32": 8}  # one of so many pictures


def ask(bench: Bench, found: Findings) -> None:
    """Caption and score again: the same, in another order among fewer, and without graphs."""
    for precision, numbers in _CAPTIONS.items():
        captioner = bench.captioner(1, precision)
        for captions in numbers:
            captioner._recipe = dataclasses.replace(captioner._recipe, num_captions=captions)
            found.expect(*_captions(bench, captioner, precision))
        del captioner
        free()
        found.expect(*_scores(bench, precision))
        free()


def _captions(bench: Bench, captioner: BlipCaptioner, precision: Precision) -> tuple[bool, str]:
    images, keys, chosen = _asked(bench, precision)
    first = captioner.caption(images, keys)
    held = {
        "again": captioner.caption(images, keys) == first,
        "among others": captioner.caption([images[i] for i in chosen], [keys[i] for i in chosen])
        == [first[i] for i in chosen],
    }
    os.environ[SWITCH] = "0"
    captioner.resized()  # its steps are made anew
    try:
        held["without graphs"] = captioner.caption(images, keys) == first
    finally:
        del os.environ[SWITCH]
        captioner.resized()
    return _told(f"{precision}, K = {captioner._recipe.num_captions}: captions", held)


def _scores(bench: Bench, precision: Precision) -> tuple[bool, str]:
    images, _, chosen = _asked(bench, precision)
    texts = bench.texts(len(images), 3)
    matcher = bench.matcher(precision)
    first = matcher.match(images, texts)
    again = [image.copy() for image in images]  # others, so that nothing is remembered of them
    part = matcher.match([again[i] for i in chosen], [texts[i] for i in chosen])
    held = {
        "again": matcher.match([image.copy() for image in images], texts) == first,
        "among others": part == tuple([scores[i] for i in chosen] for scores in first),
        "embeddings": bool(
            (matcher.embed(images)[chosen] == matcher.embed([again[i] for i in chosen])).all()
        ),
    }
    return _told(f"{precision}: scores", held)


def _asked(bench: Bench, precision: Precision) -> tuple[list[Pixels], list[str], list[int]]:
    images = bench.pixels(max(4, bench.images // _SHARE[precision]))
    order = np.random.default_rng(2).permutation(len(images)).tolist()
    return images, [f"key {n}" for n in range(len(images))], order[: len(images) * _PART // 10]


def _told(what: str, held: dict[str, bool]) -> tuple[bool, str]:
    lost = [name for name, kept in held.items() if not kept]
    return not lost, f"{what} are the same {', '.join(held)}" + (
        f" – not kept: {', '.join(lost)}" if lost else ""
    )
