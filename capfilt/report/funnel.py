"""The funnel: what became of every row of the input, and of every text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.errors import DamageError
from capfilt.ledger.tally import Tally
from capfilt.report.failures import lines_of_hosts, lines_of_kinds
from capfilt.schema import FAILED_TO_DOWNLOAD
from capfilt.stage import ColumnReader
from capfilt.stages.policies.reasons import REASONS, TOLD_REASONS
from capfilt.wording import counted

_COLUMNS: Final = (
    "itm_score",
    "itc_score",
    "captions",
    "caption_itm_scores",
    "keep_web",
    "keep_captions",
    "reason",
    "attempt",
)
_MARKS: Final = ("image_in", "text_in", "captions_in")  # of evaluation sets
_BINS: Final = 20
_BAR: Final = 36


@dataclass(slots=True)
class Funnel:
    """Counts of rows by reason and of texts by origin; `rows` is the input's own count.

    A text is judged where its image was seen and it is no near-duplicate's; `noise` is the share of
    judged texts that the filter rejected (BLIP, Table 2). Histograms have 20 bins over [0, 1].
    `failed` has the kinds behind the reasons that are failures, and their hosts.
    """

    rows: int
    reasons: Counter[str] = field(default_factory=Counter)
    web_judged: int = 0
    web_kept: int = 0
    synthetic_judged: int = 0
    synthetic_kept: int = 0
    web_scores: list[int] = field(default_factory=lambda: [0] * _BINS)
    synthetic_scores: list[int] = field(default_factory=lambda: [0] * _BINS)
    failed: Tally = field(default_factory=Tally)
    evaluation_images: int = 0  # rows whose picture stands in an evaluation set, left out or not
    evaluation_texts: int = 0

    @property
    def images_kept(self) -> int:
        """Images that keep at least one text."""
        return sum(count for reason, count in self.reasons.items() if reason.startswith("kept"))

    @property
    def noise(self) -> dict[str, float | None]:
        """Share of the judged texts that were rejected, by origin; None where none was judged."""
        return {
            "web": 1 - self.web_kept / self.web_judged if self.web_judged else None,
            "synthetic": (
                1 - self.synthetic_kept / self.synthetic_judged if self.synthetic_judged else None
            ),
        }

    def lines(self) -> list[tuple[str, int]]:
        """Return (label, rows) for the input and every reason; the reasons add up to the input."""
        return [
            ("input", self.rows),
            *((r, self.reasons[r]) for r in TOLD_REASONS if self.reasons[r]),
        ]

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the funnel for machines."""
        apart = {"reasons", "failed"}  # the failures are told once, beside the funnel
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        derived = {"images_kept": self.images_kept, "noise": self.noise}
        return {**counts, "reasons": dict(self.reasons), **derived}

    def text(self) -> str:
        """Return the funnel for a person, with bars."""
        widest = max(self.rows, 1)
        lines: list[str] = []
        for label, count in self.lines():
            lines.append(f"{label:<20} {count:>10,}  {'█' * round(_BAR * count / widest)}".rstrip())
            lines += lines_of_kinds(self.failed.kinds.get(label, {}))
        for origin, judged, kept in (
            ("web", self.web_judged, self.web_kept),
            ("synthetic", self.synthetic_judged, self.synthetic_kept),
        ):
            noise = f" ({100 * (1 - kept / judged):.0f} % rejected)" if judged else ""
            lines.append(f"{origin + ' texts':<20} {judged:>10,}  judged, {kept:,} kept{noise}")
        if self.marked:
            lines.append(f"evaluation sets: {self.marked}")
        return "\n".join([*lines, *lines_of_hosts(self.failed)])

    @property
    def marked(self) -> str:
        """What stands in evaluation sets, in words; "" for nothing."""
        if not self.evaluation_images + self.evaluation_texts:
            return ""
        images = counted(self.evaluation_images, "picture")
        return f"{images} and {counted(self.evaluation_texts, 'text')} stand in them"


def count_funnel(
    reader: ColumnReader, rows: int, failed: Tally | None = None, marked: bool = False
) -> Funnel:
    """Count over all shards; `rows` is what the input had, `failed` what its receipts say.

    A row that was fetched again counts by its last attempt: every row of an attempt's shard stands
    in an earlier one as failed to download. `marked`: evaluation sets were looked for.

    Raises:
        DamageError: the counts do not add up to the input.
    """
    funnel = Funnel(rows, failed=failed or Tally())
    for shard in reader.shards:
        _add(funnel, reader.read(shard, (*_COLUMNS, *(_MARKS if marked else ()))))
    if sum(funnel.reasons.values()) != rows:
        raise DamageError(
            f"the rows of all reasons are {sum(funnel.reasons.values()):,}, the input has "
            f"{rows:,}; run `capfilt verify`"
        )
    return funnel


def _add(funnel: Funnel, table: pa.Table) -> None:
    reasons = table["reason"].cast(pa.string())
    for entry in reasons.value_counts().to_pylist():
        funnel.reasons[entry["values"]] += entry["counts"]
    again = pc.sum(pc.greater(table["attempt"], 0)).as_py() or 0
    funnel.reasons[FAILED_TO_DOWNLOAD] -= again
    judged = pc.or_(pc.starts_with(reasons, "kept"), pc.equal(reasons, "no_text_kept"))
    seen = table.filter(judged)
    web = seen["itm_score"].drop_null().to_numpy()
    texts = pc.list_flatten(seen["captions"])
    synthetic = pc.list_flatten(seen["caption_itm_scores"]).drop_null().to_numpy()
    # A matcher without ITM gives a similarity alone; a second model scores what it would not.
    scored = pc.or_(pc.is_valid(seen["itm_score"]), pc.is_valid(seen["itc_score"]))
    funnel.web_judged += pc.sum(pc.or_(scored, seen["keep_web"])).as_py() or 0
    funnel.web_kept += pc.sum(seen["keep_web"]).as_py() or 0
    funnel.synthetic_judged += len(texts)
    funnel.synthetic_kept += pc.sum(pc.list_flatten(seen["keep_captions"])).as_py() or 0
    if _MARKS[0] in table.column_names:
        came = table.filter(pc.invert(pc.is_in(reasons, pa.array(REASONS[:4]))))
        funnel.evaluation_images += _valid(came["image_in"])
        own = _valid(pc.list_flatten(came["captions_in"]))
        funnel.evaluation_texts += _valid(came["text_in"]) + own
    _histogram(funnel.web_scores, web)
    _histogram(funnel.synthetic_scores, synthetic)


def _valid(column: pa.ChunkedArray) -> int:
    return len(column) - int(column.null_count)


def _histogram(bins: list[int], scores: Sequence[float] | np.ndarray) -> None:
    counts, _ = np.histogram(scores, _BINS, (0.0, 1.0))
    for place, count in enumerate(counts.tolist()):
        bins[place] += count
