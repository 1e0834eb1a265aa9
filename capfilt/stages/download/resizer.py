"""img2dataset's resizer, with pictures as they are seen: its options, its sizes, its answer.

Decoding is `capfilt.pixels`; scaling and encoding are OpenCV's, as they are img2dataset's.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np

from capfilt.errors import InputError
from capfilt.option import DOWNLOAD, check_options, option
from capfilt.pixels import MOST_PIXELS, Bounds, Picture, Pixels, UnusablePicture, decode, turned

ResizeMode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
EncodeFormat = Literal["jpg", "png", "webp"]

# (image, width, height, original width, original height, reason): what img2dataset's downloader
# asks for. The reason is None, or `kind: words` (see failures.split_reason).
Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]

_FORMS: Final = {"jpg": {"JPEG", "MPO"}, "png": {"PNG"}, "webp": {"WEBP"}}
_LONGEST_SIDE: Final = {"jpg": 65500, "png": 1 << 30, "webp": 16383}  # what the encoders can do
_BY_LONGER_SIDE: Final = frozenset({"border", "keep_ratio_largest"})


@dataclass(frozen=True, slots=True)
class Resize:
    """img2dataset's resizer: sizes in pixels, area in square pixels.

    `encode_quality`: 0-100 for JPEG and WebP, 0-9 for PNG (its compression). `skip_reencode` keeps
    the bytes of a picture in `encode_format` that is not scaled, where every decoder shows them as
    they are meant; others (turned, transparent, of more than 8 bits, not sRGB, animated) are
    encoded again. No picture of more than 2^27 pixels is decoded, whatever `max_image_area` says.
    """

    image_size: int = option(
        384, "Size in pixels that images are brought to (img2dataset)", panel=DOWNLOAD, above=0
    )
    resize_mode: ResizeMode = option(
        "keep_ratio", "How images are resized (img2dataset)", panel=DOWNLOAD
    )
    resize_only_if_bigger: bool = True
    encode_format: EncodeFormat = "jpg"
    encode_quality: int = 95
    skip_reencode: bool = False
    min_image_size: int = option(
        0, "Refuse images whose shorter side has fewer pixels", panel=DOWNLOAD, at_least=0
    )
    max_image_area: float = float(MOST_PIXELS)
    max_aspect_ratio: float = option(
        20.0,
        "Refuse images whose longer side is more than so many times the shorter",
        panel=DOWNLOAD,
        above=0,
    )

    def __post_init__(self) -> None:
        """Check what would make every row fail, one by one."""
        check_options(self)
        if not self.max_image_area > 0:
            raise InputError(f"max_image_area is {self.max_image_area}; it must be above 0")

    def check_quality(self) -> None:
        """Raise an InputError where the encoder has no such quality."""
        best = 9 if self.encode_format == "png" else 100
        if not 0 <= self.encode_quality <= best:
            raise InputError(
                f"encode_quality is {self.encode_quality}; {self.encode_format} has 0 to {best}"
            )

    @property
    def bounds(self) -> Bounds:
        """What is accepted."""
        return Bounds(self.min_image_size, self.max_image_area, self.max_aspect_ratio)


class Stream(Protocol):
    """What img2dataset hands over: the fetched bytes."""

    def read(self) -> bytes:
        """Return all that is left."""

    def seek(self, offset: int, /) -> object:
        """Go to a place."""


@dataclass(frozen=True, slots=True)
class Resizer:
    """Decodes, scales and encodes one picture at a time, in this process."""

    resize: Resize

    def __call__(self, img_stream: Stream, blurring_bbox_list: None = None) -> Resized:
        """Return what img2dataset's resizer returns; never raises but MemoryError."""
        img_stream.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on files that it can read
                return resized(img_stream.read(), self.resize)
        except UnusablePicture as error:
            return None, None, None, None, None, str(error)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # one odd picture must not end a download
            reason = "corrupt_image: the picture cannot be scaled or encoded"
            return None, None, None, None, None, reason


def resized(data: bytes, how: Resize) -> Resized:
    """Return the picture as `how` says, and its sizes as it is seen.

    Raises:
        UnusablePicture: with its kind.
    """

    def wanted(width: int, height: int) -> int | None:
        size = _scaled_size(width, height, how)
        return None if size is None else min(size)

    picture = decode(data, how.bounds, wanted)
    size = _scaled_size(picture.width, picture.height, how)
    original = _seen_size(picture)
    if size is None and how.skip_reencode and picture.plain and _is_kept(picture, how):
        return data, *original, *original, None
    pixels = _scaled(picture.pixels, size, (picture.width, picture.height))
    pixels = turned(pixels, picture.orientation)
    pixels = _framed(pixels, how) if size is not None else pixels
    height, width = pixels.shape[:2]
    return _encoded(pixels, how), width, height, *original, None


def _is_kept(picture: Picture, how: Resize) -> bool:
    return picture.form in _FORMS[how.encode_format]


def _seen_size(picture: Picture) -> tuple[int, int]:
    width, height = picture.width, picture.height
    return (height, width) if picture.orientation >= 5 else (width, height)


def _scaled_size(width: int, height: int, how: Resize) -> tuple[int, int] | None:
    """Return (width, height) to scale to, before cutting and padding; None to leave it."""
    if how.resize_mode == "no":
        return None
    side = (max if how.resize_mode in _BY_LONGER_SIDE else min)(width, height)
    if how.resize_only_if_bigger and side <= how.image_size:
        return None
    scale = how.image_size / side
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scaled(pixels: Pixels, size: tuple[int, int] | None, original: tuple[int, int]) -> Pixels:
    """Scale as img2dataset does: averaging downwards, Lanczos upwards."""
    if size is None or pixels.shape[1::-1] == size:
        return pixels
    import cv2

    smaller = size[0] < original[0] or size[1] < original[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(pixels, size, interpolation=method), np.uint8)


def _framed(pixels: Pixels, how: Resize) -> Pixels:
    """Cut the middle out, or put white around, where the mode says so."""
    height, width = pixels.shape[:2]
    side = how.image_size
    if how.resize_mode == "center_crop":
        top, left = (height - side) // 2, (width - side) // 2
        return np.ascontiguousarray(pixels[top : top + side, left : left + side])
    if how.resize_mode != "border":
        return pixels
    top, left = max(0, side - height) // 2, max(0, side - width) // 2
    framed = np.full((max(side, height), max(side, width), *pixels.shape[2:]), 255, np.uint8)
    framed[top : top + height, left : left + width] = pixels
    return framed


def _encoded(pixels: Pixels, how: Resize) -> bytes:
    import cv2

    if max(pixels.shape[:2]) > _LONGEST_SIDE[how.encode_format]:
        raise UnusablePicture("too_many_pixels", f"too long for {how.encode_format}")
    flag = {
        "jpg": cv2.IMWRITE_JPEG_QUALITY,
        "png": cv2.IMWRITE_PNG_COMPRESSION,
        "webp": cv2.IMWRITE_WEBP_QUALITY,
    }[how.encode_format]
    blue_first: Any = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    done, encoded = cv2.imencode(f".{how.encode_format}", blue_first, [flag, how.encode_quality])
    if not done:
        raise UnusablePicture("corrupt_image", f"cannot be encoded as {how.encode_format}")
    return bytes(encoded)
