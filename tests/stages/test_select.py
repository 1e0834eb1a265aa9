import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt import schema
from capfilt.errors import DamageError, InputError
from capfilt.report.funnel import count_funnel
from capfilt.stages.policies.blip import Origins, Select
from capfilt.stages.policies.raw import RawWeb
from capfilt.stages.policies.reasons import REASONS

Row = dict[str, Any]
TYPES = {
    "caption": pa.string(),
    "captions": pa.list_(pa.string()),
    "itm_score": pa.float32(),
    "itc_score": pa.float32(),
    "caption_itm_scores": pa.list_(pa.float32()),
    "status": pa.string(),
    "caption_error": pa.string(),
    "match_error": pa.string(),
    "dup_of": pa.string(),
}
scores = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.just(math.nan))
words = st.sampled_from(["a", "A ", "b", "c", ""])


@st.composite
def a_row(draw: st.DrawFn) -> Row:
    status = draw(st.sampled_from([schema.SUCCESS, schema.SUCCESS, *REASONS[:4]]))
    row: Row = dict.fromkeys(TYPES)
    row["status"], row["caption"] = status, draw(st.one_of(st.none(), words))
    if status != schema.SUCCESS:
        return row
    if draw(st.integers(0, 9)) == 0:
        return {**row, "caption_error": "torn", "match_error": "torn"}
    own = draw(st.lists(st.tuples(words, scores), max_size=4))
    row["captions"] = [text for text, _ in own]
    row["caption_itm_scores"] = [score for _, score in own]
    row["itm_score"] = draw(scores) if row["caption"] else None
    row["dup_of"] = draw(st.sampled_from([None, None, "k"]))
    return row


def expected(
    row: Row, threshold: float, dedup: bool, origins: str = "both"
) -> tuple[bool, list[bool], str]:
    """The policy, written as slowly and plainly as can be."""

    def enough(score: float | None) -> bool:
        return score is not None and score >= threshold

    own = list(zip(row["captions"] or [], row["caption_itm_scores"] or [], strict=True))
    if row["status"] != schema.SUCCESS:
        return False, [False] * len(own), row["status"]
    if row["caption_error"]:
        return False, [], "undecodable"
    if dedup and row["dup_of"]:
        return False, [False] * len(own), "duplicate_image"
    web = enough(row["itm_score"]) and origins != "synthetic"
    said = {row["caption"].strip().lower()} if web else set()
    keep = []
    for text, score in own:
        folded = text.strip().lower()
        keep.append(enough(score) and folded not in said and origins != "web")
        if keep[-1]:
            said.add(folded)
    words = {(True, True): "kept_both", (True, False): "kept_web", (False, True): "kept_synthetic"}
    return web, keep, words.get((web, any(keep)), "no_text_kept")


def as_batch(rows: list[Row]) -> pa.RecordBatch:
    arrays = [pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()]
    return pa.record_batch(arrays, names=list(TYPES))


def decide(stage: Select | RawWeb, batch: pa.RecordBatch) -> list[Row]:
    with stage.open() as transform:
        added = transform(batch.select(list(stage.needs)))
    assert added.schema == schema.SELECT
    rows: list[Row] = added.to_pylist()
    return rows


@settings(max_examples=150, deadline=None)
@given(
    st.lists(a_row(), max_size=12),
    st.sampled_from([0.0, 0.5, 0.75]),
    st.booleans(),
    st.sampled_from(get_args(Origins)),
)
def test_the_policy_is_the_plain_one(
    rows: list[Row], threshold: float, dedup: bool, origins: Origins
) -> None:
    stage = Select(threshold, dedup, origins)
    found = decide(stage, as_batch(rows))
    assert [(r["keep_web"], r["keep_captions"], r["reason"]) for r in found] == [
        expected(row, threshold, dedup, origins) for row in rows
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(a_row(), min_size=1, max_size=12), st.data())
def test_a_slice_is_decided_as_in_the_whole(rows: list[Row], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    whole, batch = decide(Select(), as_batch(rows)), as_batch(rows)
    assert decide(Select(), batch.slice(start)) == whole[start:]
    assert decide(Select(), batch.slice(0, start)) == whole[:start]


def test_without_dedup_no_duplicates_are_needed() -> None:
    assert "dup_of" not in Select(dedup=False).needs
    assert "dup_of" in Select().needs


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="at least 0 and at most 1"):
        Select(threshold=1.5)


def test_unknown_origins_are_refused() -> None:
    with pytest.raises(InputError, match="both, web, synthetic"):
        Select(origins=cast(Any, "human"))


@settings(max_examples=60, deadline=None)
@given(st.lists(a_row(), max_size=12), st.booleans())
def test_the_raw_web_is_every_text_that_says_something(rows: list[Row], dedup: bool) -> None:
    found = decide(RawWeb(dedup), as_batch(rows))
    for row, chosen in zip(rows, found, strict=True):
        able = row["status"] == schema.SUCCESS and not row["caption_error"]
        able = able and not (dedup and row["dup_of"])
        assert chosen["keep_web"] == (able and bool((row["caption"] or "").strip()))
        assert not any(chosen["keep_captions"])
        assert (chosen["reason"] == "kept_web") == chosen["keep_web"]


def test_scores_are_compared_as_they_are_stored() -> None:
    row: Row = {**dict.fromkeys(TYPES), "status": "success", "caption": "x", "captions": []}
    row |= {"caption_itm_scores": [], "itm_score": float(np.float32(0.1))}
    assert decide(Select(0.1), as_batch([row]))[0]["keep_web"]


# --- the funnel over what was selected


@dataclass(frozen=True)
class Tables:
    """A run in memory."""

    tables: dict[str, pa.Table]

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(self.tables)

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        return self.tables[shard].select(list(columns))


def selected(rows: list[Row], attempt: int) -> pa.Table:
    batch = as_batch(rows)
    with Select().open() as transform:
        chosen = transform(batch.select(list(Select().needs)))
    table = pa.Table.from_arrays(
        [*batch.columns, *chosen.columns], names=[*batch.schema.names, *chosen.schema.names]
    )
    return table.append_column("attempt", pa.array([attempt] * len(rows), pa.int32()))


@settings(max_examples=60, deadline=None)
@given(st.lists(a_row(), max_size=12), st.integers(0, 12), st.lists(a_row(), max_size=4))
def test_the_funnel_adds_up_and_counts_the_last_attempt(
    rows: list[Row], cut: int, again: list[Row]
) -> None:
    # Each row of the attempt stands in the first shard too, as not downloaded.
    failed: Row = {**dict.fromkeys(TYPES), "status": schema.FAILED_TO_DOWNLOAD}
    run = {"a": rows[:cut], "b": [*rows[cut:], *([failed] * len(again))]}
    tables = {name: selected(part, 0) for name, part in run.items()}
    if again:
        tables["b~1.x"] = selected(again, 1)
    funnel = count_funnel(Tables(tables), len(rows) + len(again))
    outcomes = [expected(row, 0.5, True) for row in [*rows, *again]]
    assert +funnel.reasons == Counter(reason for *_, reason in outcomes)
    assert sum(count for label, count in funnel.lines() if label != "input") == funnel.rows
    assert set(funnel.reasons) <= set(REASONS)
    assert funnel.web_kept == sum(web for web, *_ in outcomes)
    assert funnel.synthetic_kept == sum(sum(keep) for _, keep, _ in outcomes)
    assert funnel.web_kept <= funnel.web_judged
    assert funnel.synthetic_kept <= funnel.synthetic_judged
    assert json.loads(json.dumps(funnel.plain()))["rows"] == funnel.rows


def test_a_run_that_lost_a_row_has_no_funnel() -> None:
    failed: Row = {**dict.fromkeys(TYPES), "status": schema.FAILED_TO_DOWNLOAD}
    with pytest.raises(DamageError, match="capfilt verify"):
        count_funnel(Tables({"a": selected([failed], 0)}), 2)
