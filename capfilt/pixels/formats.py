"""Opening a picture by its header: which formats there are, and which need more packages."""

import functools
import importlib
import io
import struct
from dataclasses import dataclass
from typing import Final

from PIL import Image

from capfilt.pixels.errors import Bounds, UnusablePicture, broken_picture

# Pillow's formats, the web's first, those without a magic number last. Not among them: EPS (runs a
# program), WMF (Windows alone), stubs that cannot decode (BUFR, GRIB, HDF5, MPEG), containers of
# other formats (IPTC, FPX, MIC).
FORMATS: Final = tuple(
    "JPEG PNG WEBP GIF AVIF TIFF BMP ICO JPEG2000 PPM PSD QOI DDS ICNS BLP CUR DIB FTEX GBR PCX "
    "DCX FLI FITS SGI SUN MSP XBM XPM XVTHUMB MCIDAS PCD IM TGA SPIDER".split()
)


def open_stranger(data: bytes, bounds: Bounds) -> Image.Image:
    """Open by the header, with the packages of the extra `images` where the bytes need one."""
    if not data:
        raise UnusablePicture("not_an_image", "the file is empty")
    extra = _extra_for(data)
    if extra is not None:
        name, formats = _with_extra(extra)
        if name == "JXL":
            bounds.check(*_jxl_size(data))  # its plugin decodes at once
        return Image.open(io.BytesIO(data), formats=formats)
    return open_image(data)


def open_image(data: bytes) -> Image.Image:
    """Open by the header alone what Pillow itself knows; for pictures that are stored already.

    Raises:
        Exception: whatever its decoders raise.
    """
    return Image.open(io.BytesIO(data), formats=_formats())


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@dataclass(frozen=True, slots=True)
class _Extra:
    name: str
    module: str
    register: str | None


_HEIF: Final = _Extra("HEIF", "pillow_heif", "register_heif_opener")
_JXL: Final = _Extra("JXL", "pillow_jxl", None)  # registers itself
_HEIF_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")


def _extra_for(data: bytes) -> _Extra | None:
    """Return the package that these bytes need, by their magic numbers."""
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return _JXL
    if data[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[at : at + 4] for at in (8, *range(16, length, 4))]
    if any(brand in (b"avif", b"avis") for brand in brands):
        return None  # Pillow's own
    return _HEIF if any(brand in (*_HEIF_BRANDS, b"mif1", b"msf1") for brand in brands) else None


@functools.lru_cache(maxsize=2)
def _with_extra(extra: _Extra) -> tuple[str, tuple[str, ...]]:
    try:
        module = importlib.import_module(extra.module)
    except ImportError as error:
        told = f"{extra.name} needs pip install 'capfilt[images]'"
        raise UnusablePicture("unsupported_image", told) from error
    if extra.register is not None:
        getattr(module, extra.register)()
    return extra.name, (extra.name,)


def _jxl_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a JPEG XL file's header (ISO/IEC 18181-1, SizeHeader)."""
    bits = _Bits(_jxl_codestream(data)[2:])
    small = bits.take(1)

    def length() -> int:
        if small:
            return (bits.take(5) + 1) * 8
        return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1

    height = length()
    ratio = bits.take(3)
    if ratio == 0:
        return length(), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under, height


class _Bits:
    """Numbers of a few bits, least significant first."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data[:16], "little")

    def take(self, count: int) -> int:
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value


def _jxl_codestream(data: bytes) -> bytes:
    """Return the first bytes of the codestream, which may lie in a box (jxlc, or jxlp's first)."""
    if data[:2] == b"\xff\x0a":
        return data[:32]
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 16 if size == 1 else 8
        size = struct.unpack_from(">Q", data, at + 8)[0] if size == 1 else size or len(data) - at
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + (4 if kind == b"jxlp" else 0)
            return data[start : start + 32]
        at += max(size, head)
    raise broken_picture("truncated_image", "JXL")


def claimed_format(data: bytes) -> str | None:
    """Return the format that the first bytes claim to be, or None."""
    extra, prefix = _extra_for(data), data[:16].ljust(16, b"\0")
    if extra is not None:
        return extra.name
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(prefix) is True:
            return name
    return None
