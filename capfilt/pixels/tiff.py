"""TIFF: what a sample means, and planes of more than 8 bits, which Pillow reads wrong.

Pillow takes 16-bit planes for interleaved pixels, and what it then shows can differ from call to
call. Each plane alone is a grey picture that it reads right, so each gets a header of its own.
"""

import io
import struct
from typing import Any, Final

import numpy as np
from PIL import Image, TiffImagePlugin

from capfilt.pixels.colour import to_srgb
from capfilt.pixels.errors import UnusablePicture
from capfilt.pixels.samples import Pixels, blended, eight_bits, strips_of

_BITS, _MEANING, _SAMPLES, _PLANAR, _EXTRA, _SIGN = 258, 262, 277, 284, 338, 339
_PLACES: Final = (273, 279, 324, 325)  # offsets and lengths, of strips or of tiles
# Width, height, compression, fill order, rows a strip, predictor, tile sides.
_KEPT: Final = (256, 257, 259, 266, 278, 317, 322, 323)
_RGB, _LONG = 2, 4


def split_planes(data: bytes, image: Image.Image) -> Pixels | None:
    """Return the pixels of a TIFF of separate planes of more than 8 bits; None for any other.

    Raises:
        UnusablePicture: its planes are other than red, green, blue and perhaps alpha.
    """
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None or tags.get(_PLANAR) != 2 or max(tags.get(_BITS, (1,))) <= 8:
        return None
    count = tags.get(_SAMPLES, 1)
    if count == 1:
        return None
    odd = count not in (3, 4) or tags.get(274, 1) != 1 or data[2:4] not in (b"*\0", b"\0*")
    if odd or tags.get(_MEANING) != _RGB:
        raise UnusablePicture("unsupported_samples", "TIFF planes of more than 8 bits")
    planes = [_plane(data, tags, number, count) for number in range(count)]
    alpha = count == 4 and tags.get(_EXTRA, (0,))[0] != 0
    whole = Image.fromarray(np.stack(planes if alpha else planes[:3], -1))
    profile = to_srgb(image)
    if alpha:
        return np.asarray(blended(whole, profile))
    return np.asarray(whole if profile is None else profile(whole))


def is_readable(data: bytes) -> bool:
    """Say whether a TIFF that Pillow does not open has all that its header promises."""
    stream = io.BytesIO(data)
    try:
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
        stream.seek(tags.next)
        tags.load(stream)
        ends = [
            start + length
            for places, lengths in zip(_PLACES[::2], _PLACES[1::2], strict=True)
            for start, length in zip(
                _numbers(tags.get(places, ())), _numbers(tags.get(lengths, ())), strict=True
            )
        ]
    except Exception:  # noqa: BLE001  # hostile bytes
        return False
    return bool(ends) and max(ends) <= len(data)


def _plane(data: bytes, tags: Any, number: int, count: int) -> Pixels:
    """Return one plane as 8-bit grey, read through a directory of its own behind the file."""
    own = {tag: _numbers(tags[tag]) for tag in _KEPT if tag in tags}
    own |= {_BITS: (tags[_BITS][number],), _MEANING: (1,), _SAMPLES: (1,), _PLANAR: (1,)}
    own[_SIGN] = _numbers(tags.get(_SIGN, 1))[:1]
    for tag in filter(tags.__contains__, _PLACES):
        each = len(tags[tag]) // count
        own[tag] = _numbers(tags[tag])[number * each : (number + 1) * each]
    order, start = "<" if data[:2] == b"II" else ">", len(data)
    head = data[:4] + struct.pack(f"{order}L", start)
    whole = b"".join([head, data[8:], _directory(own, start, order)])
    with Image.open(io.BytesIO(whole), formats=("TIFF",)) as plane:
        plane.load()
        strips = [np.asarray(eight_bits(strip, plane)) for strip in strips_of(plane)]
    return np.concatenate(strips)


def _directory(fields: dict[int, tuple[int, ...]], start: int, order: str) -> bytes:
    """Return the bytes of a TIFF directory that lies at `start`, its numbers as LONG."""
    behind = start + 2 + 12 * len(fields) + 4
    entries, long_ones = struct.pack(f"{order}H", len(fields)), b""
    for tag, values in sorted(fields.items()):
        packed = struct.pack(f"{order}{len(values)}L", *values)
        if len(values) > 1:
            place = behind + len(long_ones)
            long_ones += packed
            packed = struct.pack(f"{order}L", place)
        entries += struct.pack(f"{order}HHL", tag, _LONG, len(values)) + packed
    return entries + bytes(4) + long_ones


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)
