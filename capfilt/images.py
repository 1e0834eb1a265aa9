"""From encoded bytes to the pixels that a model sees."""

import functools
import io
import re
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

# How many decoded images are kept: one slice of a pass, so that two stages of the same pass decode
# each picture once.
# In a pass on a GPU that is 256 rows, and the next ones are decoded ahead.
_KEPT = 512
# A JPEG is decoded at a half, a quarter or an eighth of its size (by its DCT, which saves most of
# the work) only while that leaves this many times the wanted side: what bicubic then sees is finer
# than what it gives.
_SPARE = 2
# " <_io.BytesIO object at 0x7f…>" in a decoder's message: an address, another one at each call.
_OBJECT: Final = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")


class UndecodableImage(ValueError):
    """The bytes are no image that Pillow can read; the message says why."""


@functools.lru_cache(maxsize=_KEPT)
def load_rgb(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """Decode, convert to RGB and squash to (side, side, 3) by bicubic resampling, without a crop.

    This is BLIP's preprocessing short of the normalisation (BLIP repository, `transform_test`).
    The array is shared and read-only.

    Raises:
        UndecodableImage: with the decoder's reason, the same for the same bytes.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (_SPARE * side, _SPARE * side))
            square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders of hostile bytes raise anything
        reason = _OBJECT.sub("", str(error))
        raise UndecodableImage(f"{type(error).__name__}: {reason}") from error
    pixels = np.asarray(square)
    pixels.setflags(write=False)
    return pixels
