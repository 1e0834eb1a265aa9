"""Words for people: numbers with their nouns, and strangers' texts made harmless."""

import re
from typing import Final

# Controls (C0 but for tab and line feed, C1), line separators, and the marks, embeddings, overrides
# and isolates that change the direction of what follows (Unicode Standard Annex 9).
_ACTIVE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return `1 row`, `2 rows`, `1,000 rows`; `plural` where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def inert(text: str) -> str:
    """Return text that shows itself alone: nothing in it moves the cursor or turns what follows."""
    return _ACTIVE.sub("", text)


def one_line(text: str) -> str:
    """Return a stranger's text as part of a line of ours."""
    return " ".join(inert(" ".join(text.split())).split())
