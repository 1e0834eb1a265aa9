import dataclasses

import pytest

from capfilt.engine.plan import compile_plan, is_barrier
from capfilt.errors import PlanError
from capfilt.models.recipe import FilterRecipe, ModelRef, Nucleus
from capfilt.recipe.round import Round
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.download import Download
from capfilt.stages.policies.blip import Select

ROUND = Round(
    caption=Caption(ModelRef("c1", "captioner", "/nowhere/c")),
    matching=FilterRecipe(ModelRef("m1", "matcher", "/nowhere/m")),
)
SHARDS = ("s1", "s2")


def ids(recipe: Round, shards: tuple[str, ...] = SHARDS) -> dict[str, str]:
    return {p.stage.name: p.id for p in compile_plan(recipe.stages(), shards).stages}


def changed(other: Round, shards: tuple[str, ...] = SHARDS) -> set[str]:
    before, after = ids(ROUND), ids(other, shards)
    return {name for name in after if before[name] != after[name]}


def caption(**fields: object) -> Round:
    return dataclasses.replace(ROUND, caption=dataclasses.replace(ROUND.caption, **fields))  # type: ignore[arg-type]  # any field


AFTER_CAPTION = {"caption", "match_captions", "dedup", "select"}


def test_each_change_redoes_exactly_what_depends_on_it() -> None:
    assert changed(caption(seed=1)) == AFTER_CAPTION
    assert changed(caption(decoding=Nucleus(top_p=0.8))) == AFTER_CAPTION
    assert changed(caption(model=ModelRef("c2", "captioner", "/nowhere/c"))) == AFTER_CAPTION
    matching = FilterRecipe(ModelRef("m2", "matcher", "/nowhere/m"))
    assert changed(dataclasses.replace(ROUND, matching=matching)) == {
        "match_web",
        "match_captions",
        "dedup",
        "select",
    }
    assert changed(dataclasses.replace(ROUND, select=Select(threshold=0.4))) == {"select"}
    assert changed(dataclasses.replace(ROUND, dedup=Dedup(similarity=0.9))) == {"dedup", "select"}
    fetch = Download(max_bytes=1000)
    assert changed(dataclasses.replace(ROUND, fetch=fetch)) == set(ids(ROUND))


def test_what_only_changes_speed_or_place_changes_nothing() -> None:
    assert changed(caption(device="cuda:1")) == set()
    assert changed(caption(model=ModelRef("c1", "other name", "/other/place"))) == set()
    fetch = Download(threads=3, timeout=1.0, total_timeout=2.0)
    assert changed(dataclasses.replace(ROUND, fetch=fetch)) == set()


def test_another_shard_changes_the_barrier_and_what_is_after_it() -> None:
    assert changed(ROUND, ("s1", "s2", "s3")) == {"dedup", "select"}


def test_the_next_round_has_new_models_and_the_same_recipe() -> None:
    later = ROUND.next(ModelRef("c2", "c", "/c"), ModelRef("m2", "m", "/m"))
    assert later.caption.model.digest == "c2"
    assert later.matching.model.digest == "m2"
    assert later.select == ROUND.select


def test_stages_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"'caption' needs the column 'image'"):
        compile_plan([ROUND.caption], SHARDS)
    with pytest.raises(PlanError, match=r"'download' adds the column 'status'"):
        compile_plan([Download(), Download(max_bytes=3)], SHARDS)


def test_models_make_one_pass_and_a_barrier_stands_alone() -> None:
    plan = compile_plan(ROUND.stages(), SHARDS)
    names = [[p.stage.name for p in group] for group in plan.passes()]
    assert names == [
        ["download", "phash"],
        ["caption", "match_web", "match_captions"],
        ["dedup"],
        ["select"],
    ]
    assert [is_barrier(group[0].stage) for group in plan.passes()] == [False, False, True, False]
    unhashed = dataclasses.replace(ROUND, dedup=Dedup("embedding"))
    first = compile_plan(unhashed.stages(), SHARDS).passes()[0]
    assert [p.stage.name for p in first] == ["download"]
