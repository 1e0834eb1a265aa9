"""Whether what comes out depends on nothing but the input: runs, neighbours, graphs, slices."""

import os
from typing import Final

import numpy as np

from capfilt.models.compute.graphs import SWITCH
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Precision
from tests.gpu.bench import Bench, Findings, free

_PART: Final = 7  # of ten pictures: what is asked again, in another order


def ask(bench: Bench, found: Findings) -> None:
    """Caption and score again: the same, in another order among fewer, and without graphs."""
    precisions: tuple[Precision, ...] = ("bf16", "fp32")
    for precision in precisions:
        for captions in (1, 2, 3, 4):
            found.expect(*_captions(bench, precision, captions))
            free()
        found.expect(*_scores(bench, precision))
        free()


def _captions(bench: Bench, precision: Precision, captions: int) -> tuple[bool, str]:
    images, keys, chosen = _asked(bench)
    captioner = bench.captioner(captions, precision)
    first = captioner.caption(images, keys)
    held = {
        "again": captioner.caption(images, keys) == first,
        "among others": captioner.caption([images[i] for i in chosen], [keys[i] for i in chosen])
        == [first[i] for i in chosen],
    }
    del captioner
    os.environ[SWITCH] = "0"
    try:
        held["without graphs"] = bench.captioner(captions, precision).caption(images, keys) == first
    finally:
        del os.environ[SWITCH]
    return _told(f"{precision}, K = {captions}: captions", held)


def _scores(bench: Bench, precision: Precision) -> tuple[bool, str]:
    images, _, chosen = _asked(bench)
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


def _asked(bench: Bench) -> tuple[list[Pixels], list[str], list[int]]:
    images = bench.pixels(bench.images)
    order = np.random.default_rng(2).permutation(len(images)).tolist()
    return images, [f"key {n}" for n in range(len(images))], order[: len(images) * _PART // 10]


def _told(what: str, held: dict[str, bool]) -> tuple[bool, str]:
    lost = [name for name, kept in held.items() if not kept]
    return not lost, f"{what} are the same {', '.join(held)}" + (
        f" – not kept: {', '.join(lost)}" if lost else ""
    )
