import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt import schema
from capfilt.errors import InputError
from capfilt.stages.dedup.barrier import Dedup, Method
from capfilt.stages.dedup.phash import phash

Row = dict[str, Any]
TYPES = {
    "key": pa.string(),
    "url": pa.string(),
    "image_ref": pa.string(),
    "sha256": pa.string(),
    "itm_score": pa.float32(),
    "caption_itm_scores": pa.list_(pa.float32()),
    "phash": pa.uint64(),
    "image_embedding": pa.list_(pa.float32()),
}
METHODS: tuple[Method, ...] = ("sha256", "phash", "embedding", "both")


def hexed(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    rows: list[Row] = []
    for number in range(draw(st.integers(0, 14))):
        picture = draw(st.integers(0, 5))  # few pictures: many duplicates
        turn = picture * 0.11
        there = draw(st.integers(0, 5)) > 0
        rows.append(
            {
                "key": hexed(f"key{number}", 16),
                "url": f"http://a.example/{picture}/{draw(st.integers(0, 2))}",  # rows of one image
                "image_ref": None,
                "sha256": hexed(f"bytes{picture}", 32) if there else None,
                "itm_score": draw(st.sampled_from([None, 0.1, 0.5, 0.9])) if there else None,
                "caption_itm_scores": draw(st.lists(st.sampled_from([0.2, 0.5, 0.95]), max_size=2))
                if there
                else None,
                "phash": (1 << picture * 2) - 1 if there else None,
                "image_embedding": [np.cos(turn), np.sin(turn)] if there else None,
            }
        )
    return rows


def table(rows: list[Row]) -> pa.Table:
    return pa.table({n: pa.array([r[n] for r in rows], kind) for n, kind in TYPES.items()})


def solve(stage: Dedup, shards: list[list[Row]]) -> list[str | None]:
    batches = list(stage.solve(table(rows).select(list(stage.needs)) for rows in shards))
    assert [batch.num_rows for batch in batches] == [len(rows) for rows in shards]
    assert all(batch.schema == schema.DEDUP for batch in batches)
    return [value for batch in batches for value in batch.column("dup_of").to_pylist()]


def best(row: Row) -> float:
    texts = [row["itm_score"], *row["caption_itm_scores"]]
    return max((float(np.float32(s)) for s in texts if s is not None), default=-1.0)


def near(stage: Dedup, one: Row, other: Row) -> bool:
    if one["sha256"] == other["sha256"]:
        return True
    a, b = (np.float32(r["image_embedding"]).astype(float) for r in (one, other))
    looks = {
        "phash": int(one["phash"] ^ other["phash"]).bit_count() <= stage.radius,
        "embedding": float((a * b).sum()) >= stage.similarity,
    }
    needed = {"sha256": [False], "both": looks.values()}.get(stage.method)
    return all(needed) if needed is not None else looks[stage.method]


def by_brute_force(stage: Dedup, rows: list[Row]) -> list[str | None]:
    """Greedy, as the module says it: best rows first, each near a kept one points at the best."""
    there = [row for row in rows if row["sha256"] is not None]
    kept: list[Row] = []
    owner: dict[str, str] = {}
    for row in sorted(there, key=lambda row: (-best(row), row["key"])):
        winner = next((k for k in kept if near(stage, k, row)), None)
        if winner is None:
            kept.append(row)
        elif winner["url"] != row["url"]:  # texts of one image share what becomes of it
            owner[row["key"]] = winner["key"]
    return [owner.get(row["key"]) for row in rows]


@settings(max_examples=120, deadline=None)
@given(some_rows(), st.sampled_from(METHODS), st.data())
def test_the_best_copy_wins_however_the_rows_are_cut(
    rows: list[Row], method: Method, data: st.DataObject
) -> None:
    stage = Dedup(method, radius=data.draw(st.sampled_from([1, 3])), similarity=0.99)
    cut = data.draw(st.integers(0, len(rows)))
    assert solve(stage, [rows[:cut], rows[cut:]]) == by_brute_force(stage, rows)
    assert solve(stage, [rows]) == by_brute_force(stage, rows)


def test_thousands_of_one_picture_leave_one() -> None:
    row = {"sha256": hexed("x", 32), "itm_score": 0.5, "caption_itm_scores": [], "phash": 7}
    rows: list[Row] = [
        {
            **row,
            "key": hexed(str(i), 16),
            "url": f"http://a.example/{i}",
            "image_ref": None,
            "image_embedding": [1.0, 0.0],
        }
        for i in range(3000)
    ]
    for method in METHODS:
        found = solve(Dedup(method), [rows])
        assert found.count(None) == 1
        assert {value for value in found if value} == {min(row["key"] for row in rows)}


def test_the_texts_of_one_image_are_kept_or_dropped_together() -> None:
    def of(ref: str, text: str, score: float) -> Row:
        own = {"key": hexed(ref + text, 16), "url": "x.png", "image_ref": ref, "itm_score": score}
        look = {"phash": 7, "image_embedding": [1.0, 0.0], "caption_itm_scores": []}
        return {**own, **look, "sha256": hexed("same", 32)}

    rows = [of("a", "1", 0.1), of("b", "1", 0.5), of("a", "2", 0.9), of("b", "2", 0.2)]
    for method in METHODS:
        first = rows[2]["key"]
        assert solve(Dedup(method), [rows[:1], rows[1:]]) == [None, first, None, first]


def test_ranges_are_checked() -> None:
    with pytest.raises(InputError, match="radius"):
        Dedup("phash", radius=40)
    with pytest.raises(InputError, match="similarity"):
        Dedup(similarity=1.5)


def encoded(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_a_copy_of_another_size_and_quality_has_almost_the_same_phash() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    picture = coarse.resize((400, 300), Image.Resampling.BICUBIC)
    other = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((400, 300))
    first, small = phash(encoded(picture, 95)), phash(encoded(picture.resize((200, 150)), 60))
    assert first is not None
    assert small is not None
    assert (first ^ small).bit_count() <= 3
    assert (first ^ (phash(encoded(other, 95)) or 0)).bit_count() > 12
    assert phash(b"no image") is None
