"""The match stages: ITM probability and ITC similarity of web texts and of synthetic texts.

They are two stages so that another captioner leaves the web texts' scores alone. Where both run
in one pass they share one matcher, which encodes each image once. The score stages are the same
for a second model, of which the cosine similarity alone is kept.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from capfilt import schema
from capfilt.errors import ModelError
from capfilt.fingerprint import ADDED_LATER, NOT_IDENTITY
from capfilt.models.protocols import Matcher, framing_of
from capfilt.models.recipe import FilterRecipe, ModelRef, Precision
from capfilt.models.shared import shared
from capfilt.stage import Resource, Transform
from capfilt.stages.decoding import Decoded, ImageTransform, decoded_for, rows_for

_Scores = list[float | None]


@dataclass(frozen=True)
class _Match:
    """What the stages share. `itm_token`: `enc` as BLIP was trained, `cls` for comparison."""

    model: ModelRef
    itm_token: Literal["enc", "cls"] = "enc"
    precision: Precision = "fp32"
    device: str = field(default="cpu", metadata=NOT_IDENTITY)
    recipe: FilterRecipe | None = field(
        default=None, metadata=ADDED_LATER
    )  # a matcher of one's own

    version = 2
    resource: ClassVar[Resource] = "model"

    @property
    def rows_per_call(self) -> int:
        """Rows wanted at a time."""
        return rows_for(self.device)

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Load the matcher, or take the one that another stage has open; yield the transform."""
        key = (self.model, self.itm_token, self.device, self.precision, self.recipe)
        with shared(key, self._load) as matcher:
            run = functools.partial(self.score, matcher)
            yield ImageTransform(run, matcher.side, framing_of(matcher))

    def score(self, matcher: Matcher, batch: pa.RecordBatch, images: Decoded) -> pa.RecordBatch:
        """Return the added columns of a batch whose pictures are `images`."""
        raise NotImplementedError

    def _load(self) -> Matcher:
        own = self.recipe or FilterRecipe(self.model, self.itm_token, self.precision)
        return own.matcher(self.device)


@dataclass(frozen=True)
class MatchWeb(_Match):
    """Score the web text of every row, and keep the image's ITC embedding."""

    name = "match_web"
    needs = ("image", "caption")
    adds = schema.MATCH_WEB

    def score(self, matcher: Matcher, batch: pa.RecordBatch, images: Decoded) -> pa.RecordBatch:
        """Return the web text's scores; see `match_web_batch`."""
        return match_web_batch(matcher, batch, images)


@dataclass(frozen=True)
class MatchCaptions(_Match):
    """Score the synthetic texts of every row."""

    name = "match_captions"
    needs = ("image", "captions")
    adds = schema.MATCH_CAPTIONS

    def score(self, matcher: Matcher, batch: pa.RecordBatch, images: Decoded) -> pa.RecordBatch:
        """Return the synthetic texts' scores; see `match_captions_batch`."""
        return match_captions_batch(matcher, batch, images)


@dataclass(frozen=True)
class ScoreWeb(_Match):
    """Score the web text of every row by a second model's cosine similarity (`--scorer`)."""

    name = "score_web"
    version = 1
    needs = ("image", "caption")
    adds = schema.SCORE_WEB

    def score(self, matcher: Matcher, batch: pa.RecordBatch, images: Decoded) -> pa.RecordBatch:
        """Return the web text's similarity; see `score_web_batch`."""
        return score_web_batch(matcher, batch, images)


@dataclass(frozen=True)
class ScoreCaptions(_Match):
    """Score the synthetic texts of every row by a second model's cosine similarity."""

    name = "score_captions"
    version = 1
    needs = ("image", "captions")
    adds = schema.SCORE_CAPTIONS

    def score(self, matcher: Matcher, batch: pa.RecordBatch, images: Decoded) -> pa.RecordBatch:
        """Return the synthetic texts' similarities; see `score_captions_batch`."""
        return score_captions_batch(matcher, batch, images)


def match_web_batch(
    matcher: Matcher, batch: pa.RecordBatch, images: Decoded | None = None
) -> pa.RecordBatch:
    """Score each row's own web text; a row without an image, or without a text, gets null."""
    found = decoded_for(matcher, batch) if images is None else images
    itm, itc = matcher.match(found.images, _web_texts(batch, found))
    embeddings: list[Sequence[float] | None] = [None] * batch.num_rows
    vectors = matcher.embed(found.images)
    if not np.isfinite(vectors).all():
        raise ModelError(
            "the matcher's image embeddings are no numbers: its weights are damaged, or overflow "
            "at this precision; give another checkpoint, or --precision fp32"
        )
    for place, vector in zip(found.places, vectors, strict=True):
        embeddings[place] = vector
    columns = [_first(batch, found, itm), _first(batch, found, itc), embeddings, found.errors]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema.MATCH_WEB, strict=True)]
    return pa.record_batch(arrays, schema=schema.MATCH_WEB)


def match_captions_batch(
    matcher: Matcher, batch: pa.RecordBatch, images: Decoded | None = None
) -> pa.RecordBatch:
    """Score each row's synthetic texts; a row without them gets null."""
    found = decoded_for(matcher, batch) if images is None else images
    scores = matcher.match(found.images, _captions(batch, found))
    columns = [_every(batch, found, own) for own in scores]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema.MATCH_CAPTIONS, strict=True)]
    return pa.record_batch(arrays, schema=schema.MATCH_CAPTIONS)


def score_web_batch(
    scorer: Matcher, batch: pa.RecordBatch, images: Decoded | None = None
) -> pa.RecordBatch:
    """Return each web text's similarity; a row without an image, or without a text, gets null."""
    found = decoded_for(scorer, batch) if images is None else images
    _, similarity = scorer.match(found.images, _web_texts(batch, found))
    column = pa.array(_first(batch, found, similarity), pa.float32())
    return pa.record_batch([column], schema=schema.SCORE_WEB)


def score_captions_batch(
    scorer: Matcher, batch: pa.RecordBatch, images: Decoded | None = None
) -> pa.RecordBatch:
    """Return each row's synthetic texts' similarities; a row without them gets null."""
    found = decoded_for(scorer, batch) if images is None else images
    _, similarity = scorer.match(found.images, _captions(batch, found))
    column = pa.array(_every(batch, found, similarity), pa.list_(pa.float32()))
    return pa.record_batch([column], schema=schema.SCORE_CAPTIONS)


def _web_texts(batch: pa.RecordBatch, found: Decoded) -> list[list[str]]:
    texts = batch.column("caption").to_pylist()
    return [[texts[place]] if texts[place] else [] for place in found.places]


def _captions(batch: pa.RecordBatch, found: Decoded) -> list[list[str]]:
    texts = batch.column("captions").to_pylist()
    return [texts[place] or [] for place in found.places]


def _first(batch: pa.RecordBatch, found: Decoded, scores: list[list[float]]) -> _Scores:
    """Return the one score of each row, null where it has none."""
    column: _Scores = [None] * batch.num_rows
    for place, own in zip(found.places, scores, strict=True):
        column[place] = _nulled(own)[0] if own else None
    return column


def _every(
    batch: pa.RecordBatch, found: Decoded, scores: list[list[float]]
) -> list[_Scores | None]:
    """Return all scores of each row, null where it has no image."""
    column: list[_Scores | None] = [None] * batch.num_rows
    for place, own in zip(found.places, scores, strict=True):
        column[place] = _nulled(own)
    return column


def _nulled(scores: list[float]) -> _Scores:
    return [None if math.isnan(score) else score for score in scores]
