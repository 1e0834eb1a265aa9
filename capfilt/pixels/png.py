"""PNG, where Pillow says nothing of what it does: rows that are missing, and a colour of 16 bits.

It fills missing rows with zeros. Asking costs a second inflation, so it is asked only where the
last row that is filled is all zeros. A transparent colour of 16 bits it compares with pixels of 8.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from capfilt.pixels.errors import broken_picture

_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7: first column, first row, column step, row step of each pass.
_PASSES: Final = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_PIECE: Final = 1 << 20
_SIXTEEN: Final = 16  # bits a sample


def check_rows(data: bytes, image: Image.Image) -> None:
    """Raise UnusablePicture where the rows of a loaded PNG end early."""
    width, height = image.size
    interlaced = data[28] == 1
    last = height - 2 if interlaced and height % 2 and height > 1 else height - 1
    row = image.crop((0, last, width, last + 1))
    if row.getbbox(alpha_only=False) is not None:
        return
    expected = sum(_pass_bytes(data)) if interlaced else _rows_bytes(width, height, data)
    if _inflated_bytes(data, expected) < expected:
        raise broken_picture("truncated_image", "PNG")


def clear_pixels(image: Image.Image) -> npt.NDArray[np.bool_] | None:
    """Return which pixels are of the transparent colour, for colours of 16 bits; else None.

    The image must not be loaded yet; then `info` names no transparent colour any more.
    """
    if image.format != "PNG" or image.mode != "RGB" or "transparency" not in image.info:
        return None
    stream: Any = getattr(image, "fp")  # noqa: B009  # what it was opened from; no public type
    data = stream.getbuffer()
    if data[24] != _SIXTEEN:
        return None
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != (image.height, image.width, 4):
        raise broken_picture("corrupt_image", "PNG")
    del image.info["transparency"]
    return np.asarray(pixels[:, :, 3] == 0)


def _rows_bytes(width: int, height: int, data: bytes) -> int:
    depth, colour_type = data[24], data[25]
    return height * (1 + (width * depth * _CHANNELS[colour_type] + 7) // 8) if width else 0


def _pass_bytes(data: bytes) -> Iterator[int]:
    width, height = struct.unpack_from(">II", data, 16)
    for left, top, across, down in _PASSES:
        columns, rows = (width - left + across - 1) // across, (height - top + down - 1) // down
        yield _rows_bytes(max(0, columns), max(0, rows), data)


def _inflated_bytes(data: bytes, enough: int) -> int:
    """Count the bytes of the first frame's rows, up to about `enough` of them."""
    unpacker, count = zlib.decompressobj(), 0
    for part in _idat(data):
        left = part
        while left and count < enough and not unpacker.eof:
            count += len(unpacker.decompress(left, _PIECE))
            left = unpacker.unconsumed_tail
    return count + len(unpacker.flush())


def _idat(data: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"IDAT":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length
