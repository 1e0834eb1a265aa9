"""Scenes of the simulated web: a few coloured shapes on a background, drawn by lot.

A scene is a pure function of (seed, index), so a web of millions of scenes needs no storage.
"""

from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Final

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES: Final = ("small", "large")
BACKGROUNDS: Final = ("grey", "pink", "brown", "teal")
RELATIONS: Final = ("left of", "right of", "above", "below")

# The scenes of seeds from here on have two shapes, which even a small image encoder tells apart
# after minutes: all six take it an hour, and colours, sizes and relations no time at all.
EASY: Final = 1 << 32
EASY_SHAPES: Final = ("square", "ring")

RADIUS: Final = {"small": 0.12, "large": 0.22}  # of the image's shorter side
# A relation holds where the centres lie this far apart along its axis, and less than a third of
# that across it: what lies between is no relation, so no caption of one is a matter of taste.
_APART: Final = 0.3
_ASIDE: Final = 1 / 3


@dataclass(frozen=True, slots=True)
class Item:
    """One shape; (x, y) is its centre in [0, 1], from the left and from the top."""

    shape: str
    colour: str
    size: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three items, no two alike in both colour and shape, on a plain background."""

    items: tuple[Item, ...]
    background: str


def sample_scene(seed: int, index: int) -> Scene:
    """Return scene `index` of the web `seed`."""
    digest = blake2b(f"scene/{seed}/{index}".encode(), digest_size=8).digest()
    rng = Random(int.from_bytes(digest, "big"))
    places = _places(rng)
    looks = _looks(rng, len(places), EASY_SHAPES if seed >= EASY else SHAPES)
    items = tuple(
        Item(shape, colour, rng.choice(SIZES), x, y)
        for (shape, colour), (x, y) in zip(looks, places, strict=True)
    )
    return Scene(items, rng.choice(BACKGROUNDS))


def holds(relation: str, one: Item, other: Item) -> bool:
    """Say whether `one` stands in `relation` to `other`."""
    along, across = one.x - other.x, one.y - other.y
    if relation in {"above", "below"}:
        along, across = across, along
    if relation in {"left of", "above"}:
        along = -along
    return along >= _APART and abs(across) <= along * _ASIDE


def _looks(rng: Random, count: int, shapes: tuple[str, ...]) -> list[tuple[str, str]]:
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        look = rng.choice(shapes), rng.choice(COLOURS)
        if look not in looks:
            looks.append(look)
    return looks


def _places(rng: Random) -> list[tuple[float, float]]:
    """Return one to three centres, far enough apart that no two shapes touch."""
    count = rng.choices((1, 2, 3), weights=(25, 65, 10))[0]
    if count == 1:
        return [(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))]
    if count == 2:
        along = rng.uniform(0.2, 0.28), rng.uniform(0.72, 0.8)
        middle = rng.uniform(0.35, 0.65)
        pair = [(at, middle + rng.uniform(-0.07, 0.07)) for at in along]
    else:
        pair = [(0.25, 0.25), (0.75, 0.25), (rng.choice((0.25, 0.5, 0.75)), 0.75)]
        pair = [(x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)) for x, y in pair]
    rng.shuffle(pair)
    return pair if rng.random() < 0.5 else [(y, x) for x, y in pair]
