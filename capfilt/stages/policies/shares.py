"""Policies that keep a share of all texts of a run; they are barriers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capfilt import schema
from capfilt.errors import InputError
from capfilt.option import POLICY, check_options, option
from capfilt.stages.policies.texts import (
    Mask,
    Score,
    Scores,
    Texts,
    columns_of,
    decided,
    joined,
    one_batch,
    ranks,
    read_texts,
    said_once,
    top_cut,
)


@dataclass(frozen=True)
class WebFirst:
    """The web text where it is in the top `fraction` of all, otherwise the best synthetic text.

    Nguyen et al. (2307.10350, section 3): the synthetic text must reach the score that the last of
    the kept web texts has. They have one synthetic text an image; of several the best is taken.
    """

    label = "nguyen"

    fraction: float = option(
        0.3, "Keep this share of all texts, the best of them", panel=POLICY, above=0, at_most=1
    )
    score: Score = option("similarity", "The score that ranks texts", panel=POLICY)
    dedup: bool = True

    name = "select_web_first"
    version = 1
    adds = schema.SELECT

    def __post_init__(self) -> None:
        """Check the range."""
        check_options(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return columns_of([self.score], self.dedup)

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Decide every row; see `stage.BarrierStage`. Keeps about 17 bytes a text."""
        parts = [read_texts(one_batch(table), [self.score], self.dedup) for table in shards]
        cut = top_cut(joined([part.scores[0][part.web] for part in parts]), self.fraction)
        for part in parts:
            yield decided(part, _web_first(part, cut))


@dataclass(frozen=True)
class Fused:
    """Each text alone: the top `fraction` of all by a weighted sum of standardised scores.

    A score is standardised by its mean and deviation over all texts of the run, so that weights
    compare scores of different spreads. A weight of 0 leaves a score out; a text that lacks one of
    the others is not kept.
    """

    label = "fusion"

    fraction: float = option(
        0.3, "Keep this share of all texts, the best of them", panel=POLICY, above=0, at_most=1
    )
    itm: float = 1.0
    itc: float = 0.0
    similarity: float = 1.0
    dedup: bool = True

    name = "select_fused"
    version = 1
    adds = schema.SELECT

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)
        weights = (self.itm, self.itc, self.similarity)
        if not all(0.0 <= weight < np.inf for weight in weights) or not any(weights):
            raise InputError(f"weights {weights}: give numbers from 0, and one above it")

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return columns_of([score for score, _ in self._weights()], self.dedup)

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Decide every row; see `stage.BarrierStage`. Keeps about 25 bytes a text."""
        scores = [score for score, _ in self._weights()]
        parts = [read_texts(one_batch(table), scores, self.dedup) for table in shards]
        columns = [joined([part.scores[i] for part in parts]) for i in range(len(scores))]
        weighted = zip([weight for _, weight in self._weights()], columns, strict=True)
        fused = sum(
            (weight * _standardised(column) for weight, column in weighted),
            start=np.zeros(len(columns[0])),
        ).astype(np.float32)
        keep = fused >= top_cut(fused, self.fraction)
        ends = np.cumsum([0, *(len(part.row) for part in parts)])
        for part, start, end in zip(parts, ends, ends[1:], strict=False):
            yield decided(part, said_once(part, keep[start:end]))

    def _weights(self) -> list[tuple[Score, float]]:
        weights: tuple[tuple[Score, float], ...] = (
            ("itm", self.itm),
            ("itc", self.itc),
            ("similarity", self.similarity),
        )
        return [(score, weight) for score, weight in weights if weight]


def _web_first(texts: Texts, cut: np.float32) -> Mask:
    good = texts.scores[0] >= cut
    web = good & texts.web
    without = ~web[texts.web][texts.row]  # every row has one place for a web text
    keep: Mask = web | (ranks(texts, texts.scores[0], good & ~texts.web & without) < 1)
    return keep


def _standardised(scores: Scores) -> npt.NDArray[np.float64]:
    """Return (score - mean) / deviation in double precision; 0 where all are equal."""
    wide = scores.astype(np.float64)
    there = wide[~np.isnan(wide)]
    if not len(there):
        return wide
    spread = there.std()
    result: npt.NDArray[np.float64] = (wide - there.mean()) / (spread if spread > 0 else 1.0)
    return result
