"""The policy `mix`: draws that are fair, belong to the row, and are the same however shards lie."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt import schema
from capfilt.engine.plan import compile_plan
from capfilt.errors import InputError
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.options import RoundOptions, build_round, exported_with
from capfilt.recipe.round import Round
from capfilt.stages.policies.draws import draws
from capfilt.stages.policies.mixed import Mixed
from tests.stages.test_policies import Row, a_row, as_table, scored

Kept = tuple[bool, list[bool]]


def keyed(rows: Sequence[Row]) -> list[Row]:
    return [
        {**row, "key": hashlib.blake2b(str(n).encode(), digest_size=16).hexdigest()}
        for n, row in enumerate(rows)
    ]


def kept(policy: Mixed, *shards: Sequence[Row]) -> list[Kept]:
    tables = [
        as_table(rows).append_column("key", pa.array([r["key"] for r in rows], pa.string()))
        for rows in shards
    ]
    added = list(policy.solve(table.select(list(policy.needs)) for table in tables))
    for batch, rows in zip(added, shards, strict=True):
        batch.validate(full=True)
        assert (batch.schema, batch.num_rows) == (schema.SELECT, len(rows))
    plain = [row for batch in added for row in batch.to_pylist()]
    for row in plain:
        assert row["reason"].startswith("kept") == (row["keep_web"] or any(row["keep_captions"]))
    return [(row["keep_web"], row["keep_captions"]) for row in plain]


def texts_of(rows: Sequence[Row], found: Sequence[Kept]) -> list[str]:
    """Return the one kept text of each row that has one, as a cap counts it."""
    said = []
    for row, (web, own) in zip(rows, found, strict=True):
        assert web + sum(own) <= 1
        chosen = [row["caption"]] * web
        chosen += [text for text, keep in zip(row["captions"] or [], own, strict=True) if keep]
        said += [text.strip().lower() for text in chosen]
    return said


MIXES = st.builds(
    Mixed,
    web=st.sampled_from([0.0, 0.5, 1.0]),
    threshold=st.sampled_from([None, 0.5]),
    temperature=st.sampled_from([1e-6, 0.1, 10.0]),
    cap=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 3),
    score=st.sampled_from(["itm", "itc"]),
)


@settings(max_examples=80, deadline=None)
@given(MIXES, st.lists(a_row(), max_size=20), st.data())
def test_what_is_kept_depends_on_no_shard_and_on_no_order(
    policy: Mixed, rows: list[Row], data: st.DataObject
) -> None:
    rows = keyed(rows)
    whole = kept(policy, rows)
    cut = data.draw(st.integers(0, len(rows)))
    assert kept(policy, rows[:cut], [], rows[cut:]) == whole
    order = data.draw(st.permutations(range(len(rows))))
    assert kept(policy, [rows[place] for place in order]) == [whole[place] for place in order]
    said = Counter(texts_of(rows, whole))
    assert policy.cap is None or max(said.values(), default=0) <= policy.cap
    for row, (web, own) in zip(rows, whole, strict=True):
        assert not ((web or any(own)) and (row["status"] != schema.SUCCESS or row["dup_of"]))


def test_the_web_is_taken_as_often_as_asked_and_alone_where_nothing_else_is() -> None:
    rows = keyed([scored(0.9, 0.9)] * 1000)
    for share in (0.0, 0.25, 1.0):
        taken = sum(web for web, _ in kept(Mixed(web=share, score="similarity"), rows))
        assert abs(taken - 1000 * share) < 60
    alone = keyed([scored(0.9), scored(None, 0.9), scored(0.2, 0.9), scored(0.9, 0.2)])
    found = kept(Mixed(web=0.0, threshold=0.5, score="similarity"), alone)
    assert found == [(True, []), (False, [True]), (False, [True]), (True, [False])]


def test_scores_decide_as_the_temperature_says() -> None:
    rows = keyed([scored(None, 0.5, 0.6)] * 2000)
    for temperature in (1e-9, 0.1, 1e9):
        found = kept(Mixed(temperature=temperature, score="similarity"), rows)
        better = sum(own[1] for _, own in found)
        odds = np.exp(min(0.1 / temperature, 700.0))
        assert abs(better / 2000 - odds / (1 + odds)) < 0.04


def test_another_seed_draws_others_and_a_fifth_text_changes_no_draw_of_the_rest() -> None:
    rows = keyed([scored(0.9, 0.9)] * 200)
    assert kept(Mixed(seed=1, score="similarity"), rows) != kept(
        Mixed(seed=2, score="similarity"), rows
    )
    keys = [row["key"] for row in rows]
    assert (draws(3, keys, 30)[:, :5] == draws(3, keys, 5)).all()
    spread = draws(0, keys, 40)
    assert 0 < spread.min() < 0.01
    assert 0.99 < spread.max() < 1


def test_a_cap_leaves_so_many_of_all_shards_whatever_case_they_have() -> None:
    rows = keyed([scored(0.9) | {"caption": text} for text in ["A dog", " a DOG ", "a cat"] * 20])
    found = kept(Mixed(cap=5, score="similarity"), rows[:7], rows[7:])
    assert Counter(texts_of(rows, found)) == {"a dog": 5, "a cat": 5}
    first = [place for place, (web, _) in enumerate(found) if web]
    assert first != list(range(10))  # drawn, not the first that came


@pytest.mark.parametrize(
    "wrong",
    [{"web": 1.5}, {"temperature": 0.0}, {"cap": 0}, {"threshold": 2.0}, {"score": "loss"}],
)
def test_figures_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Mixed(**wrong)


def test_it_is_a_round_that_is_remembered_and_exported_with_other_figures() -> None:
    recipe = build_round(RoundOptions(policy="mix", web_share=0.25, text_cap=9, mix_seed=4))
    assert recipe.select == Mixed(web=0.25, cap=9, seed=4)
    assert from_plain(Round, to_plain(recipe)) == recipe
    assert compile_plan(recipe.stages(), ["a"]).stages[-1].stage.name == "select_mixed"
    other = exported_with(recipe, {"score_temperature": 2.0, "text_cap": 3})
    assert other.select == Mixed(web=0.25, cap=3, seed=4, temperature=2.0)
    with pytest.raises(InputError, match="--text-cap has no effect with the policy 'blip'"):
        build_round(RoundOptions(text_cap=2))
