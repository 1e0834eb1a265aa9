"""A policy of your own: keep texts of at least so many words that the filter does not refuse.

capfilt run urls.csv --run DIR --policy examples/own_policy.py:LongTexts
capfilt status DIR --pipeline examples/own_policy.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capfilt import TextPolicy
from capfilt.stages.policies.texts import Mask, Texts


@dataclass(frozen=True)
class LongTexts(TextPolicy):
    """Keep what has `words` words and an ITM probability of at least `threshold`."""

    words: int = 5
    threshold: float = 0.2

    judged = ("itm",)

    def keeps(self, texts: Texts, said: Sequence[str | None]) -> Mask:
        """Say of each text whether it is kept; NaN, the score of a failed row, is below all."""
        long = np.array([len((text or "").split()) >= self.words for text in said], bool)
        return long & (texts.scores[0] >= np.float32(self.threshold))
