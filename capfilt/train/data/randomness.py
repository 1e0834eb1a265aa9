"""Random numbers as functions of what they are for: no generator is shared or carried along.

Only sources whose output is fixed between releases are used (Python's `random.random`, numpy's raw
bit streams), so a training that goes on after an upgrade meets the same order.
"""

from hashlib import blake2b
from random import Random

import numpy as np
import numpy.typing as npt

Part = int | str


def rng_of(*parts: Part) -> Random:
    """Return a generator that depends on nothing but `parts`."""
    return Random(_word(parts))


def shuffled(count: int, *parts: Part) -> npt.NDArray[np.int64]:
    """Return a permutation of range(count) that depends on nothing but `count` and `parts`."""
    raw = np.random.PCG64(_word(parts)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


def _word(parts: tuple[Part, ...]) -> int:
    digest = blake2b(repr(parts).encode("utf-8"), digest_size=8, person=b"capfilt-train")
    return int.from_bytes(digest.digest(), "big")
