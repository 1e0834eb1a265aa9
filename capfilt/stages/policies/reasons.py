"""Why a row is or is not in the export, in one word of a closed set; the funnel counts it."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema

# Why a row is or is not in the export. A row has the first of these that fits.
REASONS: Final = (
    schema.DUPLICATE_URL,
    schema.INVALID_URL,
    schema.FAILED_TO_DOWNLOAD,
    schema.FAILED_TO_RESIZE,
    "undecodable",  # fetched and resized, but the model's decoder refuses it
    "duplicate_image",  # a near-duplicate with a better score is kept
    "no_text_kept",
    "kept_web",
    "kept_synthetic",
    "kept_both",
)
PLACES: Final = {reason: place for place, reason in enumerate(REASONS)}
# What other policies say besides; in the order in which a funnel tells them.
ALL_REASONS: Final = (
    *REASONS[:6],
    "small_image",
    "extreme_aspect",
    "short_text",  # a text reached the score, and is too short
    *REASONS[6:],
)
# All that a funnel tells of, in its order: also what is left out after a policy has decided.
TOLD_REASONS: Final = (
    *ALL_REASONS[:6],
    "evaluation_image",  # it stands in an evaluation set
    *ALL_REASONS[6:9],
    "evaluation_text",  # every text that was kept stands in an evaluation set
    *ALL_REASONS[9:],
)


def faults(batch: pa.RecordBatch, dedup: bool) -> npt.NDArray[np.int8]:
    """Return each row's place in `ALL_REASONS` of why it can keep nothing, whatever its scores.

    Rows that can keep something have that of `no_text_kept`.
    """
    nothing = np.zeros(batch.num_rows, bool)
    own = reasons_of(batch, dedup, nothing, nothing)
    places: npt.NDArray[np.int8] = np.array([ALL_REASONS.index(r) for r in REASONS], np.int8)[own]
    return places


def reasons_of(
    batch: pa.RecordBatch,
    dedup: bool,
    web: npt.NDArray[np.bool_],
    synthetic: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int8]:
    """Return each row's place in `REASONS`."""
    reasons = np.full(batch.num_rows, PLACES["no_text_kept"], np.int8)
    reasons[web] = PLACES["kept_web"]
    reasons[synthetic] = PLACES["kept_synthetic"]
    reasons[web & synthetic] = PLACES["kept_both"]
    if dedup:
        duplicate = batch.column("dup_of").is_valid().to_numpy(zero_copy_only=False)
        reasons[duplicate] = PLACES["duplicate_image"]
    for column in ("caption_error", "match_error"):
        broken = batch.column(column).is_valid().to_numpy(zero_copy_only=False)
        reasons[broken] = PLACES["undecodable"]
    for status in REASONS[:4]:
        reasons[is_word(batch.column("status"), status)] = PLACES[status]
    return reasons


def is_word(values: pa.Array, word: str) -> npt.NDArray[np.bool_]:
    """Say which values are this word."""
    equal: npt.NDArray[np.bool_] = pc.equal(values, word).to_numpy(zero_copy_only=False)
    return equal.astype(bool)
