"""How well scores tell true texts from false ones."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Judgement:
    """A filter at a threshold, shares in [0, 1].

    `auc`: the chance that a true text scores above a false one. `precision`: true among those
    kept. `recall`: kept among those true. `noise_before`, `noise_after`: false texts in the stream,
    and among those kept.
    """

    texts: int
    auc: float
    precision: float
    recall: float
    noise_before: float
    noise_after: float

    def plain(self) -> dict[str, float | None]:
        """Return the figures by name; None is no number, which JSON has none for."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Stream:
    """The texts of one origin. `noise`: the share that the filter rejects (BLIP, Table 2).

    `false`, `false_kept`: shares that are false, of all and of those kept; None where unknown.
    """

    texts: int
    noise: float
    false: float | None = None
    false_kept: float | None = None

    def plain(self) -> dict[str, float | None]:
        """Return the figures by name."""
        return asdict(self)


def streams_of(
    scores: npt.NDArray[np.float64],
    origins: Sequence[str],
    truth: npt.NDArray[np.bool_] | None,
    threshold: float = 0.5,
) -> dict[str, Stream]:
    """Return the noise of each origin: scores (n,), origins (n,), truth (n,) where it is known."""
    found: dict[str, Stream] = {}
    names = np.array(origins)
    for name in sorted(set(origins)):
        own = names == name
        noise = float((scores[own] < threshold).mean())
        told = None if truth is None else judge(scores[own], truth[own], threshold)
        false, after = (None, None) if told is None else (told.noise_before, told.noise_after)
        found[name] = Stream(int(own.sum()), noise, false, after)
    return found


def judge(
    scores: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_], threshold: float = 0.5
) -> Judgement:
    """Judge scores (n,) against what is true (n,)."""
    kept = scores >= threshold
    precision = float(truth[kept].mean()) if kept.any() else 0.0
    recall = float(kept[truth].mean()) if truth.any() else 0.0
    noise = float((~truth).mean()) if len(truth) else 0.0
    after = 1.0 - precision if kept.any() else 0.0
    return Judgement(len(truth), roc_auc(scores, truth), precision, recall, noise, after)


def roc_auc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
    """Return the chance that a true pair scores above a false one; a tie counts as half.

    NaN where one of the two classes is empty. (Mann-Whitney's U, divided by the pairs.)
    """
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2  # ranks from 1; equals share their mean
    above = mean_ranks[inverse][labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
