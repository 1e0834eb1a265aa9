"""From a stranger's bytes to the 8-bit sRGB pixels that a viewer shows.

Turned by the EXIF orientation, more than 8 bits scaled by the file's own sample type, colours
converted from the embedded profile, transparency on white, the first frame of an animation. Size
and shape are read from the header before anything is decoded. A picture that ends early is an
error, and so is one whose samples have no defined white: nothing is guessed.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from capfilt.pixels.colour import to_srgb
from capfilt.pixels.errors import MOST_PIXELS, Bounds, Kind, UnusablePicture, broken_picture
from capfilt.pixels.formats import claimed_format, open_image, open_stranger
from capfilt.pixels.jpeg import decode_jpeg
from capfilt.pixels.png import check_rows, clear_pixels
from capfilt.pixels.samples import Pixels, is_plain, orientation_of, pixels_of, strips_of, turned
from capfilt.pixels.tiff import is_readable, split_planes

__all__ = [
    "MOST_PIXELS",
    "PEAK_BYTES_PER_PIXEL",
    "Bounds",
    "Kind",
    "Picture",
    "Pixels",
    "UnusablePicture",
    "as_seen",
    "decode",
    "open_image",
    "turned",
]

# The most that a picture takes beside the process itself, in bytes a pixel. Measured at 25 MP:
# JPEG and PNG 8, AVIF 12, JPEG XL 15, JPEG 2000 20, and 25 with alpha. At MOST_PIXELS: 3.5 GB.
PEAK_BYTES_PER_PIXEL: Final = 26
# A JPEG is decoded at a half, a quarter or an eighth of its size (by its DCT) only while that
# leaves this many times the wanted side, so that averaging has something finer to work on.
_SPARE: Final = 2
_LEAST_REDUCED: Final = 128  # in smaller ones the last row and column, rounded up, would show
_ENDED: Final = re.compile(r"truncated|end of|ended|not enough|unexpected eof|buffer is not large")


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. `pixels` may be smaller than the original, and are not turned yet.

    `orientation`: EXIF's 1 to 8, what `turned` takes. `plain`: any decoder shows the bytes so.
    `width` and `height` are the original's, as it lies in the file.
    """

    pixels: Pixels
    width: int
    height: int
    orientation: int
    plain: bool
    form: str


def decode(data: bytes, bounds: Bounds, side: Callable[[int, int], int | None]) -> Picture:
    """Decode the first frame; `side(width, height)` says to what shorter side it will be scaled.

    Raises:
        UnusablePicture: with its kind.
        MemoryError: this machine's fault, not the picture's.
    """
    form: str | None = None
    try:
        with open_stranger(data, bounds) as image:
            form = image.format
            bounds.check(*image.size)
            if form in {"JPEG", "MPO"}:
                return _decoded_jpeg(data, image, side(*image.size))
            if form == "WEBP" and image.mode == "RGB" and not getattr(image, "is_animated", True):
                return _from_array(_decoded_webp(data), image, image.size)
            planes = split_planes(data, image)
            if planes is not None:
                return Picture(planes, *image.size, 1, False, "TIFF")
            clear = clear_pixels(image)
            image.load()
            bounds.check(*image.size)  # an icon's own header may have said less
            if form == "PNG":
                check_rows(data, image)
            return _picture(image, image.size, clear)
    except (UnusablePicture, MemoryError):
        raise
    except Exception as error:  # decoders of hostile bytes raise anything
        raise _explained(error, form, data) from error


def as_seen(image: Image.Image, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Return an opened image in `mode`, as a viewer shows it.

    What is plain already (all that capfilt stores) is converted as Pillow does it.
    """
    clear = clear_pixels(image)
    image.load()
    if clear is None and is_plain(image):
        return image.convert(mode)
    shown = turned(_on_white(pixels_of(image), clear), orientation_of(image))
    return Image.fromarray(shown).convert(mode)


def _decoded_jpeg(data: bytes, image: Image.Image, side: int | None) -> Picture:
    width, height = image.size
    least_side = max(_SPARE * side, _LEAST_REDUCED) if side else MOST_PIXELS
    scale = next((k for k in (8, 4, 2) if min(width, height) >= least_side * k), 1)
    least = (-(-width // scale), -(-height // scale))
    if image.mode not in {"L", "RGB"}:  # CMYK and YCCK: Pillow knows Adobe's inversion
        decode_jpeg(data, "CMYK", min_factor=8)  # whole?
        image.draft(image.mode, least)
        image.load()
        return _picture(image, (width, height))
    space = "GRAY" if image.mode == "L" else "RGB"
    pixels = decode_jpeg(data, space, min_width=least[0], min_height=least[1])
    return _from_array(pixels[:, :, 0] if image.mode == "L" else pixels, image, (width, height))


def _decoded_webp(data: bytes) -> Pixels:
    """Decode a still picture without alpha as OpenCV does: at half the cost of Pillow's way."""
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("cannot be decoded")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), np.uint8)


def _from_array(pixels: Pixels, image: Image.Image, size: tuple[int, int]) -> Picture:
    """Return what another library than Pillow has decoded of an opened image, in its own mode."""
    transform, orientation = to_srgb(image), orientation_of(image)
    if transform is not None:
        strips = strips_of(Image.fromarray(pixels))
        pixels = np.concatenate([np.asarray(transform(strip)) for strip in strips])
    plain = transform is None and orientation == 1
    return Picture(pixels, *size, orientation, plain, image.format or "picture")


def _picture(
    image: Image.Image, size: tuple[int, int], clear: npt.NDArray[np.bool_] | None = None
) -> Picture:
    """Return a loaded image as pixels; `size` is the original's, `clear` are transparent ones."""
    plain = clear is None and is_plain(image) and not getattr(image, "is_animated", False)
    form, pixels = image.format or "picture", _on_white(pixels_of(image), clear)
    return Picture(pixels, *size, orientation_of(image), plain, form)


def _on_white(pixels: Pixels, clear: npt.NDArray[np.bool_] | None) -> Pixels:
    if clear is None:
        return pixels
    shown = pixels.copy()
    shown[clear] = 255
    return shown


def _explained(error: Exception, form: str | None, data: bytes) -> UnusablePicture:
    """Turn what a decoder raised into a kind and stable words: never its own message."""
    if isinstance(error, Image.DecompressionBombError):
        return UnusablePicture("too_many_pixels", "image area too large")
    form = form or claimed_format(data)
    if form is None and isinstance(error, UnidentifiedImageError):
        return UnusablePicture("not_an_image", "no picture format that is known")
    if form == "TIFF" and isinstance(error, UnidentifiedImageError) and is_readable(data):
        return UnusablePicture("unsupported_samples", "a TIFF of samples that Pillow does not read")
    ended = isinstance(error, EOFError | struct.error) or bool(_ENDED.search(str(error).lower()))
    if form == "WEBP":  # its decoder does not say; its header says how long it is
        ended = len(data) < 8 + int.from_bytes(data[4:8], "little")
    return broken_picture("truncated_image" if ended else "corrupt_image", form or "picture")
