"""The match stages: ITM probability and ITC similarity of web texts and of synthetic texts.

They are two stages so that another captioner leaves the web texts' scores alone. Where both run
in one pass they share one matcher, which encodes each image once. The score stages are the same
for a second model, of which the cosine similarity alone is kept.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pyarrow as pa

from capfilt import schema
from capfilt.fingerprint import NOT_IDENTITY
from capfilt.models.protocols import Matcher, Pixels, framing_of
from capfilt.models.recipe import ModelRef, Precision
from capfilt.stage import Resource, Transform
from capfilt.stages.decoding import ImageTransform, decode_rows, rows_for, threads_for


@dataclass(frozen=True)
class _Match:
    """What both stages share. `itm_token`: `enc` as BLIP was trained, `cls` for comparison."""

    model: ModelRef
    itm_token: Literal["enc", "cls"] = "enc"
    precision: Precision = "fp32"
    device: str = field(default="cpu", metadata=NOT_IDENTITY)

    version = 2
    resource: ClassVar[Resource] = "model"

    @property
    def rows_per_call(self) -> int:
        """Rows wanted at a time."""
        return rows_for(self.device)

    def transform(self, run: Callable[[Matcher, pa.RecordBatch], pa.RecordBatch]) -> ImageTransform:
        """Load the matcher; returns `run` with it."""
        matcher = self.matcher()
        own = functools.partial(run, matcher)
        threads = threads_for(self.device)
        return ImageTransform(own, matcher.side, threads, framing_of(matcher))

    def matcher(self) -> Matcher:
        """Return the matcher of this recipe: one a process."""
        return _shared_matcher(self.model, self.itm_token, self.device, self.precision)


@dataclass(frozen=True)
class MatchWeb(_Match):
    """Score the web text of every row, and keep the image's ITC embedding."""

    name = "match_web"
    needs = ("image", "caption")
    adds = schema.MATCH_WEB

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Load the matcher, and yield the transform."""
        yield self.transform(match_web_batch)


@dataclass(frozen=True)
class MatchCaptions(_Match):
    """Score the synthetic texts of every row."""

    name = "match_captions"
    needs = ("image", "captions")
    adds = schema.MATCH_CAPTIONS

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Load the matcher, and yield the transform."""
        yield self.transform(match_captions_batch)


@dataclass(frozen=True)
class ScoreWeb(_Match):
    """Score the web text of every row by a second model's cosine similarity (`--scorer`)."""

    name = "score_web"
    version = 1
    needs = ("image", "caption")
    adds = schema.SCORE_WEB

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Load the scorer, and yield the transform."""
        yield self.transform(score_web_batch)


@dataclass(frozen=True)
class ScoreCaptions(_Match):
    """Score the synthetic texts of every row by a second model's cosine similarity."""

    name = "score_captions"
    version = 1
    needs = ("image", "captions")
    adds = schema.SCORE_CAPTIONS

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Load the scorer, and yield the transform."""
        yield self.transform(score_captions_batch)


def match_web_batch(matcher: Matcher, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Score each row's own web text; a row without an image, or without a text, gets null."""
    places, images, errors = _decoded(matcher, batch)
    captions = batch.column("caption").to_pylist()
    texts = [[captions[place]] if captions[place] else [] for place in places]
    itm: list[float | None] = [None] * batch.num_rows
    itc: list[float | None] = [None] * batch.num_rows
    embeddings: list[Sequence[float] | None] = [None] * batch.num_rows
    scored = zip(*matcher.match(images, texts), matcher.embed(images), strict=True)
    for place, (p, s, vector) in zip(places, scored, strict=True):
        itm[place], itc[place] = (_nulled(p)[0], _nulled(s)[0]) if p else (None, None)
        embeddings[place] = vector
    columns = [itm, itc, embeddings, errors]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema.MATCH_WEB, strict=True)]
    return pa.record_batch(arrays, schema=schema.MATCH_WEB)


def match_captions_batch(matcher: Matcher, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Score each row's synthetic texts; a row without them gets null."""
    places, images, _ = _decoded(matcher, batch)
    captions = batch.column("captions").to_pylist()
    texts = [captions[place] or [] for place in places]
    itm: list[list[float | None] | None] = [None] * batch.num_rows
    itc: list[list[float | None] | None] = [None] * batch.num_rows
    for place, p, s in zip(places, *matcher.match(images, texts), strict=True):
        itm[place], itc[place] = _nulled(p), _nulled(s)
    arrays = [pa.array(c, f.type) for c, f in zip([itm, itc], schema.MATCH_CAPTIONS, strict=True)]
    return pa.record_batch(arrays, schema=schema.MATCH_CAPTIONS)


def score_web_batch(scorer: Matcher, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return each web text's similarity; a row without an image, or without a text, gets null."""
    places, images, _ = _decoded(scorer, batch)
    captions = batch.column("caption").to_pylist()
    texts = [[captions[place]] if captions[place] else [] for place in places]
    scores: list[float | None] = [None] * batch.num_rows
    for place, own in zip(places, scorer.match(images, texts)[1], strict=True):
        scores[place] = _nulled(own)[0] if own else None
    return pa.record_batch([pa.array(scores, pa.float32())], schema=schema.SCORE_WEB)


def score_captions_batch(scorer: Matcher, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return each row's synthetic texts' similarities; a row without them gets null."""
    places, images, _ = _decoded(scorer, batch)
    captions = batch.column("captions").to_pylist()
    texts = [captions[place] or [] for place in places]
    scores: list[list[float | None] | None] = [None] * batch.num_rows
    for place, own in zip(places, scorer.match(images, texts)[1], strict=True):
        scores[place] = _nulled(own)
    column = pa.array(scores, pa.list_(pa.float32()))
    return pa.record_batch([column], schema=schema.SCORE_CAPTIONS)


def _decoded(
    matcher: Matcher, batch: pa.RecordBatch
) -> tuple[list[int], list[Pixels], list[str | None]]:
    return decode_rows(batch.column("image"), matcher.side, framing_of(matcher))


def _nulled(scores: list[float]) -> list[float | None]:
    return [None if math.isnan(score) else score for score in scores]


@functools.lru_cache(maxsize=2)  # a matcher and a scorer
def _shared_matcher(model: ModelRef, itm_token: str, device: str, precision: Precision) -> Matcher:
    from capfilt.models.opening import open_matcher

    return open_matcher(model, itm_token, device, precision)
