"""Policies that rank the texts of an image: they work on each shard alone."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from capfilt.errors import InputError
from capfilt.option import POLICY, option
from capfilt.stages.policies.rowwise import RowPolicy
from capfilt.stages.policies.texts import (
    Score,
    columns_of,
    decided,
    ranks,
    read_texts,
)


@dataclass(frozen=True)
class TopRanked(RowPolicy):
    """Rank a row's web text and synthetic texts together, keep the best (policy `blip2`).

    BLIP-2 (2301.12597, section 3.4): the web text and ten synthetic ones by CLIP similarity, the
    best two are kept. Ties stand in their order, the web text first.
    """

    label = "blip2"

    keep: int = option(
        2, "Keep at most so many texts of an image", flag="keep_texts", panel=POLICY, at_least=1
    )
    score: Score = option("similarity", "The score that ranks texts", panel=POLICY)
    dedup: bool = True

    name = "select_top"

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return columns_of([self.score], self.dedup)

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = read_texts(batch, [self.score], self.dedup)
        places = ranks(texts, texts.scores[0], np.ones_like(texts.web))
        return decided(texts, places < self.keep)


@dataclass(frozen=True)
class Reranked(RowPolicy):
    """Of the synthetic texts the best `shortlist` by one score, of these the best by another.

    LAION-COCO (laion.ai/blog/laion-coco): of 40 texts the best 5 by CLIP ViT-L/14, of these the
    best by a second CLIP. Web texts are not kept. `first` is the scorer's, `second` the matcher's,
    which may be a CLIP too.
    """

    label = "laion-coco"

    shortlist: int = 5
    keep: int = option(
        1, "Keep at most so many texts of an image", flag="keep_texts", panel=POLICY, at_least=1
    )
    first: Score = "similarity"
    second: Score = "itc"
    dedup: bool = True

    name = "select_reranked"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.shortlist < self.keep:
            raise InputError(f"{self.keep} texts of a shortlist of {self.shortlist}")
        if self.first == self.second:
            raise InputError(f"{self.first} for the shortlist and the choice; give two scores")

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return columns_of([self.first, self.second], self.dedup)

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = read_texts(batch, [self.first, self.second], self.dedup)
        listed = ranks(texts, texts.scores[0], ~texts.web) < self.shortlist
        return decided(texts, ranks(texts, texts.scores[1], listed) < self.keep)
