"""Training pairs of the embedded models: pictures as the pipeline sees them, and texts.

Pictures go the way that they go in a round: rendered in one of the web's sizes, compressed,
decoded, squashed.
Captions are drawn afresh each time a picture is used.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from multiprocessing import get_context
from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt

from capfilt.demo.grammar import corrupt, facts_true
from capfilt.demo.noise import Noise
from capfilt.demo.pictures import draw_size
from capfilt.demo.render import render, to_jpeg
from capfilt.demo.scenes import Scene, sample_scene
from capfilt.images import load_rgb

SIDE: Final = 64
_BLOCK: Final = 500
_WEB_WORDS: Final = (
    "photo image view free shop price new best online buy home page download click here wallpaper "
    "news travel design vector sale gallery size black white red blue star ring cross square "
    "der die das und ein le la les des un el los con para foto bild auf von mit sur dans"
).split()


def rng_of(*parts: object) -> Random:
    """Return a generator that depends on nothing but `parts`."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def picture(scene: Scene, rng: Random) -> npt.NDArray[np.uint8]:
    """Return (64, 64, 3) pixels of a scene: rendered, compressed, decoded and squashed."""
    width, height = draw_size(rng, Noise())
    data = to_jpeg(render(scene, width, height, rng), rng.randint(70, 95))
    return load_rgb(data, SIDE)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Scenes with their pictures, (N, 64, 64, 3) uint8."""

    scenes: list[Scene]
    pixels: npt.NDArray[np.uint8]


def make_pictures(seed: int, count: int, workers: int) -> Pictures:
    """Render `count` scenes of `seed`, in `workers` processes; the same for any number of them."""
    starts, draw = range(0, count, _BLOCK), partial(_block, seed, count)
    if workers == 1:
        blocks = list(map(draw, starts))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            blocks = list(pool.map(draw, starts))
    scenes = [sample_scene(seed, index) for index in range(count)]
    return Pictures(scenes, np.concatenate(blocks))


def _block(seed: int, count: int, start: int) -> npt.NDArray[np.uint8]:
    indices = range(start, min(start + _BLOCK, count))
    return np.stack([picture(sample_scene(seed, i), rng_of("picture", seed, i)) for i in indices])


def batches(
    pictures: Pictures, size: int, seed: int, done: int = 0
) -> Iterator[tuple[list[int], Random]]:
    """Yield batches of picture numbers for ever, each epoch shuffled anew, and a generator.

    After `done` batches of a run that was cut off, it starts with the epoch that it was in.

    Raises:
        ValueError: there are fewer pictures than one batch takes.
    """
    a_epoch = len(pictures.scenes) // size
    if not a_epoch:
        raise ValueError(f"{len(pictures.scenes)} pictures are too few for batches of {size}")
    epoch = done // a_epoch
    while True:
        order = list(range(len(pictures.scenes)))
        rng = rng_of("epoch", seed, epoch)
        rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size], rng
        epoch += 1


def false_text(scene: Scene, caption: str, rng: Random) -> str:
    """Return a text that is false of `scene`, mostly almost true: the filter's hard negatives.

    Seven in ten are the caption with one thing changed, one is cut off within a phrase, two are
    text of no scene at all (words and file names as the web has them).
    """
    lot = rng.random()
    if lot < 0.7:
        return corrupt(caption, scene, rng)
    if lot < 0.8:
        words = caption.split()
        cut = " ".join(words[: rng.randint(1, len(words) - 1)])
        broken = cut if cut.split()[-1] in _DANGLING else f"{cut} {rng.choice(_WEB_WORDS)}"
        # The added word may be the very one that was cut off.
        return corrupt(caption, scene, rng) if facts_true(broken, scene) else broken
    if lot < 0.9:
        return " ".join(rng.choices(_WEB_WORDS, k=rng.randint(1, 7)))
    stem = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 6)))
    return f"{stem}{rng.choice(('_', '-', ' ', ''))}{rng.randint(0, 99999)}"


_DANGLING: Final = frozenset(
    "a an to the of on left right above over below under and with small large tiny big".split()
)
