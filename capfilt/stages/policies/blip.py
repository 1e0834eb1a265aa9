"""The select stage: which texts of which rows are kept, and why. Pure arithmetic over columns.

Models score every text, kept or not, so another threshold runs this stage and the export alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.option import POLICY, option
from capfilt.stages.policies.reasons import REASONS, is_word, reasons_of
from capfilt.stages.policies.rowwise import RowPolicy
from capfilt.stages.policies.texts import folded_codes

# Whose texts are looked at; the others are as good as missing.
Origins = Literal["both", "web", "synthetic"]


@dataclass(frozen=True)
class Select(RowPolicy):
    """Keep each text, web or synthetic, whose itm_score is at least `threshold` (policy `blip`).

    The texts of an image are judged each alone; both, one or none may survive, and an image goes
    only where none does (BLIP section 3.3, and the authors' 0.5). Scores are compared as float32.
    A synthetic text that says the same as the row's kept web text, or as an earlier kept one, is
    kept once. With `dedup`, rows that have a `dup_of` keep nothing.

    `origins` "web" is the filter without the captioner (Table 1's F). Every text that has a score
    reaches a `threshold` of 0: then "both" is the captioner without the filter (C).
    """

    label = "blip"

    threshold: float = option(
        0.5, "Keep texts that score at least this much", panel=POLICY, at_least=0, at_most=1
    )
    dedup: bool = True
    origins: Origins = option(
        "both", "Keep texts of the web, synthetic ones, or both", panel=POLICY
    )

    name = "select"

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that it reads; `dup_of` only where duplicates are looked for."""
        texts = ("caption", "captions", "itm_score", "caption_itm_scores")
        faults = ("status", "caption_error", "match_error")
        return (*texts, *faults, *(("dup_of",) if self.dedup else ()))

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        usable = self._usable(batch)
        web = _at_least(batch.column("itm_score"), self.threshold) & usable
        web &= self.origins != "synthetic"
        synthetic, offsets = self._keep_synthetic(batch, web, usable)
        any_synthetic = _any_in_list(synthetic, offsets)
        reasons = reasons_of(batch, self.dedup, web, any_synthetic)
        return pa.record_batch(
            [
                pa.array(web),
                pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(synthetic)),
                pa.DictionaryArray.from_arrays(
                    pa.array(reasons, pa.int8()), pa.array(REASONS, pa.string())
                ),
            ],
            schema=schema.SELECT,
        )

    def _usable(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        usable = is_word(batch.column("status"), schema.SUCCESS)
        if self.dedup:
            usable &= batch.column("dup_of").is_null().to_numpy(zero_copy_only=False)
        return usable

    def _keep_synthetic(
        self, batch: pa.RecordBatch, web: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Return (keep for every synthetic text, offsets of the rows in it)."""
        lengths = _numbers(pc.list_value_length(batch.column("captions")), 0).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        row = np.repeat(np.arange(batch.num_rows), lengths)
        scores = batch.column("caption_itm_scores").flatten()
        keep = _at_least(scores, self.threshold) & usable[row]
        keep &= self.origins != "web"
        texts = batch.column("captions").flatten()
        return keep & ~_repeats(batch.column("caption"), texts, row, web, keep), offsets


def _repeats(
    web_texts: pa.Array,
    texts: pa.Array,
    row: npt.NDArray[np.int64],
    web: npt.NDArray[np.bool_],
    keep: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Say which synthetic texts a kept text of the same row, before them, says already.

    Case and surrounding space do not count. Texts become numbers by dictionary encoding, so that
    rows are compared without a loop.
    """
    web_codes, own = folded_codes(web_texts, texts)
    repeats: npt.NDArray[np.bool_] = web[row] & (web_codes[row] == own)
    # Among the kept texts, the first of each (row, text) stays: a stable sort brings them together.
    kept = np.flatnonzero(keep & ~repeats)
    order = kept[np.lexsort((kept, own[kept], row[kept]))]
    same = (row[order][1:] == row[order][:-1]) & (own[order][1:] == own[order][:-1])
    repeats[order[1:][same]] = True
    return repeats


def _at_least(scores: pa.Array, threshold: float) -> npt.NDArray[np.bool_]:
    """Say which scores are at least `threshold`, as float32; null and NaN are not."""
    enough: npt.NDArray[np.bool_] = _numbers(scores, np.nan) >= np.float32(threshold)
    return enough


def _numbers(values: pa.Array, null: float) -> npt.NDArray[np.float32]:
    numbers: npt.NDArray[np.float32] = values.fill_null(null).to_numpy(zero_copy_only=False)
    return numbers


def _any_in_list(
    values: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    counted = np.concatenate([[0], np.cumsum(values)])
    some: npt.NDArray[np.bool_] = counted[offsets[1:]] > counted[offsets[:-1]]
    return some
