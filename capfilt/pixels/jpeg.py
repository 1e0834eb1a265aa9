"""JPEG by libjpeg-turbo itself, at a reduced size, with the warnings that others pass over.

Where the data end early or are damaged, libjpeg paints the rest grey and warns; neither Pillow nor
OpenCV tells. simplejpeg does, and gives the same pixels.
"""

import re
from typing import Final

import numpy as np

from capfilt.pixels.errors import broken_picture
from capfilt.pixels.samples import Pixels

# libjpeg's warnings that mean missing or wrong picture data. The others (bytes too many between
# markers, an odd version) leave the picture whole.
_DAMAGE: Final = re.compile(
    r"premature end|huffman|arithmetic|marker .* instead of|before marker 0xd[0-7]|bogus", re.I
)
_CUT: Final = re.compile(r"premature end", re.I)


def decode_jpeg(data: bytes, space: str, **size: int) -> Pixels:
    """Decode; what libjpeg only warns of is an error where the picture suffers from it."""
    import simplejpeg

    for attempt, strict in ((data, True), (_bare_jpeg(data), True), (_bare_jpeg(data), False)):
        try:
            return np.asarray(simplejpeg.decode_jpeg(attempt, space, strict=strict, **size))
        except ValueError as error:
            if _DAMAGE.search(str(error)):
                ended = _CUT.search(str(error))
                raise broken_picture(
                    "truncated_image" if ended else "corrupt_image", "JPEG"
                ) from error
    raise broken_picture("corrupt_image", "JPEG")


def _bare_jpeg(data: bytes) -> bytes:
    """Return a JPEG with the segments that make its pixels, without bytes between them."""
    kept, at = [b"\xff\xd8"], data.find(b"\xff", 2)
    while 0 <= at < len(data) - 4:
        marker = data[at + 1]
        if marker == 0xDA:  # the scans and all that follows
            return b"".join([*kept, data[at:]])
        if marker in {0x00, 0x01, 0xFF} or 0xD0 <= marker <= 0xD9:
            at = data.find(b"\xff", at + 1)
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in {0xE0, 0xEE} or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[at:end])  # JFIF and Adobe say what the samples mean
        at = data.find(b"\xff", end)
    return data
