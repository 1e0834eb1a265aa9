"""Scenes and their pictures: pure functions, facts that can be decided, shapes that can be seen."""

import io
from collections import Counter
from hashlib import sha256
from itertools import combinations, permutations
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from capfilt.models.pixels import load_rgb
from capfilt.simweb.render import render, to_jpeg
from capfilt.simweb.scenes import (
    BACKGROUNDS,
    COLOURS,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    holds,
    sample_scene,
)

SEEDS = st.integers(0, 2**32)
INDICES = st.integers(0, 2**50)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def seen(scene: Scene, width: int = 200, height: int = 200, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the 64 × 64 pixels that a model sees of a scene."""
    data = to_jpeg(render(scene, width, height, Random(seed)), 85)
    return load_rgb(data, 64).astype(np.int64)


@given(SEEDS, INDICES)
def test_a_scene_is_a_function_of_seed_and_index(seed: int, index: int) -> None:
    assert sample_scene(seed, index) == sample_scene(seed, index)


def test_scenes_are_the_same_in_every_process_and_release() -> None:
    shown = repr([sample_scene(5, index) for index in range(100)])
    assert sha256(shown.encode()).hexdigest()[:16] == "51474cd4b1962318"


def test_neighbouring_seeds_and_indices_share_nothing() -> None:
    scenes = {sample_scene(seed, index) for seed in range(20) for index in range(20)}
    assert len(scenes) == 400


@given(SEEDS, INDICES)
def test_items_lie_inside_and_apart(seed: int, index: int) -> None:
    scene = sample_scene(seed, index)
    assert 1 <= len(scene.items) <= 3
    assert scene.background in BACKGROUNDS
    for item in scene.items:
        assert item.shape in SHAPES
        assert item.colour in COLOURS
        # The jitter of a drawing is 7 %; a large shape may lose a sliver at the edge, no more.
        margin = RADIUS[item.size] * 0.9
        assert margin <= item.x <= 1 - margin
        assert margin <= item.y <= 1 - margin
    for one, other in combinations(scene.items, 2):
        distance = float(np.hypot(one.x - other.x, one.y - other.y))
        assert distance > RADIUS[one.size] + RADIUS[other.size]
        assert (one.shape, one.colour) != (other.shape, other.colour)


@given(SEEDS, INDICES)
def test_relations_are_unambiguous(seed: int, index: int) -> None:
    items = sample_scene(seed, index).items
    for one, other in permutations(items, 2):
        held = [name for name in RELATIONS if holds(name, one, other)]
        assert len(held) <= 1
        assert [OPPOSITE[name] for name in held] == [
            name for name in RELATIONS if holds(name, other, one)
        ]
    if len(items) == 2:
        assert any(holds(name, *items) for name in RELATIONS)


def test_every_look_occurs_about_equally_often() -> None:
    scenes = [sample_scene(1, index) for index in range(4000)]
    items = [item for scene in scenes for item in scene.items]
    for kinds, drawn in (
        (SHAPES, [item.shape for item in items]),
        (COLOURS, [item.colour for item in items]),
        (SIZES, [item.size for item in items]),
        (BACKGROUNDS, [scene.background for scene in scenes]),
    ):
        counts = Counter(drawn)
        assert set(counts) == set(kinds)
        assert max(counts.values()) < 1.25 * min(counts.values())
    shares = Counter(len(scene.items) for scene in scenes)
    assert shares[2] > shares[1] > shares[3] > 0


@given(st.integers(12, 600), st.integers(12, 600), SEEDS)
def test_rendering_keeps_the_asked_size_and_is_deterministic(
    width: int, height: int, seed: int
) -> None:
    scene = sample_scene(seed, 0)
    image = render(scene, width, height, Random(seed))
    assert (image.mode, image.size) == ("RGB", (width, height))
    assert image.tobytes() == render(scene, width, height, Random(seed)).tobytes()


def test_two_drawings_of_a_scene_differ_a_little() -> None:
    one, other = seen(sample_scene(3, 1), seed=0), seen(sample_scene(3, 1), seed=1)
    assert 0 < np.abs(one - other).mean() < 20


def test_jpeg_bytes_decode_to_the_picture() -> None:
    image = render(sample_scene(1, 1), 160, 120, Random(0))
    with Image.open(io.BytesIO(to_jpeg(image, 95))) as decoded:
        assert (decoded.format, decoded.size) == ("JPEG", (160, 120))
        assert np.abs(np.asarray(decoded, int) - np.asarray(image, int)).mean() < 4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("canvas", [(96, 96), (300, 200), (200, 300)])
def test_shapes_can_be_told_apart_at_the_models_size(size: str, canvas: tuple[int, int]) -> None:
    drawn = {
        shape: seen(Scene((Item(shape, "red", size, 0.5, 0.5),), "teal"), *canvas)
        for shape in SHAPES
    }
    for one, other in combinations(SHAPES, 2):
        differing = (np.abs(drawn[one] - drawn[other]).sum(axis=2) > 120).sum()
        assert differing >= 24, (one, other)


def test_colours_can_be_told_apart_on_every_background() -> None:
    for background in BACKGROUNDS:
        centres = {
            colour: seen(Scene((Item("square", colour, "small", 0.5, 0.5),), background))[32, 32]
            for colour in COLOURS
        }
        ground = seen(Scene((Item("square", "red", "small", 0.5, 0.5),), background))[4, 4]
        for one, other in combinations([*centres.values(), ground], 2):
            assert np.abs(one - other).sum() > 60
