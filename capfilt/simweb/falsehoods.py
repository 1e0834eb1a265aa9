"""Texts that are false of a scene, mostly almost true: what a filter learns to refuse."""

from hashlib import blake2b
from random import Random
from typing import Final

from capfilt.simweb.grammar import corrupt, facts_true
from capfilt.simweb.scenes import Scene

SIDE: Final = 64
_BLOCK: Final = 500
_WEB_WORDS: Final = (
    "photo image view free shop price new best online buy home page download click here wallpaper "
    "news travel design vector sale gallery size black white red blue star ring cross square "
    "der die das und ein le la les des un el los con para foto bild auf von mit sur dans"
).split()


def rng_of(*parts: object) -> Random:
    """Return a generator that depends on nothing but `parts`."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def false_text(scene: Scene, caption: str, rng: Random) -> str:
    """Return a text that is false of `scene`, mostly almost true: the filter's hard negatives.

    Seven in ten are the caption with one thing changed, one is cut off within a phrase, two are
    text of no scene at all (words and file names as the web has them).
    """
    lot = rng.random()
    if lot < 0.7:
        return corrupt(caption, scene, rng)
    if lot < 0.8:
        words = caption.split()
        cut = " ".join(words[: rng.randint(1, len(words) - 1)])
        broken = cut if cut.split()[-1] in _DANGLING else f"{cut} {rng.choice(_WEB_WORDS)}"
        # The added word may be the very one that was cut off.
        return corrupt(caption, scene, rng) if facts_true(broken, scene) else broken
    if lot < 0.9:
        return " ".join(rng.choices(_WEB_WORDS, k=rng.randint(1, 7)))
    stem = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 6)))
    return f"{stem}{rng.choice(('_', '-', ' ', ''))}{rng.randint(0, 99999)}"


_DANGLING: Final = frozenset(
    "a an to the of on left right above over below under and with small large tiny big".split()
)
