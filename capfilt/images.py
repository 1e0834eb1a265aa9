"""From encoded bytes to the pixels that a model sees."""

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

# How many decoded images are kept: one slice of a pass, so that two stages of the same pass decode
# each picture once.
_KEPT = 256


class UndecodableImage(ValueError):
    """The bytes are no image that Pillow can read; the message says why."""


@functools.lru_cache(maxsize=_KEPT)
def load_rgb(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """Decode, convert to RGB and squash to (side, side, 3) by bicubic resampling, without a crop.

    This is BLIP's preprocessing short of the normalisation (BLIP repository, `transform_test`).
    The array is shared and read-only.

    Raises:
        UndecodableImage: with the decoder's reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders of hostile bytes raise anything
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    pixels = np.asarray(square)
    pixels.setflags(write=False)
    return pixels
