"""From encoded bytes to the pixels that a model sees."""

import re
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from capfilt.pixels import as_seen, open_image

# How an image becomes a square: `squash` scales its edges apart, `crop` scales the shorter edge and
# cuts the middle out.
Framing = Literal["squash", "crop"]

# A JPEG is decoded at a half, a quarter or an eighth of its size (by its DCT, which saves most of
# the work) only while that leaves this many times the wanted side: what bicubic then sees is finer
# than what it gives.
_SPARE = 2
# " <_io.BytesIO object at 0x7f…>" in a decoder's message: an address, another one at each call.
_OBJECT: Final = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")


class UndecodableImage(ValueError):
    """The bytes are no image that Pillow can read; the message says why."""


def load_rgb(data: bytes, side: int, framing: Framing = "squash") -> npt.NDArray[np.uint8]:
    """Decode as a viewer shows it (see `pixels`); bring to (side, side, 3) by bicubic resampling.

    `squash` is BLIP's preprocessing short of the normalisation (BLIP repository,
    `transform_test`), `crop` is CLIP's (CLIP repository, `_transform`). The array is read-only.

    Raises:
        UndecodableImage: with the decoder's reason, the same for the same bytes.
    """
    try:
        with open_image(data) as image:
            image.draft("RGB", (_SPARE * side, _SPARE * side))
            square = _square(as_seen(image), side, framing)
    except Exception as error:  # decoders of hostile bytes raise anything
        reason = _OBJECT.sub("", str(error))
        raise UndecodableImage(f"{type(error).__name__}: {reason}") from error
    pixels = np.asarray(square)
    pixels.setflags(write=False)
    return pixels


def _square(image: Image.Image, side: int, framing: Framing) -> Image.Image:
    if framing == "squash":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    shorter = min(image.size)
    # Rounded down, as transformers does. Only what is kept is ever scaled, so that a picture of one
    # row costs no more than another.
    left, right = _middle(image.width, side * image.width // shorter, side)
    upper, lower = _middle(image.height, side * image.height // shorter, side)
    box = (left, upper, right, lower)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _middle(edge: int, scaled: int, side: int) -> tuple[float, float]:
    """Return which part of an edge is the middle `side` of `scaled` pixels."""
    start = (scaled - side) // 2
    return start * edge / scaled, (start + side) * edge / scaled
