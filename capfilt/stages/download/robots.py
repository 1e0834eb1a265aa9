"""Opt-outs in X-Robots-Tag headers, read as their specification says.

https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag: a header holds rules
between commas; `name:` before a rule says whom it and those after it in this header are for,
unless the name is a rule with a value (`max-snippet: 5`, `unavailable_after: <date>`), whose date
may hold commas and colons itself. Where it can be read in two ways, the opt-out wins.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# Whose rules are always ours, beside those for the run's own token.
_OUR_NAMES: Final = frozenset({"*", "capfilt", "img2dataset"})
_WITH_VALUE: Final = frozenset({"max-snippet", "max-image-preview", "max-video-preview"})
_UNTIL: Final = "unavailable_after"
_RULES: Final = frozenset(
    "all index follow noindex nofollow none noarchive nocache nosnippet nositelinkssearchbox "
    "notranslate noimageindex indexifembedded noodp noydir noai noimageai notrain".split()
)
_NAME: Final = re.compile(r"\s*([A-Za-z*][^\s:,]*)\s*:")
_SEPARATOR: Final = re.compile("[,;]")  # a semicolon is in no rule; some servers write it
_QUOTES: Final = " \t\r\n'\""


def is_opted_out(
    headers: Iterable[str],
    token: str | None,
    refused: Iterable[str],
    now: datetime | None = None,
) -> bool:
    """Say whether these X-Robots-Tag headers ask not to use what they came with.

    `token`: our own robot's name; `refused`: the rules that are opt-outs, such as `noai`.
    """
    wanted = {rule.strip().lower() for rule in refused}
    if "noindex" in wanted:
        wanted.add("none")  # the specification: "equivalent to noindex, nofollow"
    ours = _OUR_NAMES | ({token.strip().lower()} if token else set())
    when = now or datetime.now(UTC)
    for header in headers:
        for name, rule, value in _rules(header, wanted):
            if name is not None and name not in ours:
                continue
            if rule in wanted or (rule == _UNTIL and "noindex" in wanted and _past(value, when)):
                return True
    return False


def _rules(header: str, wanted: set[str]) -> Iterator[tuple[str | None, str, str]]:
    """Yield (whose, rule, value), all lower case but the value; None: everybody's."""
    whose: str | None = None
    pieces = [piece.strip(_QUOTES) for piece in _SEPARATOR.split(header)]
    while pieces:
        piece = pieces.pop(0)
        while found := _NAME.match(piece):
            name = found[1].lower()
            if name in _WITH_VALUE or name == _UNTIL or name in _RULES or name in wanted:
                break
            whose, piece = name.partition("/")[0], piece[found.end() :].strip(_QUOTES)
        rule, _, value = piece.partition(":")
        rule = rule.strip(_QUOTES).lower()
        if rule == _UNTIL:
            while pieces and any(letter.isdigit() for letter in pieces[0]):
                if _NAME.match(pieces[0]):
                    break
                value += ", " + pieces.pop(0)
        yield whose, rule, value.strip(_QUOTES)


def _past(date: str, now: datetime) -> bool:
    """Say whether a date in one of the forms that are in use lies before `now`."""
    when: datetime
    try:
        when = datetime.fromisoformat(date)
    except ValueError:
        try:
            when = parsedate_to_datetime(date)
        except (ValueError, TypeError, IndexError):
            return False
    return (when if when.tzinfo else when.replace(tzinfo=UTC)) < now
