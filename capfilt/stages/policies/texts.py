"""The texts of a shard as numbers, and the arithmetic that the policies share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.stages.policies.reasons import ALL_REASONS, faults

# Which model's judgement: the matcher's ITM probability or ITC cosine, or the scorer's cosine.
Score = Literal["itm", "itc", "similarity"]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float32]

SCORE_COLUMNS: Final[dict[Score, tuple[str, str]]] = {
    "itm": ("itm_score", "caption_itm_scores"),
    "itc": ("itc_score", "caption_itc_scores"),
    "similarity": ("similarity", "caption_similarities"),
}
NO_TEXT: Final = ALL_REASONS.index("no_text_kept")
_KEPT: Final = tuple(
    ALL_REASONS.index(reason) for reason in ("kept_web", "kept_synthetic", "kept_both")
)


@dataclass(frozen=True, slots=True)
class Texts:
    """All T texts of R rows: those of a row side by side, the web's first (also where it is null).

    `fault` (R,): place in `ALL_REASONS` of why a row can keep nothing, or that of `no_text_kept`.
    `row`, `web`, `said` (T,): the row, whether it is the web's, and a number that is equal for
    texts of a shard that say the same. `scores`: one (T,) each, NaN where there is none or the row
    can keep nothing.
    """

    fault: npt.NDArray[np.int8]
    row: npt.NDArray[np.int32]
    web: Mask
    said: npt.NDArray[np.int32]
    scores: tuple[Scores, ...]


def columns_of(scores: Sequence[Score], dedup: bool) -> tuple[str, ...]:
    """Return the columns that `read_texts` reads."""
    judged = [column for score in scores for column in SCORE_COLUMNS[score]]
    failed = ("status", "caption_error", "match_error", *(("dup_of",) if dedup else ()))
    return ("caption", "captions", *judged, *failed)


def read_texts(batch: pa.RecordBatch, scores: Sequence[Score], dedup: bool) -> Texts:
    """Return the texts of a batch with these scores."""
    lengths = _lengths(batch)
    row = np.concatenate([np.arange(batch.num_rows), np.repeat(np.arange(len(lengths)), lengths)])
    order = text_order(batch)
    codes = folded_codes(batch.column("caption"), batch.column("captions").flatten())
    fault = faults(batch, dedup)
    unusable = fault[row[order]] != NO_TEXT
    return Texts(
        fault=fault,
        row=row[order].astype(np.int32),
        web=order < batch.num_rows,
        said=np.concatenate(codes)[order].astype(np.int32),
        scores=tuple(
            np.where(unusable, np.float32(np.nan), _scores(batch, score)[order]) for score in scores
        ),
    )


def usable(texts: Texts) -> Mask:
    """Say of each text whether its row can keep anything."""
    able: Mask = (texts.fault == NO_TEXT)[texts.row]
    return able


def text_order(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return the order that brings (web texts, all synthetic texts) together row by row."""
    lengths = _lengths(batch)
    row = np.concatenate([np.arange(len(lengths)), np.repeat(np.arange(len(lengths)), lengths)])
    return np.argsort(row, kind="stable")


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table of any number of chunks as one batch."""
    columns = [column.combine_chunks() for column in table.columns]
    return pa.record_batch(columns, schema=table.schema)


def ranks(texts: Texts, score: Scores, among: Mask) -> npt.NDArray[np.int64]:
    """Return each text's place among its row's texts, the best 0; ties stand in their order.

    Only texts of `among` with a score have a place; one that says the same as a better one has
    none. The others get the largest number there is.
    """
    judged = np.flatnonzero(among & ~np.isnan(score))
    order = judged[np.lexsort((judged, -score[judged], texts.row[judged]))]
    order = order[_first_said(texts, order)]
    row = texts.row[order]
    starts = np.searchsorted(row, row)  # rows ascend in `order`
    places = np.full(len(score), np.iinfo(np.int64).max)
    places[order] = np.arange(len(order)) - starts
    return places


def said_once(texts: Texts, keep: Mask) -> Mask:
    """Keep of the texts of a row that say the same only the first."""
    kept = np.flatnonzero(keep)
    once = np.zeros_like(keep)
    once[kept[_first_said(texts, kept)]] = True
    return once


def top_cut(scores: Scores, fraction: float) -> np.float32:
    """Return the score from which on `fraction` of all scores lie, ties with it included.

    NaN do not count; infinity where there is nothing else.
    """
    there = scores[~np.isnan(scores)]
    if not len(there):
        return np.float32(np.inf)
    # The rounding of `fraction` itself must not add a text: 0.07 of 100 are 7.
    wanted = max(1, math.ceil(fraction * len(there) - 1e-9))
    return np.float32(np.partition(there, len(there) - wanted)[len(there) - wanted])


def joined(parts: list[Scores]) -> Scores:
    """Return the scores of all parts."""
    return np.concatenate([np.zeros(0, np.float32), *parts])


def decided(texts: Texts, keep: Mask, fault: npt.NDArray[np.int8] | None = None) -> pa.RecordBatch:
    """Return the columns of `schema.SELECT`; `fault`: why rows keep nothing, if not `texts`'."""
    reasons = np.array(texts.fault if fault is None else fault)
    rows = len(reasons)
    web, own = texts.web, ~texts.web
    any_own = np.bincount(texts.row[own & keep], minlength=rows) > 0
    for place, there in enumerate((keep[web], any_own, keep[web] & any_own)):
        reasons[there] = _KEPT[place]
    lengths = np.bincount(texts.row[own], minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.record_batch(
        [
            pa.array(keep[web]),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(keep[own])),
            pa.DictionaryArray.from_arrays(
                pa.array(reasons, pa.int8()), pa.array(ALL_REASONS, pa.string())
            ),
        ],
        schema=schema.SELECT,
    )


def _first_said(texts: Texts, order: npt.NDArray[np.int64]) -> Mask:
    """Say of each text in an order whether it is the first of its row to say what it says."""
    row, said = texts.row[order], texts.said[order]
    together = np.lexsort((np.arange(len(order)), said, row))
    same = (row[together][1:] == row[together][:-1]) & (said[together][1:] == said[together][:-1])
    first = np.ones(len(order), bool)
    first[together[1:][same]] = False
    return first


def _scores(batch: pa.RecordBatch, score: Score) -> Scores:
    web, own = SCORE_COLUMNS[score]
    parts = (batch.column(web), batch.column(own).flatten())
    return np.concatenate(
        [part.fill_null(np.nan).to_numpy(zero_copy_only=False) for part in parts]
    ).astype(np.float32)


def _lengths(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    lengths = pc.list_value_length(batch.column("captions")).fill_null(0)
    counts: npt.NDArray[np.int64] = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    return counts


def folded_codes(
    web_texts: pa.Array, texts: pa.Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return a number for each text: equal where they say the same; -1 for null."""
    said = pa.concat_arrays([web_texts, texts.cast(web_texts.type)])
    folded = pc.utf8_lower(pc.utf8_trim_whitespace(said)).dictionary_encode()
    codes = folded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes[: len(web_texts)], codes[len(web_texts) :]
