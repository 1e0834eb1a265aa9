"""Small pictures of scenes for tests, as a model sees them."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt

from capfilt.models.pixels import load_rgb
from capfilt.simweb.corruption import Noise
from capfilt.simweb.falsehoods import rng_of
from capfilt.simweb.pictures import draw_size
from capfilt.simweb.render import render, to_jpeg
from capfilt.simweb.scenes import Scene, sample_scene

SIDE: Final = 64
_BLOCK: Final = 500


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
