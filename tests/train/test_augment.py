"""Augmentation: a function of its seed, within its ranges, and true to what the text says."""

import colorsys
import io
import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt.errors import InputError
from capfilt.models.pixels import UndecodableImage, load_rgb
from capfilt.train.data.augment import (
    KEEPS_COLOUR,
    OPERATIONS,
    Augment,
    Operation,
    augmented,
    crop_box,
    decode,
    squash,
    swap_sides,
)
from capfilt.train.data.batch import CLIP_MEAN, CLIP_STD, Batch, normalised
from capfilt.train.data.randomness import rng_of, shuffled

STILL = Augment(crop_scale=None, flip="off", operations=(), count=0)
MODES = ("RGB", "L", "RGBA", "P")


def gradient(width: int, height: int) -> Image.Image:
    """Return an image whose red grows to the right and whose green grows downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    pixels[..., 2] = 60
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def once(
    image: Image.Image, augment: Augment, seed: int, text: str = "a"
) -> tuple[np.ndarray, str]:
    return augmented(image, text, 32, augment, rng_of(seed))


def only(operation: Operation, magnitude: float = 5.0) -> Augment:
    """Return an augmentation that does this one thing or nothing, as the seed has it."""
    return replace(STILL, operations=(operation,), count=1, magnitude=magnitude)


def outcomes(image: Image.Image, augment: Augment) -> list[np.ndarray]:
    """Return the different images that some seeds make."""
    made = {pixels.tobytes(): pixels for pixels, _ in (once(image, augment, n) for n in range(40))}
    return list(made.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 90), st.integers(1, 90))
def test_it_is_a_function_of_the_seed(seed: int, width: int, height: int) -> None:
    image = gradient(width, height)
    first, text = once(image, Augment(), seed, "on the left")
    again, same = once(image, Augment(), seed, "on the left")
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert text == same


def test_other_seeds_make_other_images() -> None:
    assert len(outcomes(gradient(48, 40), Augment())) == 40


def test_off_is_the_squash_that_models_see_elsewhere() -> None:
    data = encoded(gradient(50, 37), "JPEG")
    plain = load_rgb(data, 32)
    assert np.array_equal(squash(decode(data), 32), plain)
    assert np.array_equal(once(decode(data), STILL, 3)[0], plain)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert decode(encoded(gradient(9, 9).convert(mode))).mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"no image", encoded(gradient(64, 64), "JPEG")[:300]])
def test_what_is_no_image_says_so_without_addresses_in_memory(data: bytes) -> None:
    with pytest.raises(UndecodableImage) as caught:
        decode(data)
    assert re.fullmatch(r"[A-Za-z]+", str(caught.value))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(0, 2**32),
)
def test_a_crop_lies_in_the_image_and_keeps_its_share(
    width: int, height: int, one: float, other: float, seed: int
) -> None:
    low, high = sorted((one, other))
    left, top, right, bottom = crop_box(width, height, (low, high), (3 / 4, 4 / 3), Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    drawn = (w - 1) * (h - 1) <= high * width * height and (w + 1) * (h + 1) >= (
        low * width * height
    )
    middle = abs(left + right - width) <= 1 and abs(top + bottom - height) <= 1
    assert drawn or middle
    if drawn and min(w, h) > 3:
        assert (w - 1) / (h + 1) <= 4 / 3
        assert (w + 1) / (h - 1) >= 3 / 4


def test_crops_cover_the_range_of_scales_and_places() -> None:
    boxes = [crop_box(200, 200, (0.5, 1), (3 / 4, 4 / 3), Random(n)) for n in range(300)]
    shares = np.array([(r - left) * (b - t) / 40000 for left, t, r, b in boxes])
    assert 0.48 < shares.min() < 0.53
    assert 0.9 < shares.max() <= 1
    assert min(box[0] for box in boxes) == 0
    assert max(box[2] for box in boxes) == 200


def test_a_very_long_image_is_cropped_in_its_middle() -> None:
    assert crop_box(1000, 10, (0.5, 1), (3 / 4, 4 / 3), Random(0)) == (493, 0, 506, 10)
    assert crop_box(10, 1000, (0.5, 1), (3 / 4, 4 / 3), Random(0)) == (0, 493, 10, 506)


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("a dog left of a cat", "a dog right of a cat"),
        ("to the right, then LEFT. Left!", "to the left, then RIGHT. Right!"),
        ("the leftmost of two", "the rightmost of two"),
        ("left-handed player", "right-handed player"),
        ("all rights reserved, copyright, bright", "all rights reserved, copyright, bright"),
        ("leftover cleft left_01 left2", "leftover cleft left_01 left2"),
        ("gauche · links · ☃", "gauche · links · ☃"),
        ("", ""),
    ],
)
def test_left_and_right_are_swapped_as_whole_words(text: str, swapped: str) -> None:
    assert swap_sides(text) == swapped


@given(st.lists(st.sampled_from(["left", "RIGHT", "Leftmost", "up", "é", ","]), max_size=8))
def test_swapping_twice_changes_nothing(words: list[str]) -> None:
    text = " ".join(words)
    assert swap_sides(swap_sides(text)) == text


def test_the_text_is_swapped_exactly_where_the_image_is_mirrored() -> None:
    mirrored = 0
    for seed in range(60):
        pixels, text = once(gradient(40, 40), replace(STILL, flip="swap"), seed, "red is right")
        grows = int(pixels[0, -1, 0]) > int(pixels[0, 0, 0])
        assert text == ("red is right" if grows else "red is left")
        mirrored += not grows
    assert 15 < mirrored < 45


def test_no_flip_happens_when_words_are_not_handled() -> None:
    crops = replace(Augment(), flip="off")
    for seed in range(40):
        pixels, text = once(gradient(40, 40), replace(crops, count=0), seed, "left")
        assert int(pixels[0, -1, 0]) > int(pixels[0, 0, 0])
        assert text == "left"
    assert Augment().flip == "swap"  # by default the words are handled


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_does_what_it_is_named_for(operation: Operation) -> None:
    image = gradient(32, 32).point(lambda value: 40 + value // 2)
    image.paste((150, 60, 70), (10, 12, 20, 20))
    plain = np.asarray(image)
    made = outcomes(image, only(operation, 8.0))
    changed = [pixels for pixels in made if not np.array_equal(pixels, plain)]
    directed = operation.startswith(("shear", "translate", "rotate"))
    assert len(changed) == (0 if operation == "identity" else 2 if directed else 1)
    assert len(made) - len(changed) == 1  # and in some cases it is not applied
    for pixels in changed:  # what came from outside of the image is grey
        assert bool((pixels == 128).all(axis=-1).any()) == directed


def test_translations_and_shears_move_along_their_axis() -> None:
    image = gradient(32, 32)
    moves: tuple[tuple[Operation, int], ...] = (
        ("translate_x", 1),
        ("shear_x", 1),
        ("translate_y", 0),
    )
    for operation, axis in moves:
        for pixels in outcomes(image, only(operation)):
            kept = ~(pixels == 128).all(axis=-1)
            across = np.asarray(image)[..., axis]  # green for x, red for y: constant along it
            assert np.array_equal(pixels[kept][:, axis], across[kept])


def test_brightness_and_sharpness_do_nothing_at_the_papers_magnitude() -> None:
    image = gradient(32, 32)
    image.paste((150, 60, 70), (10, 12, 20, 20))
    assert len(outcomes(image, only("brightness"))) == 1
    assert len(outcomes(image, only("sharpness"))) == 1


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("colour", [(200, 40, 40), (40, 60, 180), (240, 150, 60), (120, 50, 130)])
def test_no_operation_changes_a_hue(operation: Operation, colour: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (32, 32), (120, 120, 120))
    image.paste(colour, (12, 12, 20, 20))
    hue = colorsys.rgb_to_hsv(*colour)[0]
    for pixels in outcomes(image, only(operation)):
        middle = colorsys.rgb_to_hsv(*(float(v) for v in pixels[16, 16]))
        corner = pixels[2, 16].astype(int)
        assert abs((middle[0] - hue + 0.5) % 1 - 0.5) < 0.04
        assert corner.max() - corner.min() <= 3  # grey stays neutral


def test_what_keeps_colours_keeps_them_exactly() -> None:
    image = Image.new("RGB", (32, 32), (90, 120, 30))
    for operation in KEEPS_COLOUR:
        for pixels in outcomes(image, only(operation)):
            assert tuple(pixels[16, 16]) == (90, 120, 30)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"flip": "plain"}, "flip"),
        ({"operations": ("solarize",)}, "solarize"),
        ({"operations": ()}, "count"),
        ({"magnitude": 11.0}, "magnitude"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Augment(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_pixels_are_normalised_as_clip_does() -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[1] = 255
    out = normalised(pixels)
    assert out.shape == (2, 3, 4, 4)
    assert out.dtype == np.float32
    for channel in range(3):
        black = -CLIP_MEAN[channel] / CLIP_STD[channel]
        assert np.allclose(out[0, channel], black, atol=1e-6)
        assert np.allclose(out[1, channel], black + 1 / CLIP_STD[channel], atol=1e-5)


def test_a_short_batch_is_padded_by_its_own_samples() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    batch = Batch(pixels, ("a", "b"), ("k", "l"), ("web", "web")).padded(5)
    assert batch.texts == ("a", "b", "a", "b", "a")
    assert batch.keys == ("k", "l", "k", "l", "k")
    assert np.array_equal(batch.pixels[4], pixels[0])
    with pytest.raises(ValueError, match="padded"):
        batch.padded(4)


@given(st.integers(0, 300), st.integers(0, 2**40))
def test_a_shuffle_is_a_permutation_and_a_function_of_its_parts(count: int, seed: int) -> None:
    order = shuffled(count, "order", seed)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, shuffled(count, "order", seed))
    if count > 20:
        assert not np.array_equal(order, shuffled(count, "order", seed + 1))


def test_draws_never_change_between_releases() -> None:
    assert shuffled(8, "pinned", 1).tolist() == PINNED_ORDER
    assert rng_of("pinned", 1).random() == PINNED_DRAW


PINNED_ORDER = [6, 5, 7, 3, 4, 2, 0, 1]
PINNED_DRAW = 0.5991768541861946
