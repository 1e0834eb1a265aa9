"""True captions of a scene, in varied words; and whether a caption is true of one.

caption  = thing | thing relation thing | thing and thing | thing with thing and thing,
           each with or without "on a <colour> background"
thing    = a/an [size] colour shape
"""

import re
from collections.abc import Sequence
from itertools import permutations
from random import Random
from typing import Final

from capfilt.simweb.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Item, Scene, holds

# How each fact may be worded; the first wording is the commonest.
SIZE_WORDS: Final = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
RELATION_WORDS: Final = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_LEADING: Final = ("left of", "above")
_LEADING_SHARE: Final = 0.7
_SIZES: Final = {word: size for size, words in SIZE_WORDS.items() for word in words}
_RELATIONS: Final = {word: name for name, words in RELATION_WORDS.items() for word in words}


def _one_of(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_THING: Final = rf"an? (?:({_one_of(list(_SIZES))}) )?({_one_of(COLOURS)}) ({_one_of(SHAPES)})"
_CAPTION: Final = re.compile(
    rf"{_THING}"
    rf"(?: ({_one_of([*_RELATIONS, 'and', 'with'])}) {_THING}(?: (and) {_THING})?)?"
    rf"(?: on an? ({_one_of(BACKGROUNDS)}) background)?"
)


def describe(scene: Scene, rng: Random) -> str:
    """Return a true caption of `scene`, lower-case, without punctuation."""
    text = _about_items(scene, rng)
    if rng.random() < 0.35:
        text += f" on {_article(scene.background)} background"
    return text


def facts_true(caption: str, scene: Scene) -> bool:
    """Say whether every statement of `caption` is true of `scene`.

    A caption that the grammar cannot read is false: nobody can say what it states.
    """
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if match is None:
        return False
    groups = match.groups()
    if groups[11] is not None and groups[11] != scene.background:
        return False
    things = [thing for thing in (groups[0:3], groups[4:7], groups[8:11]) if thing[1]]
    relation = _RELATIONS.get(groups[3] or "")
    return any(
        all(_fits(item, thing) for item, thing in zip(chosen, things, strict=True))
        and (relation is None or holds(relation, chosen[0], chosen[1]))
        for chosen in permutations(scene.items, len(things))
    )


def corrupt(caption: str, scene: Scene, rng: Random) -> str:
    """Return `caption` with one attribute or relation changed so that it is false of `scene`.

    Raises:
        ValueError: no single change makes it false (a caption of this grammar always has one).
    """
    words = caption.split(" ")
    places = list(range(len(words)))
    rng.shuffle(places)
    for place in places:
        for other in _alternatives(words[place], rng):
            changed = " ".join([*words[:place], other, *words[place + 1 :]])
            changed = _with_articles(changed)
            if _CAPTION.fullmatch(changed) and not facts_true(changed, scene):
                return changed
    raise ValueError(f"nothing in {caption!r} can be made false")


def _about_items(scene: Scene, rng: Random) -> str:
    items = list(scene.items)
    rng.shuffle(items)
    if len(items) == 1 or rng.random() < 0.15:
        return _thing(items[0], rng)
    related = [
        (name, one, other)
        for one, other in permutations(items, 2)
        for name in RELATIONS
        if holds(name, one, other)
    ]
    if related and rng.random() < 0.75:
        # People mostly name first what stands left or above.
        leading = [entry for entry in related if entry[0] in _LEADING]
        name, one, other = rng.choice(leading if rng.random() < _LEADING_SHARE else related)
        return f"{_thing(one, rng)} {_worded(RELATION_WORDS[name], rng)} {_thing(other, rng)}"
    if len(items) == 3 and rng.random() < 0.5:
        first, second, third = (_thing(item, rng) for item in items)
        return f"{first} with {second} and {third}"
    return f"{_thing(items[0], rng)} and {_thing(items[1], rng)}"


def _thing(item: Item, rng: Random) -> str:
    words = f"{item.colour} {item.shape}"
    if rng.random() < 0.6:
        words = f"{_worded(SIZE_WORDS[item.size], rng)} {words}"
    return _article(words)


def _worded(words: Sequence[str], rng: Random) -> str:
    return words[0] if rng.random() < 0.7 else rng.choice(words[1:])


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _with_articles(text: str) -> str:
    return re.sub(r"\ban? (\w+)", lambda match: _article(match[1]), text)


def _fits(item: Item, thing: Sequence[str | None]) -> bool:
    size, colour, shape = thing
    fits_size = size is None or _SIZES[size] == item.size
    return fits_size and (item.colour, item.shape) == (colour, shape)


def _alternatives(word: str, rng: Random) -> list[str]:
    """Return other words of the same kind, in random order."""
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    opposite |= {"over": "under", "under": "over"}
    if word in opposite:
        return [opposite[word]]
    for kind in (COLOURS, SHAPES, BACKGROUNDS):
        if word in kind:
            return rng.sample([other for other in kind if other != word], len(kind) - 1)
    if word in _SIZES:
        return [SIZE_WORDS[size][0] for size in SIZES if size != _SIZES[word]]
    return []
