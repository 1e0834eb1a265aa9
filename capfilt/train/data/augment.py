"""BLIP's image augmentation: random resized crop, flip, RandAugment, in this order.

Everything is drawn from a generator that the caller makes for one sample, so it does not depend on
workers, ranks or a resume.

Colour. BLIP leaves out the operations that change what a caption says of colours: colour
(saturation), contrast, posterize, solarize, invert. So do we. It equalizes and stretches each
channel for itself, which turns a pink background grey. Here both act on the luminance alone, hue
and saturation stay, and no pixel gets darker or lighter than by `_RELIT`: otherwise the darkest
colour of a plain picture, whatever it is, becomes black. A light grey may still become white: for
captions that tell greys apart take `KEEPS_COLOUR`. Cutout, which may hide the very object, is left
out as in BLIP.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from capfilt.errors import InputError
from capfilt.models.pixels import UndecodableImage
from capfilt.pixels import as_seen, open_image

Pixels = npt.NDArray[np.uint8]
Operation = Literal[
    "identity",
    "autocontrast",
    "brightness",
    "sharpness",
    "equalize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)  # BLIP's ten
KEEPS_COLOUR: Final[tuple[Operation, ...]] = (
    "identity",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
_LEVELS: Final = 10.0  # the strongest magnitude
_APPLIED: Final = 0.5  # each drawn operation is applied in one of two cases, as in BLIP's code
_RELIT: Final = (0.6, 1.6)  # factors of a pixel's own brightness
_FILL: Final = (128, 128, 128)
_TRIES: Final = 10  # torchvision's RandomResizedCrop gives up after as many


@dataclass(frozen=True, slots=True)
class Augment:
    """What is done to a training image; the defaults are those of BLIP's repository.

    `crop_scale` is the share of the area that a crop keeps, drawn uniformly (None: the whole image
    is squashed), `crop_ratio` its width over height in source pixels, drawn log-uniformly. `flip`
    "swap" mirrors one image in two and swaps left and right in its text; "off" mirrors none: take
    it for texts in other languages than English, whose words are not swapped. RandAugment (arXiv
    1909.13719) draws `count` of `operations` with magnitude 0 to 10.
    """

    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Literal["swap", "off"] = "swap"
    operations: tuple[Operation, ...] = OPERATIONS
    count: int = 2
    magnitude: float = 5.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        low, high = self.crop_scale or (1.0, 1.0)
        if not 0 < low <= high <= 1:
            raise InputError(f"crop_scale={self.crop_scale}: give two shares, 0 < low <= high <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise InputError(f"crop_ratio={self.crop_ratio}: give two ratios, 0 < low <= high")
        if self.flip not in {"swap", "off"}:
            raise InputError(f"flip={self.flip!r}: it is 'swap' or 'off'")
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown:
            raise InputError(f"operations {unknown} are unknown; there are {list(OPERATIONS)}")
        if self.count < 0 or (self.count and not self.operations):
            raise InputError(
                f"count={self.count} of {len(self.operations)} operations is no number"
            )
        if not 0 <= self.magnitude <= _LEVELS:
            raise InputError(f"magnitude={self.magnitude} must lie in 0 to {_LEVELS:g}")


def decode(data: bytes) -> Image.Image:
    """Return the RGB image of encoded bytes.

    Raises:
        UndecodableImage: the message is the class of what the decoder raised.
    """
    try:
        with open_image(data) as image:
            return as_seen(image)
    except Exception as error:  # decoders of hostile bytes raise anything
        raise UndecodableImage(type(error).__name__) from error


def squash(image: Image.Image, side: int) -> Pixels:
    """Return (side, side, 3): the whole image, bicubic, as the models see it outside training."""
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def augmented(
    image: Image.Image, text: str, side: int, augment: Augment, rng: Random
) -> tuple[Pixels, str]:
    """Return (side, side, 3) of an RGB image as `augment` and `rng` will have it, and its text."""
    square = _cropped(image, side, augment, rng)
    if augment.flip == "swap" and rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        text = swap_sides(text)
    for _ in range(augment.count):
        name = augment.operations[int(rng.random() * len(augment.operations))]
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if rng.random() < _APPLIED:
            square = _APPLY[name](square, sign * augment.magnitude / _LEVELS)
    return np.asarray(square), text


def _cropped(image: Image.Image, side: int, augment: Augment, rng: Random) -> Image.Image:
    box = (0, 0, *image.size)
    if augment.crop_scale is not None:
        box = crop_box(*image.size, augment.crop_scale, augment.crop_ratio, rng)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: Random
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random crop, by the rule of RandomResizedCrop.

    Where no draw fits (a very long image), it is the largest crop in the middle whose shape is
    allowed.
    """
    for _ in range(_TRIES):
        area = width * height * _between(*scale, rng)
        shape = math.exp(_between(math.log(ratio[0]), math.log(ratio[1]), rng))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.random() * (width - w + 1))
            top = int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _between(low: float, high: float, rng: Random) -> float:
    return low + (high - low) * rng.random()


_PAIRS: Final = ("left right", "leftmost rightmost", "leftward rightward", "leftwards rightwards")
_OTHER: Final[Mapping[str, str]] = MappingProxyType(
    {one: other for a, b in map(str.split, _PAIRS) for one, other in ((a, b), (b, a))}
)
_SIDES: Final = re.compile(rf"\b({'|'.join(_OTHER)})\b", re.IGNORECASE)


def swap_sides(text: str) -> str:
    """Return the text with left and right swapped where they are words, in the same case.

    What "left" means is not known: "she left" becomes "she right".
    """
    return _SIDES.sub(lambda match: _like(match[0], _OTHER[match[0].lower()]), text)


def _like(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def _affine(image: Image.Image, a: float, b: float, c: float, d: float) -> Image.Image:
    """Map each point (x, y) of the result to (x + a y + c, y + b x + d) of the image, in pixels.

    Shears keep the upper left corner in its place, as BLIP's do.
    """
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1.0, a, c, b, 1.0, d),
        Image.Resampling.BILINEAR,
        fillcolor=_FILL,
    )


def _factor(level: float) -> float:
    """Return BLIP's factor of an enhancement, 0.1 to 1.9; at its magnitude of 5 nothing changes."""
    return abs(level) * 1.8 + 0.1


def _relit(image: Image.Image, light: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Give each pixel the luminance that `light` makes of the image's, in its own hue.

    Within `_RELIT`, and no lighter than hue and saturation allow.
    """
    luminance = image.convert("L")
    pixels = np.asarray(image, dtype=np.float32)
    old, new = (np.asarray(each, dtype=np.float32) for each in (luminance, light(luminance)))
    gain = np.clip(new / np.maximum(old, 1), *_RELIT)
    gain = np.minimum(gain, 255 / np.maximum(pixels.max(axis=-1), 1))
    return Image.fromarray(np.rint(pixels * gain[..., None]).astype(np.uint8))


def _shift(image: Image.Image, level: float) -> float:
    return level * 10 / 224 * image.width  # BLIP: ten pixels of 224 at the strongest


# level: -1 to 1; the sign is a direction where there is one.
_APPLY: Final[Mapping[Operation, Callable[[Image.Image, float], Image.Image]]] = MappingProxyType(
    {
        "identity": lambda image, level: image,
        "autocontrast": lambda image, level: _relit(image, ImageOps.autocontrast),
        "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(_factor(level)),
        "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(_factor(level)),
        "equalize": lambda image, level: _relit(image, ImageOps.equalize),
        "shear_x": lambda image, level: _affine(image, 0.3 * level, 0, 0, 0),
        "shear_y": lambda image, level: _affine(image, 0, 0.3 * level, 0, 0),
        "translate_x": lambda image, level: _affine(image, 0, 0, _shift(image, level), 0),
        "translate_y": lambda image, level: _affine(image, 0, 0, 0, _shift(image, level)),
        "rotate": lambda image, level: image.rotate(
            30 * level, Image.Resampling.BILINEAR, fillcolor=_FILL
        ),
    }
)
