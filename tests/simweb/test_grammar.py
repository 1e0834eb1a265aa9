"""Captions of scenes: what is described holds, what is corrupted does not."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.simweb.grammar import (
    RELATION_WORDS,
    SIZE_WORDS,
    corrupt,
    describe,
    facts_true,
)
from capfilt.simweb.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Item, Scene, sample_scene

SEEDS = st.integers(0, 2**32)

RED_CIRCLE = Item("circle", "red", "small", 0.25, 0.5)
BLUE_STAR = Item("star", "blue", "large", 0.75, 0.5)
PAIR = Scene((RED_CIRCLE, BLUE_STAR), "grey")

TRUE = """
a red circle
a small red circle
a tiny red circle
a huge blue star on a grey background
a red circle to the left of a blue star
a blue star right of a little red circle
a red circle and a blue star
a blue star and a red circle on a grey background
A  Red   CIRCLE
""".strip().splitlines()

FALSE = """
a blue circle
a large red circle
a red circle on a pink background
a red circle right of a blue star
a blue star to the left of a red circle
a red circle above a blue star
a red circle and a red circle
a red circle with a blue star and a red star
a small blue star left of a red circle
""".strip().splitlines()

UNREADABLE = """

red circle
a circle
a picture of a red circle
a red circle.
a red circle to the left of a
a red circle on a grey
a red circle and
a red circle on a red background
a red circle a blue star
a large small red circle
a red circle left of a blue star left of a red circle
ein roter Kreis
IMG_2034.JPG
click here to enlarge
a red circle\x00
""".splitlines()


@pytest.mark.parametrize("caption", TRUE)
def test_true_statements(caption: str) -> None:
    assert facts_true(caption, PAIR)


@pytest.mark.parametrize("caption", FALSE)
def test_false_statements(caption: str) -> None:
    assert not facts_true(caption, PAIR)


@pytest.mark.parametrize("caption", UNREADABLE)
def test_what_the_grammar_cannot_read_is_false(caption: str) -> None:
    assert not facts_true(caption, PAIR)


def test_one_item_cannot_be_two_things() -> None:
    scene = Scene((RED_CIRCLE,), "grey")
    assert not facts_true("a red circle and a small red circle", scene)


def test_a_diagonal_is_no_relation() -> None:
    diagonal = Scene((RED_CIRCLE, Item("star", "blue", "large", 0.75, 0.9)), "grey")
    assert facts_true("a red circle and a blue star", diagonal)
    for name in RELATIONS:
        assert not facts_true(f"a red circle {RELATION_WORDS[name][0]} a blue star", diagonal)


@given(SEEDS, SEEDS)
def test_descriptions_are_true(seed: int, draw: int) -> None:
    scene = sample_scene(seed, 0)
    assert facts_true(describe(scene, Random(draw)), scene)


@given(SEEDS, SEEDS)
def test_corrupted_descriptions_are_false_by_one_change(seed: int, draw: int) -> None:
    scene, rng = sample_scene(seed, 0), Random(draw)
    caption = describe(scene, rng)
    changed = corrupt(caption, scene, rng)
    assert not facts_true(changed, scene)
    pairs = zip(caption.split(), changed.split(), strict=True)
    differing = [pair for pair in pairs if pair[0] != pair[1] and set(pair) != {"a", "an"}]
    assert len(differing) == 1


@given(SEEDS, st.text())
def test_no_text_is_too_odd_to_judge(seed: int, text: str) -> None:
    scene = sample_scene(seed, 0)
    assert facts_true(text, scene) in {True, False}


def test_corrupt_refuses_what_it_cannot_falsify() -> None:
    with pytest.raises(ValueError, match="click here"):
        corrupt("click here", PAIR, Random(0))


def test_corrupt_changes_every_kind_of_fact() -> None:
    kinds: Counter[str] = Counter()
    words = {word: "relation" for word in "left right above below over under".split()}
    words |= {word: "size" for group in SIZE_WORDS.values() for word in group}
    words |= dict.fromkeys(COLOURS, "colour") | dict.fromkeys(SHAPES, "shape")
    words |= dict.fromkeys(BACKGROUNDS, "background")
    for index in range(600):
        scene, rng = sample_scene(2, index), Random(index)
        caption = describe(scene, rng)
        changed = corrupt(caption, scene, rng)
        pairs = zip(caption.split(), changed.split(), strict=True)
        kinds.update(words[a] for a, b in pairs if a != b and a not in {"a", "an"})
    assert set(kinds) == {"relation", "size", "colour", "shape", "background"}
    assert min(kinds.values()) > 20


def test_descriptions_are_varied_and_use_every_wording() -> None:
    captions = [describe(sample_scene(4, i), Random(i)) for i in range(4000)]
    text = " ".join(captions)
    for group in (*SIZE_WORDS.values(), *RELATION_WORDS.values()):
        for wording in group:
            assert f" {wording} " in text
    assert len(set(captions)) > 3000
    one_scene = sample_scene(4, 1)
    assert len({describe(one_scene, Random(i)) for i in range(200)}) > 20


def test_descriptions_depend_on_nothing_but_scene_and_generator() -> None:
    scene = sample_scene(9, 9)
    assert describe(scene, Random(1)) == describe(scene, Random(1))
