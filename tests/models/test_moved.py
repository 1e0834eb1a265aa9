"""What a run says when the hub of one of its models has moved since it was last run."""

from dataclasses import replace
from pathlib import Path

from capfilt.engine.record import fetched_models, moved_models, record_round
from capfilt.ledger.ledger import Ledger
from capfilt.models.recipe import FilterRecipe, ModelRef
from capfilt.recipe.round import Round
from capfilt.stages.caption import Caption

OLD, NEW = "a" * 40, "b" * 40
CAPTIONER = ModelRef("c1", "org/captioner", "/cache/c", OLD)
MATCHER = ModelRef("m1", "/models/matcher", "/models/matcher")


def of(captioner: ModelRef, matcher: ModelRef = MATCHER) -> Round:
    return Round(Caption(captioner), FilterRecipe(matcher))


def test_nothing_has_moved_before_the_first_run_or_where_the_commit_is_the_same(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path)
    assert moved_models(ledger, of(CAPTIONER)) == []
    record_round(ledger, of(CAPTIONER), "input")
    assert moved_models(ledger, of(CAPTIONER)) == []
    assert moved_models(ledger, of(replace(CAPTIONER, path="/elsewhere"))) == []


def test_other_files_are_computed_again_and_the_former_can_be_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record_round(ledger, of(CAPTIONER), "input")
    moved = of(replace(CAPTIONER, digest="c2", commit=NEW))
    [line] = moved_models(ledger, moved)
    assert "org/captioner@aaaaaaa to org/captioner@bbbbbbb: its files differ" in line
    assert f"give org/captioner@{OLD}" in line
    record_round(ledger, moved, "input")
    assert moved_models(ledger, moved) == []  # said once
    [line] = moved_models(ledger, of(replace(CAPTIONER, digest="c2")))
    assert "org/captioner@bbbbbbb to org/captioner@aaaaaaa: its files are the same" in line


def test_a_model_that_is_used_twice_is_told_of_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    both = ModelRef("m1", "org/both", "/cache/b", OLD)
    record_round(ledger, of(both, both), "input")
    later = replace(both, commit=NEW)
    assert len(moved_models(ledger, of(later, later))) == 1


def test_commits_that_are_not_known_have_not_moved(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record_round(ledger, of(replace(CAPTIONER, commit=None)), "input")  # by an earlier version
    assert moved_models(ledger, of(CAPTIONER)) == []
    other = of(ModelRef("c3", "org/other", "/cache/o", NEW))
    assert moved_models(ledger, other) == []  # the user changed the model, the hub did not


def test_folders_are_not_shown_as_fetched() -> None:
    adapted = replace(MATCHER, adapter="/lora", base="org/base@1234567")
    assert fetched_models(of(CAPTIONER)) == ["captioner org/captioner@aaaaaaa"]
    assert (
        fetched_models(of(CAPTIONER, adapted))[1] == f"matcher {MATCHER.name} on org/base@1234567"
    )
