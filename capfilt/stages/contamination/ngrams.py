"""Word n-grams of texts, normalised: what two texts share, whatever their case and punctuation."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
_WORD: Final = re.compile(r"\w+")


def ngrams(text: str | None, words: int) -> Hashes:
    """Return a 64-bit hash of every run of so many words; none of a text with fewer.

    Words are those of the text in NFKC, case-folded; what is between them does not count.
    """
    found = _WORD.findall(unicodedata.normalize("NFKC", text or "").casefold())
    runs = (" ".join(found[start : start + words]) for start in range(len(found) - words + 1))
    digests = [hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def all_ngrams(texts: Iterable[str | None], words: int) -> Hashes:
    """Return the n-grams of all texts, ascending, each once."""
    found = [ngrams(text, words) for text in texts]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))


def share(own: Hashes, among: Hashes) -> float:
    """Return which share of n-grams is among others; 0 where there are none."""
    if not len(own) or not len(among):
        return 0.0
    places = np.minimum(np.searchsorted(among, own), len(among) - 1)
    return float((among[places] == own).mean())
