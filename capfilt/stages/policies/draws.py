"""Draws that belong to a row: hash(seed, key), the same in any shard, order or resume."""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_WORDS: Final = 8  # 64-bit words of a digest


def draws(seed: int, keys: Sequence[str], count: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers in (0, 1), (len(keys), count); more columns leave the first alone."""
    blocks = max(1, -(-count // _WORDS))
    digests = [
        hashlib.blake2b(f"{seed}/{block}/{key}".encode(), person=b"capfilt-draws").digest()
        for key in keys
        for block in range(blocks)
    ]
    words = np.frombuffer(b"".join(digests), "<u8").reshape(len(keys), blocks * _WORDS)
    halves: npt.NDArray[np.float64] = (words[:, :count] >> np.uint64(12)).astype(np.float64) + 0.5
    return halves * 2.0**-52
