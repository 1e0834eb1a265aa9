import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.errors import DamageError
from capfilt.export import ExportConfig
from capfilt.fingerprint import fingerprint
from capfilt.models.recipe import Beam, FilterRecipe, Lengths, ModelRef, Nucleus
from capfilt.plain import from_plain, published_plain, to_plain
from capfilt.recipe.round import Round
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.download import Download, Resize
from capfilt.stages.policies.blip import Select

texts = st.text(max_size=8)
maybe = st.none() | texts
models = st.builds(ModelRef, texts, texts, texts, maybe, maybe, maybe)
shares = st.floats(0.01, 1.0)
precisions = st.sampled_from(["fp32", "bf16"])
decodings = st.one_of(
    st.builds(Nucleus, shares, st.integers(0, 99), shares, shares),
    st.builds(Beam, st.integers(3, 9), shares),
)
rounds = st.builds(
    Round,
    caption=st.builds(
        Caption,
        models,
        num_captions=st.integers(1, 3),
        decoding=decodings,
        lengths=st.builds(Lengths, st.integers(0, 5), st.integers(5, 20)),
        prompt=texts,
        seed=st.integers(),
        precision=precisions,
    ),
    matching=st.builds(FilterRecipe, models, st.sampled_from(["enc", "cls"]), precisions),
    fetch=st.builds(
        Download,
        resize=st.builds(
            Resize,
            image_size=st.integers(1, 999),
            resize_mode=st.sampled_from(["no", "keep_ratio", "border"]),
            skip_reencode=st.booleans(),
        ),
        allow_private_hosts=st.booleans(),
        user_agent_token=st.one_of(st.none(), texts),
        disallowed_header_directives=st.lists(texts, max_size=3).map(tuple),
        timeout=shares,
    ),
    dedup=st.one_of(st.none(), st.builds(Dedup, st.sampled_from(["phash", "embedding", "both"]))),
    select=st.builds(Select, threshold=shares),
    export=st.builds(ExportConfig, target_bytes=st.integers(1)),
    shard_rows=st.integers(1, 2000),
)
ROUND = Round(Caption(ModelRef("c", "c", "/c")), FilterRecipe(ModelRef("m", "m", "/m")))


def plain_round() -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(to_plain(ROUND)))
    return plain


@settings(max_examples=60, deadline=None)
@given(rounds)
def test_a_round_comes_back_from_json_as_it_was(recipe: Round) -> None:
    back = from_plain(Round, json.loads(json.dumps(to_plain(recipe))))
    assert back == recipe
    assert fingerprint(back) == fingerprint(recipe)


def test_a_union_comes_back_as_the_member_that_it_was() -> None:
    for decoding in (Nucleus(top_p=0.5), Beam(4)):
        caption = Caption(ModelRef("c", "c", "/c"), decoding=decoding)
        back = from_plain(Caption, to_plain(caption))
        assert type(back.decoding) is type(decoding)
        assert back == caption


def test_a_whole_number_is_a_float_where_a_float_belongs() -> None:
    plain = {**to_plain(Select()), "threshold": 1}
    assert fingerprint(from_plain(Select, plain)) == fingerprint(Select(threshold=1.0))


def test_a_field_with_a_default_may_be_missing() -> None:
    """A round that an older capfilt saved, before the field was there."""
    plain = plain_round()
    del plain["shard_rows"], plain["caption"]["decoding"]["top_k"]
    assert from_plain(Round, plain) == ROUND


# (where, what is put there, what the error must name); `...` takes the field away.
FAULTS: list[tuple[str, Any, str]] = [
    ("colour", "red", "Round has no colour"),
    ("caption.colour", "red", "Round.caption has no colour"),
    ("caption.decoding.top_q", 1, "Round.caption.decoding has no top_q"),
    ("caption.model.digest", ..., "digest"),
    ("matching", ..., "matching"),
    ("shard_rows", "many", "Round.shard_rows is 'many', not a int"),
    ("shard_rows", 2.5, "Round.shard_rows is 2.5"),
    ("shard_rows", None, "Round.shard_rows is None"),
    ("caption.seed", None, "Round.caption.seed is None"),
    ("caption.prompt", ["x"], "Round.caption.prompt is"),
    ("caption.precision", "fp8", "Round.caption.precision is 'fp8'"),
    ("caption.precision", None, "Round.caption.precision is None"),
    ("caption.decoding", 3, "Round.caption.decoding is 3"),
    ("caption.decoding", None, "Round.caption.decoding is None"),
    ("caption.decoding.type", "Popen", "Round.caption.decoding is"),
    ("caption.decoding.type", ..., "type"),
    ("caption.model", [], "Round.caption.model is"),
    ("caption.model", "", "Round.caption.model is"),
    ("caption.model", None, "Round.caption.model is None"),
    ("dedup", 7, "Round.dedup is 7"),
    ("dedup", [], "Round.dedup is"),
    ("fetch.disallowed_header_directives", [1], "disallowed_header_directives is 1"),
    ("fetch.disallowed_header_directives", 1, "directives is .*, not a tuple"),
    ("fetch.disallowed_header_directives", "noai", "directives is .*, not a tuple"),
    ("select.threshold", "0.5", "Round.select.threshold is '0.5'"),
]


@pytest.mark.parametrize(("where", "value", "named"), FAULTS, ids=lambda part: str(part)[:30])
def test_what_does_not_fit_is_named(where: str, value: Any, named: str) -> None:
    plain = plain_round()
    *parents, last = where.split(".")
    at = plain
    for parent in parents:
        at = at[parent]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    with pytest.raises(DamageError, match=named) as told:
        from_plain(Round, plain)
    assert "does not fit this capfilt" in str(told.value)


@pytest.mark.parametrize("plain", [None, [], {}, "Round", 3, {"type": "Round"}])
def test_what_is_no_round_at_all_is_damage(plain: object) -> None:
    with pytest.raises(DamageError):
        from_plain(Round, plain)


def test_only_classes_that_the_hints_name_are_built() -> None:
    for name in ("Popen", "Round", "Caption", "dict", "Path"):
        plain = plain_round()
        plain["caption"]["decoding"] = {"type": name, "args": ["touch", "x"]}
        with pytest.raises(DamageError, match="none of"):
            from_plain(Round, plain)


def test_records_of_before_commits_were_kept_still_load() -> None:
    plain = plain_round()
    for name in ("commit", "adapter", "base"):
        del plain["caption"]["model"][name]
        del plain["matching"]["model"][name]
    assert from_plain(Round, plain) == ROUND


def test_where_a_model_came_from_is_no_part_of_what_it_is() -> None:
    here = ModelRef("d", "org/name@v1", "/a", "abcdef0123456", None, None)
    there = ModelRef("d", "folder", "/b", None, "/c", "org/base@1234567")
    assert fingerprint(here) == fingerprint(there)
    assert here.described == "org/name@abcdef0"
    assert there.described == "folder on org/base@1234567"
    assert ModelRef("d", "a@b", "/a@b").described == "a@b"


def test_what_is_published_has_neither_places_nor_agents_nor_speeds() -> None:
    fetch = Download(user_agent="me@example.org", referer="http://own.example", threads=3)
    model = ModelRef("d1", "org/name", "/home/me/model", commit="c" * 40, base="org/base")
    plain = published_plain(Round(Caption(model), FilterRecipe(model), fetch))
    told = json.dumps(plain)
    for private in ("me@example.org", "own.example", "/home/me", "threads", "device", "proxy"):
        assert private not in told
    for origin in ("org/name", "c" * 40, "org/base", "d1", "max_bytes"):
        assert origin in told
