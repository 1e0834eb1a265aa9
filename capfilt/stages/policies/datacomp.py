"""DataComp's basic filters: a cut on a score, on the text's length and on the image's shape."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import InputError
from capfilt.option import POLICY, check_options, option
from capfilt.stages.policies.reasons import ALL_REASONS
from capfilt.stages.policies.texts import (
    NO_TEXT,
    Mask,
    Score,
    Texts,
    columns_of,
    decided,
    joined,
    one_batch,
    read_texts,
    said_once,
    text_order,
    top_cut,
)


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
        None, "Keep texts that score at least this much", panel=POLICY, at_least=-1, at_most=1
    )
    fraction: float | None = option(
        0.3, "Keep this share of all texts, the best of them", panel=POLICY, above=0, at_most=1
    )
    score: Score = option("similarity", "The score that ranks texts", panel=POLICY)
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
            cut = top_cut(joined([texts.scores[0] for texts, *_ in parts]), self.fraction)
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


_SIDES = ("original_width", "original_height")
