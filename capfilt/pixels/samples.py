"""From a loaded image of any mode to 8-bit sRGB or grey: depth, transparency, orientation."""

import functools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from capfilt.pixels.colour import Convert, lab_to_srgb, to_srgb
from capfilt.pixels.errors import UnusablePicture

Pixels = npt.NDArray[np.uint8]  # (height, width) of grey, or (height, width, 3)

_STRIP_PIXELS: Final = 1 << 20  # what is converted at a time
_DEEP: Final = ("I", "F")  # how the modes with more than 8 bits a sample begin
_ALPHA: Final = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})


def is_plain(image: Image.Image) -> bool:
    """Say whether any decoder shows a loaded image as it is: 8 bits, opaque, upright, sRGB."""
    return (
        image.mode in {"1", "L", "P", "RGB", "YCbCr"}
        and "transparency" not in image.info
        and orientation_of(image) == 1
        and to_srgb(image) is None
    )


def pixels_of(image: Image.Image) -> Pixels:
    """Return a loaded image as 8-bit sRGB or grey pixels on white, not turned.

    It is converted in strips, so that the conversion adds little to the image itself.

    Raises:
        UnusablePicture: its samples have no defined white.
    """
    convert = _converter(image)
    strips = strips_of(image)
    first = np.asarray(convert(next(strips)))
    if first.shape[0] == image.height:
        return first
    pixels = np.empty((image.height, *first.shape[1:]), np.uint8)
    pixels[: len(first)] = first
    row = len(first)
    for strip in strips:
        pixels[row : row + strip.height] = convert(strip)
        row += strip.height
    return pixels


def strips_of(image: Image.Image) -> Iterator[Image.Image]:
    """Yield a loaded image in bands of rows, each with the whole one's metadata."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        strip.info = image.info  # where a transparent colour is named
        yield strip


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels as EXIF orientation 1 to 8 says that they are seen."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # then as 1 to 4, over the other axes
    flip_rows = orientation in {3, 4, 7, 8}
    flip_columns = orientation in {2, 3, 6, 7}
    shown = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return np.ascontiguousarray(shown)


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's orientation of a loaded image, 1 where there is none that makes sense.

    XMP's is passed over, as viewers do. Pillow turns TIFF itself, and reports AVIF's own (irot,
    imir) as EXIF's.
    """
    raw = image.info.get("exif")
    if image.format == "TIFF" or not raw:
        return 1
    exif = Image.Exif()
    try:
        exif.load(raw)
        found = exif.get(0x0112, 1)
    except Exception:  # noqa: BLE001  # a torn block of EXIF says nothing
        return 1
    return found if found in range(1, 9) else 1


def _converter(image: Image.Image) -> Convert:
    """Return what turns a strip of this image into an image of mode L or RGB."""
    profile = to_srgb(image)
    if image.mode.startswith(_DEEP):
        return functools.partial(eight_bits, image=image, profile=profile)
    if image.mode in _ALPHA or "transparency" in image.info:
        return functools.partial(blended, profile=profile)
    if profile is not None:
        return profile
    if image.mode == "LAB":
        return lab_to_srgb()
    mode = "L" if image.mode in {"1", "L"} else "RGB"
    return lambda strip: strip.convert(mode)


def blended(strip: Image.Image, profile: Convert | None = None) -> Image.Image:
    """Return an image with transparency as RGB on white, its colours converted before that."""
    rgba = strip.convert("RGBA")
    alpha = rgba.getchannel("A")
    colours = rgba.convert("RGB") if profile is None else profile(_opaque(strip, rgba))
    if alpha.getextrema() == (255, 255):
        return colours
    white = Image.new("RGB", strip.size, "white")
    white.paste(colours, mask=alpha)
    return white


def _opaque(strip: Image.Image, rgba: Image.Image) -> Image.Image:
    """Return the colours alone, in the model that their profile is of."""
    grey = strip.mode in {"LA", "La"}
    return rgba.getchannel("R") if grey else rgba.convert("RGB")


def eight_bits(
    strip: Image.Image, image: Image.Image, profile: Convert | None = None
) -> Image.Image:
    """Bring a strip of an image of more than 8 bits to 8: 0 to 0, white to 255.

    The mode is L, or RGB where a profile says what the greys are.

    Raises:
        UnusablePicture: its type says nothing of white, or samples lie beyond it.
    """
    white, clear = _white(image), image.info.get("transparency")
    samples = np.asarray(strip)
    if strip.mode == "I":
        samples = samples.view(np.uint32)  # Pillow holds them as signed
    if strip.mode == "F" and not (samples.min() >= -0.01 and samples.max() <= 1.01):
        raise _undefined("floating-point samples beyond 0 to 1")  # NaN too
    levels = (samples * (255 / abs(white))).clip(0, 255)
    levels = 255 - levels if white < 0 else levels
    if profile is not None:
        levels = _looked_up(levels, profile)
    scaled = np.rint(levels).astype(np.uint8)
    if isinstance(clear, int):
        scaled[samples == clear] = 255
    return Image.fromarray(scaled)


def _looked_up(levels: npt.NDArray[Any], profile: Convert) -> npt.NDArray[Any]:
    """Return grey levels in [0, 255] as colours, by the profile and between its 256 answers."""
    table = np.asarray(profile(Image.fromarray(np.arange(256, dtype=np.uint8)[None])))[0]
    colours = [np.interp(levels, np.arange(256), channel) for channel in table.T]
    return np.stack(colours, -1)


def _white(image: Image.Image) -> float:
    """Return the sample that means white by the file's own type; negative where 0 is white."""
    form, deep = image.format, image.mode != "F"
    if deep and form in {"PNG", "PPM", "JPEG2000", "JXL", "HEIF"}:
        return 65535.0  # their decoders fill 16 bits whatever the file has
    if form in {"PPM", "JXL"}:
        return 1.0
    if form != "TIFF":
        raise _undefined(f"{form} with more than 8 bits")
    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # TIFF's alone
    if tags.get(339, (1,))[0] == 2:
        raise _undefined("TIFF with signed samples")
    white = float(2 ** max(tags.get(258, (16,))) - 1) if deep else 1.0
    return -white if tags.get(262) == 0 else white


def _undefined(what: str) -> UnusablePicture:
    return UnusablePicture("unsupported_samples", f"{what}: no defined white")
