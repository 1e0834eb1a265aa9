"""X-Robots-Tag is read as its specification says; where it can be read in two ways, we are out."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.stages.download.robots import is_opted_out

REFUSED = ("noai", "noimageai", "noindex", "noimageindex")
NOW = datetime(2027, 1, 1, tzinfo=UTC)
OUT = [
    ["noai"],
    ["noai, noimageai"],
    ["NoAI"],
    [" index ,\tnoai "],
    ["max-image-preview:large, noai"],
    ["max-image-preview: large,noai"],
    ["noai, max-image-preview:large"],
    ["max-snippet:-1, max-image-preview:large, max-video-preview:-1, noimageai"],
    ["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"],
    ["unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, noai"],
    ["unavailable_after: Wednesday, 25-Jun-30 15:00:00 GMT, noai"],
    ["unavailable_after: 2030-06-25T15:00:00+02:00, noai"],
    ["unavailable_after: 2030-06-25, noai"],
    ["index, follow", "noimageindex"],
    ["otherbot: index", "noindex"],
    ["otherbot: noarchive, mybot: noai"],
    ["mybot: noai"],
    ["MyBot: NOAI"],
    ["mybot/2.1: nofollow, noai"],
    ["*: noindex"],
    ["img2dataset: noai"],
    ["capfilt: noindex"],
    ["mybot: max-snippet: 5, noai"],
    ["otherbot: mybot: noai"],
    ["none"],
    ["noai: yes"],
    ["noindex; nofollow"],
    ['"noai"'],
    ["unavailable_after: 25 Jun 2020 15:00:00 PST"],
    ["unavailable_after: Thu, 25 Jun 2020 15:00:00 GMT, index"],
    ["unavailable_after: 2020-06-25"],
    ["max-image-preview:large, otherbot: index, *: noai"],
]
IN = [
    [],
    [""],
    [" , ,"],
    ["index, follow"],
    ["all"],
    ["nofollow, noarchive, nosnippet, notranslate"],
    ["otherbot: noindex"],
    ["otherbot: noindex, noai"],  # the name is for all that follow in its header
    ["otherbot: max-snippet: 5, noai"],
    ["otherbot/1.0: noai"],
    ["otherbot: noai", "mybot: index"],
    ["mybot: index, otherbot: noai"],
    ["max-image-preview:none"],
    ["max-snippet: 0"],
    ["unavailable_after: 25 Jun 2030 15:00:00 PST"],
    ["unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, index"],
    ["unavailable_after: soon"],
    ["unavailable_after:"],
    ["noaim, xnoai, no ai"],
]


@pytest.mark.parametrize("headers", OUT, ids=str)
def test_opt_outs(headers: list[str]) -> None:
    assert is_opted_out(headers, "MyBot ", REFUSED, NOW)


@pytest.mark.parametrize("headers", IN, ids=str)
def test_no_opt_outs(headers: list[str]) -> None:
    assert not is_opted_out(headers, "MyBot ", REFUSED, NOW)


def test_without_a_token_rules_for_others_are_not_ours() -> None:
    assert not is_opted_out(["mybot: noai"], None, REFUSED, NOW)
    assert is_opted_out(["*: noai"], None, REFUSED, NOW)


def test_only_the_rules_that_are_asked_for_count() -> None:
    assert not is_opted_out(["noindex", "none"], None, ["noai"], NOW)
    assert not is_opted_out(["unavailable_after: 2020-01-01"], None, ["noai"], NOW)
    assert is_opted_out(["index, X-Own"], None, ["x-own "], NOW)
    assert not is_opted_out(["noai"], None, [], NOW)


_PLAIN = ("index", "nofollow", "max-snippet: 20", "max-image-preview:large", "notranslate")
_DATED = ("unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT", "unavailable_after: 2030-06-25")
RULES = st.sampled_from([*_PLAIN, *_DATED])


@given(st.lists(RULES, max_size=5), st.lists(RULES, max_size=5), st.sampled_from(REFUSED))
def test_an_opt_out_is_found_among_any_rules(before: list[str], after: list[str], out: str) -> None:
    rest = ", ".join([*before, *after])
    assert is_opted_out([", ".join([*before, out, *after])], None, REFUSED, NOW)
    assert is_opted_out([rest, out], None, REFUSED, NOW)
    assert not is_opted_out([rest], None, REFUSED, NOW)
    assert not is_opted_out(
        [", ".join(["otherbot: index", *before, out, *after])], None, REFUSED, NOW
    )


@given(st.lists(st.text(max_size=40), max_size=4))
def test_no_header_breaks_it(headers: list[str]) -> None:
    assert is_opted_out(headers, "mybot", REFUSED, NOW) in {True, False}
    assert is_opted_out([*headers, "noai"], "mybot", REFUSED, NOW)
