"""Policies of the field besides BLIP's own: which texts are kept, over stored scores alone.

Each is a frozen stage that adds the columns of `schema.SELECT`. Those that rank the texts of a row
work on each shard alone; those with a share of all texts, or an average over them, are barriers.
Near-duplicates and failed rows keep nothing under any policy, and of texts of a row that say the
same one is kept.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import InputError
from capfilt.option import POLICY, check_options, option
from capfilt.stage import Resource, Transform
from capfilt.stages.policies.blip import ALL_REASONS, Select
from capfilt.stages.policies.raw import RawWeb
from capfilt.stages.policies.texts import (
    NO_TEXT,
    Mask,
    Score,
    Scores,
    Texts,
    columns_of,
    decided,
    one_batch,
    ranks,
    read_texts,
    said_once,
    text_order,
    top_cut,
)

PolicyName = Literal["blip", "blip2", "laion-coco", "nguyen", "datacomp", "fusion", "raw"]


@dataclass(frozen=True)
class TopRanked:
    """Rank a row's web text and synthetic texts together, keep the best (policy `blip2`).

    BLIP-2 (2301.12597, section 3.4): the web text and ten synthetic ones by CLIP similarity, the
    best two are kept. Ties stand in their order, the web text first.
    """

    label = "blip2"

    keep: int = option(2, "Texts kept an image", flag="keep_texts", panel=POLICY, at_least=1)
    score: Score = option("similarity", "What texts are ranked by", panel=POLICY)
    dedup: bool = True

    name = "select_top"
    version = 1
    resource: ClassVar[Resource] = "cpu"
    rows_per_call = None
    adds = schema.SELECT

    def __post_init__(self) -> None:
        """Check the range."""
        check_options(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return columns_of([self.score], self.dedup)

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Yield the transform; there is nothing to load."""
        yield self._decide

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = read_texts(batch, [self.score], self.dedup)
        places = ranks(texts, texts.scores[0], np.ones_like(texts.web))
        return decided(texts, places < self.keep)


@dataclass(frozen=True)
class Reranked:
    """Of the synthetic texts the best `shortlist` by one score, of these the best by another.

    LAION-COCO (laion.ai/blog/laion-coco): of 40 texts the best 5 by CLIP ViT-L/14, of these the
    best by a second CLIP. Web texts are not kept. `first` is the scorer's, `second` the matcher's,
    which may be a CLIP too.
    """

    label = "laion-coco"

    shortlist: int = 5
    keep: int = option(1, "Texts kept an image", flag="keep_texts", panel=POLICY, at_least=1)
    first: Score = "similarity"
    second: Score = "itc"
    dedup: bool = True

    name = "select_reranked"
    version = 1
    resource: ClassVar[Resource] = "cpu"
    rows_per_call = None
    adds = schema.SELECT

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)
        if self.shortlist < self.keep:
            raise InputError(f"{self.keep} texts of a shortlist of {self.shortlist}")
        if self.first == self.second:
            raise InputError(f"{self.first} for the shortlist and the choice; give two scores")

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return columns_of([self.first, self.second], self.dedup)

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Yield the transform; there is nothing to load."""
        yield self._decide

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = read_texts(batch, [self.first, self.second], self.dedup)
        listed = ranks(texts, texts.scores[0], ~texts.web) < self.shortlist
        return decided(texts, ranks(texts, texts.scores[1], listed) < self.keep)


@dataclass(frozen=True)
class WebFirst:
    """The web text where it is in the top `fraction` of all, otherwise the best synthetic text.

    Nguyen et al. (2307.10350, section 3): the synthetic text must reach the score that the last of
    the kept web texts has. They have one synthetic text an image; of several the best is taken.
    """

    label = "nguyen"

    fraction: float = option(0.3, "The best share of all texts", panel=POLICY, above=0, at_most=1)
    score: Score = option("similarity", "What texts are ranked by", panel=POLICY)
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
        cut = top_cut(_joined([part.scores[0][part.web] for part in parts]), self.fraction)
        for part in parts:
            yield decided(part, _web_first(part, cut))


@dataclass(frozen=True)
class BasicFilter:
    """Each text alone: a score, and the basic filters of DataComp (policy `datacomp`).

    DataComp (2304.14108, section 3.4): a score of at least `threshold`, or among the top
    `fraction` of all texts, never both; captions of more than 2 words and more than 5 characters;
    images whose shorter side has at least 200 pixels, as fetched, and whose sides are at most 1:3.
    The share is of all texts, before the other filters, as theirs is. Its language filter (English,
    by fastText) is not here.
    """

    label = "datacomp"

    threshold: float | None = option(
        None, "Least score of a kept text", panel=POLICY, at_least=-1, at_most=1
    )
    fraction: float | None = option(
        0.3, "The best share of all texts", panel=POLICY, above=0, at_most=1
    )
    score: Score = option("similarity", "What texts are ranked by", panel=POLICY)
    more_words: int = 2
    more_characters: int = 5
    min_side: int = 200
    max_aspect: float = 3.0
    dedup: bool = True

    name = "select_basic"
    version = 1
    adds = schema.SELECT

    def __post_init__(self) -> None:
        """Check that it has one cut, and its range."""
        if (self.threshold is None) == (self.fraction is None):
            raise InputError("a threshold or a fraction, never both: give one")
        check_options(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return (*columns_of([self.score], self.dedup), *_SIDES)

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        """Decide every row; see `stage.BarrierStage`. Keeps about 19 bytes a text."""
        parts = [self._part(one_batch(table)) for table in shards]
        cut = np.float32(self.threshold or 0.0)
        if self.fraction is not None:
            cut = top_cut(_joined([texts.scores[0] for texts, *_ in parts]), self.fraction)
        for texts, long, fault in parts:
            good = texts.scores[0] >= cut
            usable = fault[texts.row] == NO_TEXT
            short = np.bincount(texts.row[good & ~long & usable], minlength=len(fault)) > 0
            reasons = np.where(short, np.int8(ALL_REASONS.index("short_text")), fault)
            yield decided(texts, said_once(texts, good & long & usable), reasons)

    def _part(self, batch: pa.RecordBatch) -> tuple[Texts, Mask, npt.NDArray[np.int8]]:
        """Return (texts, which are long enough, each row's fault with those of its image)."""
        texts = read_texts(batch, [self.score], self.dedup)
        return texts, self._long(batch), self._image_faults(batch, texts)

    def _long(self, batch: pa.RecordBatch) -> Mask:
        web, own = batch.column("caption"), batch.column("captions").flatten()
        said = pc.utf8_trim_whitespace(pa.concat_arrays([web, own.cast(web.type)]))
        words = pc.greater(pc.count_substring_regex(said, r"\S+"), self.more_words)
        long = pc.and_(words, pc.greater(pc.utf8_length(said), self.more_characters))
        enough: Mask = long.fill_null(False).to_numpy(zero_copy_only=False)[text_order(batch)]
        return enough

    def _image_faults(self, batch: pa.RecordBatch, texts: Texts) -> npt.NDArray[np.int8]:
        width, height = (
            batch.column(name).fill_null(0).to_numpy(zero_copy_only=False) for name in _SIDES
        )
        shorter, longer = np.minimum(width, height), np.maximum(width, height)
        fault = np.array(texts.fault)
        usable = fault == NO_TEXT
        fault[usable & (longer > self.max_aspect * shorter)] = ALL_REASONS.index("extreme_aspect")
        fault[usable & (shorter < self.min_side)] = ALL_REASONS.index("small_image")
        return fault


@dataclass(frozen=True)
class Fused:
    """Each text alone: the top `fraction` of all by a weighted sum of standardised scores.

    A score is standardised by its mean and deviation over all texts of the run, so that weights
    compare scores of different spreads. A weight of 0 leaves a score out; a text that lacks one of
    the others is not kept.
    """

    label = "fusion"

    fraction: float = option(0.3, "The best share of all texts", panel=POLICY, above=0, at_most=1)
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
        columns = [_joined([part.scores[i] for part in parts]) for i in range(len(scores))]
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


Policy = Select | TopRanked | Reranked | WebFirst | BasicFilter | Fused | RawWeb
_SIDES = ("original_width", "original_height")


def preset(name: PolicyName) -> Policy:
    """Return a policy as its authors have it."""
    match name:
        case "blip":
            return Select()
        case "blip2":
            return TopRanked()
        case "laion-coco":
            return Reranked()
        case "nguyen":
            return WebFirst()
        case "datacomp":
            return BasicFilter()
        case "fusion":
            return Fused()
        case "raw":
            return RawWeb()


def itm_threshold(policy: Policy) -> float | None:
    """Return the ITM probability from which a text is kept, where the policy has one."""
    return policy.threshold if isinstance(policy, Select) else None


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


def _joined(parts: list[Scores]) -> Scores:
    return np.concatenate([np.zeros(0, np.float32), *parts])
