"""Text as the filter sees it."""

import re
from typing import Final

MAX_WORDS: Final = 30
_TO_SPACE: Final = re.compile(r"[.!\"()*#:;~]")
_SPACES: Final = re.compile(r"\s{2,}")


def normalise_for_filter(text: str, max_words: int = MAX_WORDS) -> str:
    """Lower-case, turn `. ! " ( ) * # : ; ~` into spaces, cut after `max_words` words.

    This is what BLIP's filter was trained on (BLIP repository, `pre_caption`).
    """
    spaced = _SPACES.sub(" ", _TO_SPACE.sub(" ", text.lower())).strip()
    return " ".join(spaced.split(" ")[:max_words])
