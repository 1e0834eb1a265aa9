"""The raw web as a policy: every text that came with an image, unseen by any model.

That is what a first model is pre-trained on, before there is a captioner or a filter (BLIP, section
3.3), and what a cleaned set is compared with (Table 1, first row).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.stage import Resource, Transform
from capfilt.stages.policies.rowwise import RowPolicy
from capfilt.stages.policies.texts import decided, read_texts, usable


@dataclass(frozen=True)
class Unjudged:
    """Stands where captioner and filter would: their columns, without a text or a score."""

    name = "unjudged"
    version = 1
    resource: ClassVar[Resource] = "cpu"
    rows_per_call = None
    needs = ("status",)
    adds = pa.schema([*schema.CAPTION, *schema.MATCH_WEB, *schema.MATCH_CAPTIONS])

    @contextlib.contextmanager
    def open(self) -> Iterator[Transform]:
        """Yield the transform; there is nothing to load."""
        yield self._nothing

    def _nothing(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = [pa.nulls(batch.num_rows, field.type) for field in self.adds]
        return pa.record_batch(columns, schema=self.adds)


@dataclass(frozen=True)
class RawWeb(RowPolicy):
    """Keep every web text that is not blank (policy `raw`)."""

    label = "raw"

    dedup: bool = True

    name = "select_raw"

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        failed = ("status", "caption_error", "match_error")
        return ("caption", "captions", *failed, *(("dup_of",) if self.dedup else ()))

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = read_texts(batch, [], self.dedup)
        said = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(batch.column("caption"))), 0)
        there = np.asarray(said.fill_null(False).to_numpy(zero_copy_only=False), bool)
        return decided(texts, there[texts.row] & texts.web & usable(texts))
