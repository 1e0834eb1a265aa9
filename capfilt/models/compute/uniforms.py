"""Sampling noise that belongs to a caption, not to a batch.

u = hash(seed, sample key, caption number, step), uniform in [0, 1). Whatever the batch size, the
number of workers or the moment of a resume, the same caption meets the same noise.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, keys: Sequence[str], captions: int, steps: int) -> npt.NDArray[np.float64]:
    """Return uniform noise in [0, 1), shape (len(keys), captions, steps)."""
    origin = b"capfilt-noise-1\x00%d\x00" % seed
    bases = [
        hashlib.blake2b(origin + b"%d\x00" % k + key.encode(), digest_size=8).digest()
        for key in keys
        for k in range(captions)
    ]
    base = np.frombuffer(b"".join(bases), "<u8").reshape(len(keys), captions, 1)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is what is wanted
        counter = base + (np.arange(steps, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
    bits: npt.NDArray[np.uint64] = _splitmix64(counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix each 64-bit word (Steele, Lea & Flood 2014, finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
