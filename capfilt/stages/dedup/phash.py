"""The phash stage: a 64-bit perceptual hash of every image, for finding near-duplicates."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from capfilt import schema
from capfilt.pixels import as_seen, open_image
from capfilt.stage import Resource, Transform

_SIDE: Final = 32
_LOW: Final = 8  # the 8 × 8 lowest frequencies make the 64 bits


@dataclass(frozen=True)
class Phash:
    """Hash by the signs of the lowest frequencies of the luminance (DCT perceptual hash).

    Near-duplicates (another size, another quality, a slight crop) differ in few of the 64 bits.
    """

    name = "phash"
    version = 1
    resource: ClassVar[Resource] = "cpu"
    rows_per_call = 256
    needs = ("image",)
    adds = schema.PHASH

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Yield the transform; there is nothing to load."""
        yield _hash_batch


def phash(data: bytes) -> int | None:
    """Return the 64-bit hash of an encoded image, None where Pillow cannot decode it.

    Bit i is set where the i-th of the 64 lowest DCT coefficients of the 32 × 32 luminance is above
    their median (the constant one left out of the median).
    """
    thumbnail = gray_thumbnail(data)
    if thumbnail is None:
        return None
    low = (_BASIS @ thumbnail @ _BASIS.T).ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def gray_thumbnail(data: bytes) -> npt.NDArray[np.float64] | None:
    """Return the luminance of an image at 32 × 32 in [0, 255], None where it cannot be decoded."""
    try:
        with open_image(data) as image:
            image.draft("L", (_SIDE * 4, _SIDE * 4))
            gray = as_seen(image, "L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    except Exception:  # noqa: BLE001  # decoders of hostile bytes raise anything
        return None
    return np.asarray(gray, np.float64)


def _hash_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    hashes = [None if d is None else phash(d) for d in batch.column("image").to_pylist()]
    return pa.record_batch([pa.array(hashes, pa.uint64())], schema=schema.PHASH)


def _cosine_basis() -> npt.NDArray[np.float64]:
    """Return the first 8 rows of the DCT-II matrix of 32 points."""
    frequency = np.arange(_LOW)[:, None]
    point = np.arange(_SIDE)[None, :]
    basis: npt.NDArray[np.float64] = np.cos(np.pi / _SIDE * (point + 0.5) * frequency)
    return basis


_BASIS: Final = _cosine_basis()
