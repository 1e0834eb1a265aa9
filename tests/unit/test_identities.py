"""Identities of stages, as finished runs have them: a change here does a user's work again.

They change only where what comes out changes, by the stage's `version` (and its `changes`); then
the new one is written here. All but download (version 3) and dedup (3) are those of the first
release's first runs.
"""

from typing import Any, Final

import pytest

from capfilt.engine.plan import compile_plan
from capfilt.fingerprint import fingerprint
from capfilt.models.checkpoints import EMBEDDED_FOLDER
from capfilt.models.recipe import Lengths, Nucleus
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.options import RoundOptions, build_round, round_flags
from capfilt.recipe.round import Round

CASES: Final[dict[str, dict[str, Any]]] = {
    "the defaults": {},
    "beams": {"num_captions": 3, "beams": 4, "precision": "bf16"},
    "raw": {"policy": "raw"},
    "datacomp": {"policy": "datacomp", "score": "itc"},
    "nguyen": {"policy": "nguyen", "score": "itm", "dedup": "phash"},
    "blip2": {"policy": "blip2", "score": "itc"},
    "cls": {"itm_token": "cls", "threshold": 0.3, "origins": "web"},
    "laion-coco": {"policy": "laion-coco", "scorer": str(EMBEDDED_FOLDER / "matcher")},
    "fusion": {"policy": "fusion", "scorer": str(EMBEDDED_FOLDER / "matcher")},
}
KNOWN: Final = (
    ("the defaults", "download", "82e7bf0650be261f"),
    ("the defaults", "phash", "5026c72ff8d39863"),
    ("the defaults", "caption", "ed63274b5d3cd5b3"),
    ("the defaults", "match_web", "e60db7c3791c48a5"),
    ("the defaults", "match_captions", "4d37464ff7281744"),
    ("the defaults", "dedup", "18980ec80be10e7f"),
    ("the defaults", "select", "78608f7fe4c66046"),
    ("beams", "caption", "01c115829aea76f1"),
    ("beams", "match_web", "98e5a4fe76f808eb"),
    ("beams", "match_captions", "5ab725089349da21"),
    ("raw", "unjudged", "6daeb1fa492b05fc"),
    ("raw", "dedup", "42787e0072579efb"),
    ("raw", "select_raw", "5b093c34adebd32d"),
    ("datacomp", "select_basic", "837bae0e75695ea5"),
    ("nguyen", "dedup", "43110cf94175f7c0"),
    ("nguyen", "select_web_first", "4b50f5caec6f3435"),
    ("blip2", "select_top", "15d3cfc0ca9ce41b"),
    ("cls", "match_web", "c0f87cdf7a89a253"),
    ("cls", "match_captions", "bd899300f6969947"),
    ("cls", "select", "63c65c9f3595eb5e"),
    ("laion-coco", "score_web", "5119441341602a86"),
    ("laion-coco", "score_captions", "a0c47a57290b0f6b"),
    ("laion-coco", "select_reranked", "319ddccd7986180b"),
    ("fusion", "select_fused", "fc241ecf8207dcfe"),
)


@pytest.mark.parametrize(("case", "stage", "known"), KNOWN)
def test_stages_are_known_by_what_they_were(case: str, stage: str, known: str) -> None:
    (found,) = [s for s in build_round(RoundOptions(**CASES[case])).stages() if s.name == stage]
    assert fingerprint((found, found.version)) == known


def test_an_export_is_known_by_what_it_was() -> None:
    assert fingerprint(build_round(RoundOptions()).export) == "55cce989f6ed21d4"


FLOATS: Final = [
    name for name, flag in round_flags().items() if flag.hint in {float, tuple[float, ...]}
]


@pytest.mark.parametrize("name", FLOATS)
def test_a_whole_number_for_a_float_is_the_same_run(name: str) -> None:
    """In a pipeline file and from Python nobody writes 9.0; the record of a run reads it back."""
    given = {"policy": "datacomp", "score": "itc"} if name in {"threshold", "fraction"} else {}
    given |= {"policy": "mix"} if name in {"web_share", "score_temperature"} else {}
    whole, same = (build_round(RoundOptions(**given, **{name: one})) for one in (1, 1.0))
    again = from_plain(Round, to_plain(whole))
    ids = [[p.id for p in compile_plan(r.stages(), ["a"]).stages] for r in (whole, same, again)]
    assert ids[0] == ids[1] == ids[2]


def test_whole_numbers_in_recipes_are_floats() -> None:
    assert fingerprint(Nucleus(temperature=1)) == fingerprint(Nucleus(temperature=1.0))
    assert fingerprint(Lengths(min_length=1)) != fingerprint(Lengths(min_length=2))
