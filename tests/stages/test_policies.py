import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt import schema
from capfilt.cli.console import progress_bar
from capfilt.commands.hardware import Hardware
from capfilt.commands.run import run as run_round
from capfilt.engine.plan import compile_plan, is_barrier
from capfilt.errors import CapfiltError, InputError
from capfilt.inputs import InputSpec
from capfilt.models.clip import ClipMatcher
from capfilt.models.pixels import load_rgb
from capfilt.models.recipe import ScorerRecipe
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.options import (
    RoundOptions,
    build_round,
    default_round,
    exported_with,
    warnings_of,
)
from capfilt.recipe.round import Round
from capfilt.report.funnel import count_funnel
from capfilt.stages.dedup.barrier import Dedup
from capfilt.stages.match import ScoreCaptions, ScoreWeb
from capfilt.stages.policies.datacomp import BasicFilter
from capfilt.stages.policies.presets import POLICIES as PRESETS
from capfilt.stages.policies.presets import Policy, itm_threshold
from capfilt.stages.policies.ranked import Reranked, TopRanked
from capfilt.stages.policies.reasons import ALL_REASONS, REASONS
from capfilt.stages.policies.shares import Fused, WebFirst
from tests.models.tiny2 import save_clip
from tests.stages.test_contracts import png
from tests.stages.test_select import Tables

Row = dict[str, Any]
Outcome = tuple[bool, list[bool], str]
LIST = pa.list_(pa.float32())
TYPES = {
    "caption": pa.string(),
    "captions": pa.list_(pa.string()),
    "itm_score": pa.float32(),
    "caption_itm_scores": LIST,
    "itc_score": pa.float32(),
    "caption_itc_scores": LIST,
    "similarity": pa.float32(),
    "caption_similarities": LIST,
    "status": pa.string(),
    "caption_error": pa.string(),
    "match_error": pa.string(),
    "dup_of": pa.string(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
}
OF_WEB = ("itm_score", "itc_score", "similarity")
OF_OWN = ("caption_itm_scores", "caption_itc_scores", "caption_similarities")
POLICIES: list[Policy] = [
    TopRanked(),
    TopRanked(1, "itm", dedup=False),
    Reranked(),
    Reranked(2, 2, "itm", "itc"),
    WebFirst(),
    WebFirst(1.0, "itc"),
    BasicFilter(),
    BasicFilter(0.5, None, "itm"),
    Fused(),
    Fused(0.5, 0.0, 1.0, 0.0),
]
scores = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.just(math.nan))
words = st.sampled_from(["a dog", "A dog ", "a red cat", "the big red dog", "dog and cat", ""])
sides = st.sampled_from([199, 200, 600, 601])


@st.composite
def a_row(draw: st.DrawFn) -> Row:
    row: Row = dict.fromkeys(TYPES)
    row["status"] = draw(st.sampled_from([schema.SUCCESS, schema.SUCCESS, *REASONS[:4]]))
    row["caption"] = draw(st.one_of(st.none(), words))
    if row["status"] != schema.SUCCESS:
        return row
    row["original_width"], row["original_height"] = draw(sides), draw(sides)
    if draw(st.integers(0, 9)) == 0:
        return {**row, "caption_error": "torn", "match_error": "torn"}
    count = draw(st.integers(0, 4))
    row["captions"] = draw(st.lists(words, min_size=count, max_size=count))
    for web, own in zip(OF_WEB, OF_OWN, strict=True):
        row[web] = draw(scores) if row["caption"] else None
        row[own] = draw(st.lists(scores, min_size=count, max_size=count))
    row["dup_of"] = draw(st.sampled_from([None, None, None, "k"]))
    return row


def as_table(rows: Sequence[Row]) -> pa.Table:
    return pa.table({name: pa.array([r[name] for r in rows], t) for name, t in TYPES.items()})


def decide(policy: Policy, shards: Sequence[Sequence[Row]]) -> list[pa.RecordBatch]:
    tables = [as_table(rows).select(list(policy.needs)) for rows in shards]
    if is_barrier(policy):
        added = list(policy.solve(iter(tables)))
    else:
        with policy.open() as transform:
            added = [transform(_batch(table)) for table in tables]
    for batch, rows in zip(added, shards, strict=True):
        batch.validate(full=True)
        assert batch.schema == schema.SELECT
        assert batch.num_rows == len(rows)
    return added


def _batch(table: pa.Table) -> pa.RecordBatch:
    return pa.record_batch([c.combine_chunks() for c in table.columns], schema=table.schema)


def outcomes(policy: Policy, shards: Sequence[Sequence[Row]]) -> list[Outcome]:
    rows = [row for batch in decide(policy, shards) for row in batch.to_pylist()]
    return [(row["keep_web"], row["keep_captions"], row["reason"]) for row in rows]


# --- the policies, written as slowly and plainly as can be


@dataclasses.dataclass
class Text:
    index: int  # -1 is the web's
    said: str
    values: dict[str, float | None]


def fault(row: Row, dedup: bool) -> str | None:
    if row["status"] != schema.SUCCESS:
        return str(row["status"])
    if row["caption_error"]:
        return "undecodable"
    return "duplicate_image" if dedup and row["dup_of"] else None


def judged(row: Row, dedup: bool) -> list[Text]:
    if fault(row, dedup):
        return []
    texts = [Text(-1, row["caption"] or "", {name: row[name] for name in OF_WEB})]
    for index, text in enumerate(row["captions"] or []):
        values = {w: row[o][index] for w, o in zip(OF_WEB, OF_OWN, strict=True)}
        texts.append(Text(index, text, values))
    return texts


COLUMN = {"itm": "itm_score", "itc": "itc_score", "similarity": "similarity"}


def value(text: Text, score: str) -> float | None:
    found = text.values[COLUMN[score]]
    return None if found is None or math.isnan(found) else found


def best(texts: list[Text], score: str, count: int) -> list[Text]:
    """The best `count` that say different things; Python's sort leaves ties in their order."""
    there = [text for text in texts if value(text, score) is not None]
    found: list[Text] = []
    for text in sorted(there, key=lambda text: -(value(text, score) or 0.0)):
        if folded(text) not in map(folded, found):
            found.append(text)
    return found[:count]


def folded(text: Text) -> str:
    return text.said.strip().lower()


def cut_at(values: list[float], fraction: float) -> float:
    if not values:
        return math.inf
    return sorted(values, reverse=True)[math.ceil(round(fraction * len(values), 6)) - 1]


def once(texts: list[Text]) -> list[Text]:
    return [t for i, t in enumerate(texts) if folded(t) not in map(folded, texts[:i])]


def outcome(row: Row, dedup: bool, kept: list[Text], why: str = "no_text_kept") -> Outcome:
    indices = {text.index for text in kept}
    own = [index in indices for index in range(len(row["captions"] or []))]
    names = {(True, True): "kept_both", (True, False): "kept_web", (False, True): "kept_synthetic"}
    reason = fault(row, dedup) or names.get((-1 in indices, any(own)), why)
    return -1 in indices, own, reason


def plainly(policy: Policy, rows: list[Row]) -> list[Outcome]:
    dedup = policy.dedup
    every = [judged(row, dedup) for row in rows]
    if isinstance(policy, TopRanked):
        kept = [best(texts, policy.score, policy.keep) for texts in every]
    elif isinstance(policy, Reranked):
        kept = []
        for texts in every:
            own = [text for text in texts if text.index >= 0]
            listed = best(own, policy.first, policy.shortlist)
            in_order = sorted(listed, key=lambda text: text.index)
            kept.append(best(in_order, policy.second, policy.keep))
    elif isinstance(policy, WebFirst):
        kept = web_first(policy, every)
    elif isinstance(policy, BasicFilter):
        return basic(policy, rows, every)
    else:
        assert isinstance(policy, Fused)
        kept = fused(policy, every)
    return [outcome(row, dedup, texts) for row, texts in zip(rows, kept, strict=True)]


def web_first(policy: WebFirst, every: list[list[Text]]) -> list[list[Text]]:
    webs = [value(text, policy.score) for texts in every for text in texts if text.index < 0]
    cut = cut_at([v for v in webs if v is not None], policy.fraction)
    kept = []
    for texts in every:
        good = [t for t in texts if (v := value(t, policy.score)) is not None and v >= cut]
        web = [t for t in good if t.index < 0]
        kept.append(web or best(good, policy.score, 1))
    return kept


def basic(policy: BasicFilter, rows: list[Row], every: list[list[Text]]) -> list[Outcome]:
    values = [value(text, policy.score) for texts in every for text in texts]
    there = [v for v in values if v is not None]
    cut = policy.threshold if policy.fraction is None else cut_at(there, policy.fraction)
    assert cut is not None
    found = []
    for row, texts in zip(rows, every, strict=True):
        good = [t for t in texts if (v := value(t, policy.score)) is not None and v >= cut]
        long = [t for t in good if len(t.said.split()) > 2 and len(t.said.strip()) > 5]
        pair = sorted([row["original_width"] or 0, row["original_height"] or 0])
        image = "extreme_aspect" if pair[1] > 3 * pair[0] else ""
        image = "small_image" if pair[0] < 200 else image
        why = image or ("short_text" if len(good) > len(long) else "no_text_kept")
        found.append(outcome(row, policy.dedup, [] if image else once(long), why))
    return found


def fused(policy: Fused, every: list[list[Text]]) -> list[list[Text]]:
    weights = {"itm": policy.itm, "itc": policy.itc, "similarity": policy.similarity}
    total: dict[int, float] = {id(text): 0.0 for texts in every for text in texts}
    for score, weight in weights.items():
        if not weight:
            continue
        there = [v for texts in every for t in texts if (v := value(t, score)) is not None]
        mean = float(np.mean(there)) if there else 0.0
        spread = float(np.std(there) if there else 0.0) or 1.0
        for text in (text for texts in every for text in texts):
            own = value(text, score)
            total[id(text)] += math.nan if own is None else weight * (own - mean) / spread
    rounded = {key: float(np.float32(v)) for key, v in total.items() if not math.isnan(v)}
    cut = cut_at(list(rounded.values()), policy.fraction)
    return [once([t for t in texts if rounded.get(id(t), -math.inf) >= cut]) for texts in every]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(a_row(), max_size=10), cuts=st.lists(st.integers(0, 10), max_size=2))
def test_a_policy_is_the_plain_one_however_the_rows_are_cut(
    policy: Policy, rows: list[Row], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    shards = [rows[a:b] for a, b in itertools.pairwise(edges)]
    assert outcomes(policy, shards) == plainly(policy, rows)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@settings(max_examples=20, deadline=None)
@given(rows=st.lists(a_row(), max_size=10), cut=st.integers(0, 10))
def test_the_funnel_adds_up(policy: Policy, rows: list[Row], cut: int) -> None:
    shards = [rows[:cut], rows[cut:]]
    tables = {}
    for name, part, added in zip("ab", shards, decide(policy, shards), strict=True):
        table = pa.table([*as_table(part).columns, *added.columns], [*TYPES, *schema.SELECT.names])
        tables[name] = table.append_column("attempt", pa.array([0] * len(part), pa.int32()))
    funnel = count_funnel(Tables(tables), len(rows))
    assert +funnel.reasons == Counter(reason for *_, reason in outcomes(policy, shards))
    assert sum(n for label, n in funnel.lines() if label != "input") == len(rows)
    assert set(funnel.reasons) <= set(ALL_REASONS)
    assert 0 <= funnel.web_kept <= funnel.web_judged
    assert 0 <= funnel.synthetic_kept <= funnel.synthetic_judged


def scored(web: float | None, *own: float, **more: Any) -> Row:
    texts = ["one", "two", "three", "four", "five", "six"]
    row: Row = dict.fromkeys(TYPES)
    row |= {"status": schema.SUCCESS, "caption": "web", "captions": texts[: len(own)]}
    row |= {"similarity": web, "caption_similarities": list(own)}
    return row | {"original_width": 300, "original_height": 300} | more


def test_blip2_keeps_the_two_best_and_of_equals_the_first() -> None:
    rows = [scored(0.2, 0.9, 0.1, 0.5), scored(0.5, 0.5, 0.5), scored(None, 0.1), scored(0.4)]
    assert outcomes(TopRanked(), [rows]) == [
        (False, [True, False, True], "kept_synthetic"),
        (True, [True, False], "kept_both"),
        (False, [True], "kept_synthetic"),
        (True, [], "kept_web"),
    ]


def test_blip2_gives_no_second_place_to_the_same_text() -> None:
    row = scored(0.3, 0.9, 0.8) | {"captions": ["a dog", " A DOG"]}
    assert outcomes(TopRanked(), [[row]]) == [(True, [True, False], "kept_both")]


def test_laion_coco_chooses_from_the_shortlist_alone() -> None:
    row = scored(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.1)
    row["caption_itc_scores"], row["itc_score"] = [0.1, 0.2, 0.6, 0.3, 0.6, 0.9], 1.0
    assert outcomes(Reranked(), [[row]]) == [
        (False, [False, False, True, False, False, False], "kept_synthetic")
    ]


def test_nguyen_takes_the_cut_of_all_shards() -> None:
    webs = [i / 10 for i in range(10)]  # the top 30 % begin at 0.7
    rows = [scored(web, 0.7, 0.8, 0.69) for web in webs]
    found = outcomes(WebFirst(), [rows[:4], rows[4:5], [], rows[5:]])
    assert [web for web, *_ in found] == [False] * 7 + [True] * 3
    assert found[0] == (False, [False, True, False], "kept_synthetic")
    assert found[9] == (True, [False] * 3, "kept_web")
    assert outcomes(WebFirst(), [rows[:4]])[3][0]  # other shards, another cut


def test_datacomp_takes_a_threshold_or_a_fraction() -> None:
    row = scored(0.5, 0.6) | {"caption": "a red dog", "captions": ["dog"]}
    assert outcomes(BasicFilter(0.5, None), [[row]]) == [(True, [False], "kept_web")]
    assert outcomes(BasicFilter(0.6, None), [[row]]) == [(False, [False], "short_text")]
    assert outcomes(BasicFilter(0.7, None), [[row]]) == [(False, [False], "no_text_kept")]
    for side, reason in ((199, "small_image"), (200, "kept_web"), (901, "extreme_aspect")):
        assert outcomes(BasicFilter(0.5, None), [[row | {"original_width": side}]])[0][2] == reason
    for both in ((0.5, 0.3), (None, None)):
        with pytest.raises(InputError, match="never both"):
            BasicFilter(*both)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TopRanked(0), "at least 1"),
        (lambda: Reranked(2, 3), "shortlist of 2"),
        (lambda: Reranked(first="itc"), "two scores"),
        (lambda: WebFirst(0.0), "above 0 and at most 1"),
        (lambda: WebFirst(math.nan), "above 0 and at most 1"),
        (lambda: BasicFilter(threshold=2.0, fraction=None), "at least -1 and at most 1"),
        (lambda: Fused(itm=0.0, similarity=0.0), "one above it"),
        (lambda: Fused(itm=-1.0), "numbers from 0"),
    ],
)
def test_figures_out_of_range_are_refused(make: Callable[[], Policy], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


# --- in a round


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("clip") / "clip"))


NAMES = ("blip", "blip2", "laion-coco", "nguyen", "datacomp", "fusion")


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_makes_a_round_that_fits_together_and_is_remembered(name: Any, clip: str) -> None:
    recipe = build_round(RoundOptions(policy=name, scorer=clip))
    assert recipe.select == PRESETS[name]()
    plan = compile_plan(recipe.stages(), ["a"])
    assert {"score_web", "score_captions"} <= {p.stage.name for p in plan.stages}
    assert from_plain(Round, to_plain(recipe)) == recipe
    assert (itm_threshold(recipe.select) == 0.5) == (name == "blip")
    assert (warnings_of(recipe) == []) == (name != "blip")


def test_a_scorer_changes_the_identity_of_nothing_that_is_there(clip: str) -> None:
    before = compile_plan(default_round().stages(), ["a"])
    after = compile_plan(build_round(RoundOptions(scorer=clip)).stages(), ["a"])
    ids = {planned.id for planned in before.stages}
    added = [p.stage.name for p in after.stages if p.id not in ids]
    assert added == ["score_web", "score_captions"]
    assert ids < {planned.id for planned in after.stages}


def test_policies_do_not_share_a_name() -> None:
    assert len({PRESETS[name]().name for name in PRESETS}) == len(NAMES) + 2
    assert set(PRESETS) == {*NAMES, "mix", "raw"}


def test_the_raw_policy_asks_no_model() -> None:
    recipe = build_round(RoundOptions(policy="raw"))
    assert recipe.models == ()
    assert recipe.precisions == ()
    assert recipe.dedup == Dedup("sha256")
    assert [s.name for s in recipe.stages()] == ["download", "unjudged", "dedup", "select_raw"]
    assert compile_plan(recipe.stages(), ["a"]).passes()
    assert warnings_of(recipe) == []
    assert from_plain(Round, to_plain(recipe)) == recipe
    hashed = build_round(RoundOptions(policy="raw", dedup="phash"))
    assert "phash" in [stage.name for stage in hashed.stages()]


@pytest.mark.parametrize("given", [{"captioner": "embedded"}, {"beams": 3}, {"dedup": "both"}])
def test_what_needs_a_model_is_refused_by_the_raw_policy(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="uses no model"):
        build_round(RoundOptions(policy="raw", **given))


@pytest.mark.parametrize("given", [{"threshold": 0.5}, {"origins": "web"}, {"keep_texts": 2}])
def test_a_figure_of_another_policy_is_refused_by_the_raw_policy(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no effect with the policy 'raw'"):
        build_round(RoundOptions(policy="raw", **given))


def test_options_land_in_the_policy(clip: str) -> None:
    ranked = build_round(RoundOptions(policy="blip2", score="itc", keep_texts=3)).select
    assert ranked == TopRanked(3, "itc")
    absolute = build_round(RoundOptions(policy="datacomp", scorer=clip, threshold=0.28)).select
    assert absolute == BasicFilter(0.28, None)
    by_itc = build_round(RoundOptions(policy="datacomp", score="itc"))
    again = exported_with(by_itc, {"threshold": 0.2})
    assert again.select == BasicFilter(0.2, None, "itc")
    assert build_round(RoundOptions(policy="nguyen", scorer=clip, fraction=0.5)).select == WebFirst(
        0.5
    )
    bf16 = build_round(RoundOptions(policy="blip2", scorer=clip, precision="bf16"))
    assert bf16.scorer is not None
    assert bf16.scorer.precision == "bf16"
    assert bf16.models[-1] == bf16.scorer.model


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"policy": "blip2"}, "give --scorer"),
        ({"policy": "blip2", "score": "itc", "threshold": 0.5}, "--threshold has no effect"),
        ({"fraction": 0.5}, "--fraction has no effect with the policy 'blip'"),
        ({"keep_texts": 2}, "--keep-texts has no effect"),
        ({"policy": "datacomp", "score": "itc", "threshold": 0.1, "fraction": 0.1}, "never both"),
        ({"scorer": "embedded-no"}, "there is no folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(CapfiltError, match=told):
        build_round(RoundOptions(**given))


def test_clip_as_the_matcher_has_no_itm(clip: str) -> None:
    with pytest.raises(InputError, match="no ITM score"):
        build_round(RoundOptions(matcher=clip))
    assert build_round(RoundOptions(matcher=clip, policy="blip2", score="itc")).scorer is None


def test_the_score_stages_give_the_scorers_similarities(clip: str) -> None:
    recipe = build_round(RoundOptions(policy="blip2", scorer=clip))
    assert isinstance(recipe.scorer, ScorerRecipe)
    images = [png(1), None, b"torn", png(2)]
    captions = ["a red circle", "cat", "cat", None]
    own = [["dog", " "], None, None, ["cat"]]
    web, synthetic = ScoreWeb(recipe.scorer.model), ScoreCaptions(recipe.scorer.model)
    batch = pa.record_batch(
        [pa.array(images, pa.binary()), pa.array(captions), pa.array(own, pa.list_(pa.string()))],
        ["image", "caption", "captions"],
    )
    with web.open() as of_web, synthetic.open() as of_own:
        found = of_web(batch.select(list(web.needs))).column("similarity").to_pylist()
        lists = of_own(batch.select(list(synthetic.needs))).column("caption_similarities")
    assert [score is None for score in found] == [False, True, True, True]
    assert [x if x is None else [s is None for s in x] for x in lists.to_pylist()] == [
        [False, True],
        None,
        None,
        [False],
    ]
    matcher = ClipMatcher(recipe.scorer.model)
    pixels = load_rgb(png(1), matcher.side, "crop")
    (expected,) = matcher.match([pixels], [["a red circle", "dog"]])[1]
    assert [found[0], lists[0].as_py()[0]] == pytest.approx(expected, abs=1e-6)


# --- whole rounds


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of pictures and the table of their captions."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "images").mkdir()
    lines = ["image,caption"]
    for number in range(6):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
        lines.append(f"{number}.png,a red circle {'left of a dog' * (number % 2)}")
    table = folder / "captions.csv"
    table.write_text("\n".join(lines) + "\n")
    return folder / "images", table


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_every_policy_runs_to_an_export_and_reuses_what_was_scored(
    local: tuple[Path, Path], clip: str, tmp_path: Path
) -> None:
    images, table = local
    spec = InputSpec((str(table),), kind="images", images_dir=str(images), image_col="image")
    said: list[str] = []
    scored: set[Path] = set()
    for name in NAMES:
        options = RoundOptions(policy=name, scorer=clip, num_captions=3, shard_rows=2)
        hardware = Hardware(workers=1, device="cpu")
        done = run_round(spec, options, tmp_path / "run", hardware, progress_bar(True), said.append)
        assert done.finished is not None
        assert sum(done.finished.funnel.reasons.values()) == 6
        card = (Path(done.finished.dataset) / "README.md").read_text()
        assert type(PRESETS[name]()).__name__ in card or name == "blip"
        files = set((tmp_path / "run" / "stages").glob("[cms]*/*.parquet"))
        models = {file for file in files if not file.parent.name.startswith("select")}
        assert models == (scored or models)  # only the first policy runs any model
        scored = models
        if name == "blip2":
            assert done.finished.rows == 12  # two texts of each image
        if name == "datacomp":
            assert +done.finished.funnel.reasons == Counter(small_image=6)
