"""The contract of every stage: row-aligned, deterministic, pure, frozen, and hurt row by row."""

import dataclasses
import io
import json
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from capfilt import schema
from capfilt.engine.plan import is_barrier
from capfilt.fingerprint import fingerprint
from capfilt.inputs.refs import file_ref
from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import Beam, FilterRecipe, Lengths, ModelRef
from capfilt.plain import from_plain, to_plain
from capfilt.recipe.round import Round
from capfilt.simweb.corruption import Noise
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb
from capfilt.stage import BarrierStage, Stage, Transform
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.barrier import Dedup, Method
from capfilt.stages.dedup.phash import Phash
from capfilt.stages.download import Download
from capfilt.stages.match import MatchCaptions, MatchWeb
from capfilt.stages.policies.blip import Select
from capfilt.stages.policies.raw import RawWeb, Unjudged

# img2dataset imports a module that Python has announced to remove.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

ROWS = 10
ALL = pa.schema(
    [
        *schema.SOURCE,
        *(f for f in schema.DOWNLOAD if f.name in {"status", "image", "sha256"}),
        *(*schema.CAPTION, *schema.MATCH_WEB, *schema.MATCH_CAPTIONS, *schema.PHASH),
        *schema.DEDUP,
    ]
)
WEB = SimulatedWeb(seed=5, noise=Noise().scaled(0.0))
METHODS: tuple[Method, ...] = ("sha256", "phash", "embedding", "both")
KINDS = (
    *("web", "local", "phash", "caption", "beams", "match_web", "match_captions"),
    *("select", "web_alone", "unjudged", "raw"),
)


def png(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((40 + seed, 50)).save(out, "PNG")
    return out.getvalue()


def row(number: int) -> dict[str, Any]:
    """A row that went well all the way, for any stage to read its part of."""
    turn = number // 2 * 0.3  # every picture comes twice
    return {
        "key": f"{number * 7919:032x}",
        "url": f"http://127.0.0.1:1/{number}.jpg",
        "caption": f"a {'small ' * (number % 3)}red circle",
        "image_ref": None,
        "source_status": schema.SOURCE_OK,
        "source_error": None,
        "attempt": 0,
        "status": schema.SUCCESS,
        "image": png(number),
        "sha256": f"{number:064x}",
        "captions": [f"a dog {number % 4}", "a green square"][: number % 3],
        "caption_error": None,
        "itm_score": number / ROWS,
        "itc_score": 0.0,
        "image_embedding": [float(np.cos(turn)), float(np.sin(turn))],
        "match_error": None,
        "caption_itm_scores": [0.7, 0.3][: number % 3],
        "caption_itc_scores": [0.1, 0.2][: number % 3],
        "phash": (1 << 6 * (number // 2)) - 1,
        "dup_of": "ab" if number == 7 else None,
    }


def batch(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pa.RecordBatch:
    fields = [ALL.field(name) for name in columns]
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in fields]
    return pa.record_batch(arrays, schema=pa.schema(fields))


@dataclass(frozen=True)
class Case:
    """A stage with its opened transform and rows that all go well."""

    stage: Stage
    transform: Transform
    rows: list[dict[str, Any]]

    def run(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        return self.transform(self.batch(rows))

    def batch(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        return batch(rows, self.stage.needs)


@pytest.fixture(scope="module")
def models(tiny_pair: tuple[Path, Path]) -> tuple[ModelRef, ModelRef]:
    captioner, matcher = map(str, tiny_pair)
    return resolve_model(captioner, "captioner"), resolve_model(matcher, "matcher")


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    models: tuple[ModelRef, ModelRef],
) -> Iterator[Case]:
    rows = [row(number) for number in range(ROWS)]
    with ExitStack() as held:
        if request.param == "web":
            server = held.enter_context(WebServer(WEB))
            for number, one in enumerate(rows):
                one["url"] = server.url(f"/img/{number:09d}.jpg")
        if request.param == "local":
            folder = tmp_path_factory.mktemp("pictures")
            for number, one in enumerate(rows):
                file = folder / f"{number}.png"
                file.write_bytes(one["image"])
                one["image_ref"] = file_ref(str(file), file.stat())
        stage = stage_of(request.param, *models)
        yield Case(stage, held.enter_context(stage.open()), rows)


def stage_of(kind: str, captioner: ModelRef, matcher: ModelRef) -> Stage:
    stages: dict[str, Stage] = {
        "web": Download(allow_private_hosts=True, threads=4),
        "local": Download(),
        "phash": Phash(),
        "caption": Caption(captioner, num_captions=2),
        "beams": Caption(captioner, decoding=Beam(), lengths=Lengths(1, 9)),
        "match_web": MatchWeb(matcher),
        "match_captions": MatchCaptions(matcher),
        "select": Select(),
        "web_alone": Select(origins="web"),
        "unjudged": Unjudged(),
        "raw": RawWeb(),
    }
    return stages[kind]


def as_bytes(given: pa.RecordBatch) -> bytes:
    content: bytes = given.serialize().to_pybytes()
    return content


def joined(parts: list[pa.RecordBatch], adds: pa.Schema) -> pa.Table:
    return pa.Table.from_batches(parts, adds).combine_chunks()


def taken(given: pa.RecordBatch, places: list[int]) -> pa.Table:
    return pa.Table.from_batches([given]).take(pa.array(places, pa.int64()))


def test_every_stage_of_a_round_is_held_to_the_contract(
    models: tuple[ModelRef, ModelRef],
) -> None:
    recipe = Round(caption=Caption(models[0]), matching=FilterRecipe(models[1]))
    rounds = [dataclasses.replace(recipe, dedup=Dedup(method)) for method in METHODS]
    rounds.append(dataclasses.replace(rounds[0], select=RawWeb()))
    used = {type(stage) for one in rounds for stage in one.stages()}
    assert used == {*(type(stage_of(kind, *models)) for kind in KINDS), Dedup}


def test_rows_in_are_rows_out_with_the_declared_columns(case: Case) -> None:
    added = case.run(case.rows)
    added.validate(full=True)
    assert added.num_rows == ROWS
    assert added.schema == case.stage.adds
    needed = set(case.stage.needs)
    assert not needed & set(case.stage.adds.names)
    results = {"download": "image", "match_web": "itm_score"}  # rows that go well all have these
    nulls = added.column(results.get(case.stage.name, added.schema.names[0])).null_count
    assert nulls == (ROWS if case.stage.name == "unjudged" else 0)


def test_the_same_rows_give_the_same_bytes_also_when_opened_again(case: Case) -> None:
    first = as_bytes(case.run(case.rows))
    assert as_bytes(case.run(case.rows)) == first
    with case.stage.open() as again:
        assert as_bytes(again(case.batch(case.rows))) == first


@pytest.mark.parametrize("cuts", [range(1, ROWS), (1,), (4, 5), (7,)], ids=str)
def test_any_split_into_batches_gives_the_same_columns(case: Case, cuts: Sequence[int]) -> None:
    whole = case.batch(case.rows)
    ends = [*cuts, ROWS]
    starts = [0, *ends]
    parts = [
        case.transform(whole.slice(at, end - at)) for at, end in zip(starts, ends, strict=False)
    ]
    expected = joined([case.transform(whole)], case.stage.adds)
    assert joined(parts, case.stage.adds).equals(expected)


def test_a_row_knows_nothing_of_its_place_and_its_neighbours(case: Case) -> None:
    whole = case.batch(case.rows)
    before = as_bytes(whole)
    added = case.transform(whole)
    assert as_bytes(whole) == before
    order = [int(place) for place in np.random.default_rng(3).permutation(ROWS)]
    assert order != sorted(order)
    shuffled = case.run([case.rows[place] for place in order])
    assert pa.Table.from_batches([shuffled]).equals(taken(added, order))


def test_no_rows_give_no_rows(case: Case) -> None:
    added = case.run([])
    assert added.num_rows == 0
    assert added.schema == case.stage.adds


# What can be wrong with a row, by the column that says it.
FAULTS: list[dict[str, Any]] = [
    {"image": None, "status": schema.FAILED_TO_DOWNLOAD, "itm_score": None, "sha256": None},
    {"image": b""},
    {"image": b"<html>no image</html>", "caption_error": "torn", "match_error": "torn"},
    {"image": png(1)[:60], "captions": None, "caption_itm_scores": None},
    {"caption": None, "itm_score": None},
    {"caption": ""},
    {"caption": " \u202e\x00 <script>'\n" * 50},
    {"captions": None, "caption_itm_scores": None},
    {"captions": [], "caption_itm_scores": []},
    {"captions": ["", "..."], "caption_itm_scores": [None, float("nan")]},
    {"source_status": schema.INVALID_URL, "source_error": "no address", "url": None},
    {"url": "http://127.0.0.1:1/nobody-listens.jpg", "image_ref": None},
    {"image_ref": '["file", "/nowhere/x.png", 1, 1]'},
]


@pytest.mark.parametrize("fault", FAULTS, ids="-".join)
def test_a_faulty_row_costs_itself_alone(case: Case, fault: dict[str, Any]) -> None:
    clean = case.run(case.rows)
    place = 4
    hurt = case.run([one | fault if n == place else one for n, one in enumerate(case.rows)])
    assert hurt.num_rows == ROWS
    hurt.validate(full=True)
    others = [number for number in range(ROWS) if number != place]
    assert taken(hurt, others).equals(taken(clean, others))
    touched = set(fault) & set(case.stage.needs)
    assert touched or hurt.equals(clean)  # what a stage does not read changes nothing of it


def broken(case: Case, fault: dict[str, Any]) -> dict[str, Any]:
    """Return what a stage adds to a row that has a fault."""
    (added,) = case.run([case.rows[4] | fault]).to_pylist()
    found: dict[str, Any] = added
    return found


@pytest.mark.parametrize("image", [b"", b"no image", png(1)[:60]], ids=["empty", "text", "torn"])
def test_a_broken_image_leaves_nulls_and_one_reason(case: Case, image: bytes) -> None:
    added = broken(case, {"image": image})
    if "image" not in case.stage.needs:
        assert added == broken(case, {})
        return
    reasons = [added.pop(name, None) for name in ("caption_error", "match_error")]
    told = {"caption", "match_web"}
    assert any(reasons) == (case.stage.name in told)
    assert "0x" not in str(reasons)  # an address in memory is another one in the next process
    assert set(added.values()) == {None}


def test_a_row_without_an_image_is_no_fault_of_the_models(case: Case) -> None:
    if "image" in case.stage.needs:
        assert set(broken(case, {"image": None}).values()) == {None}


@pytest.mark.parametrize("text", [None, "", "...", "\u3000"])
def test_a_web_text_of_nothing_has_no_score_but_its_image_has_an_embedding(
    models: tuple[ModelRef, ModelRef], text: str | None
) -> None:
    stage = MatchWeb(models[1])
    with stage.open() as transform:
        (added,) = transform(batch([row(0) | {"caption": text}], stage.needs)).to_pylist()
    assert (added["itm_score"], added["itc_score"], added["match_error"]) == (None, None, None)
    assert np.linalg.norm(added["image_embedding"]) == pytest.approx(1)


def test_synthetic_texts_and_their_scores_are_aligned(models: tuple[ModelRef, ModelRef]) -> None:
    texts: list[list[str] | None] = [None, [], [""], ["a dog", "...", "a cat"], ["a dog"]]
    rows = [row(number) | {"captions": own} for number, own in enumerate(texts)]
    stage = MatchCaptions(models[1])
    with stage.open() as transform:
        added = transform(batch(rows, stage.needs))
    for name in stage.adds.names:
        scores = added.column(name).to_pylist()
        assert [len(own or []) for own in scores] == [len(own or []) for own in texts]
        assert [score is None for score in scores[3]] == [False, True, False]


# --- what a stage is, apart from what it does


def stages(captioner: ModelRef, matcher: ModelRef) -> list[Stage | BarrierStage]:
    shard_stages = [stage_of(kind, captioner, matcher) for kind in KINDS]
    return [*shard_stages, *(Dedup(method) for method in METHODS)]


PLACELESS = ModelRef("c1", "captioner", "/nowhere"), ModelRef("m1", "matcher", "/nowhere")
EVERY = [pytest.param(stage, id=repr(stage)[:40]) for stage in stages(*PLACELESS)]


@pytest.mark.parametrize("stage", EVERY)
def test_a_stage_is_frozen_hashable_and_comes_back_from_json(stage: Any) -> None:
    for name in ("name", *(field.name for field in dataclasses.fields(stage))):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, name, None)
    same = from_plain(type(stage), json.loads(json.dumps(to_plain(stage))))
    assert same == stage
    assert hash(same) == hash(stage)
    assert fingerprint(same) == fingerprint(stage)
    assert stage.name.replace("_", "").isalpha()
    assert stage.name == stage.name.lower()
    assert stage.version >= 1


OTHERS = {"proxy": "env", "referer": "origin"}  # fields that not any text fits
OF_THE_MACHINE = {"proxy"}  # not recorded, and so not compared with what is


def other(value: Any, hint: Any) -> Any:
    """Return another value that the same field may have."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return next(choice for choice in choices if choice != value)
    if origin in {typing.Union, types.UnionType}:
        return "capfilt" if value is None else other(value, type(value))
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[1:]
    return f"{value}x" if isinstance(value, str) else value + 1 if type(value) is int else value / 2


def variants(value: Any) -> Iterator[tuple[str, bool, Any]]:
    """Yield (field, whether it is identity, `value` with it changed), nested recipes included."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        now = getattr(value, field.name)
        counts = field.metadata.get("capfilt_identity", True)
        if dataclasses.is_dataclass(now):
            for name, inner_counts, inner in variants(now):
                changed = dataclasses.replace(value, **{field.name: inner})
                yield f"{field.name}.{name}", counts and inner_counts, changed
        else:
            then = OTHERS.get(field.name) or other(now, hints[field.name])
            changed = dataclasses.replace(value, **{field.name: then})
            yield field.name, counts, changed


@pytest.mark.parametrize("stage", EVERY)
def test_identity_is_every_field_but_those_of_speed_and_place(stage: Any) -> None:
    seen = {fingerprint(stage)}
    for name, counts, changed in variants(stage):
        assert (changed != stage) == (name not in OF_THE_MACHINE), name
        assert (fingerprint(changed) not in seen) == counts, name
        seen.add(fingerprint(changed))


def test_the_fields_of_speed_and_place_are_these() -> None:
    found = {n for stage in stages(*PLACELESS) for n, counts, _ in variants(stage) if not counts}
    speed = {"device", "timeout", "total_timeout", "threads", "host_requests"}
    who = {"allow_private_hosts", "proxy", "user_agent", "referer"}
    place = {f"model.{name}" for name in ("name", "path", "commit", "adapter", "base")}
    assert found == speed | who | place


def test_another_kind_of_decoding_is_another_identity() -> None:
    drawn, searched = (stage_of(kind, *PLACELESS) for kind in ("caption", "beams"))
    assert fingerprint(drawn) != fingerprint(searched)
    matchers = stage_of("match_web", *PLACELESS), stage_of("match_captions", *PLACELESS)
    assert len({fingerprint(stage) for stage in matchers}) == 2


# --- barriers


def solved(stage: Dedup, shards: list[list[dict[str, Any]]]) -> list[pa.RecordBatch]:
    tables = [pa.Table.from_batches([batch(rows, stage.needs)]) for rows in shards]
    before = [table.to_pylist() for table in tables]
    added = list(stage.solve(iter(tables)))
    assert [table.to_pylist() for table in tables] == before
    return added


@pytest.mark.parametrize("method", METHODS)
def test_a_barrier_answers_each_shard_with_its_rows(method: Method) -> None:
    stage = Dedup(method)
    assert is_barrier(stage)
    rows = [row(number) for number in range(ROWS)]
    rows[3] = rows[3] | {"sha256": None, "phash": None, "image_embedding": None}
    rows[8] = rows[8] | {"sha256": rows[1]["sha256"], "itm_score": None}
    whole = solved(stage, [rows])
    assert any(joined(whole, stage.adds)["dup_of"].to_pylist())
    for shards in ([rows[:4], rows[4:]], [[one] for one in rows], [[], rows[:9], [], rows[9:]]):
        added = solved(stage, shards)
        assert [one.num_rows for one in added] == [len(own) for own in shards]
        assert all(one.schema == stage.adds for one in added)
        assert joined(added, stage.adds).equals(joined(whole, stage.adds))
        assert [as_bytes(one) for one in solved(stage, shards)] == [as_bytes(one) for one in added]
    (backwards,) = solved(stage, [rows[::-1]])
    assert backwards.to_pylist()[::-1] == whole[0].to_pylist()


@pytest.mark.parametrize("method", METHODS)
def test_a_barrier_over_nothing_adds_nothing(method: Method) -> None:
    assert solved(Dedup(method), []) == []
    assert [one.num_rows for one in solved(Dedup(method), [[], []])] == [0, 0]
