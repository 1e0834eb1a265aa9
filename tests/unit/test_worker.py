"""Advancing shards with small stages of our own: races, slices, and what a bad stage is told."""

import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from PIL import Image

from capfilt import schema
from capfilt.engine.ahead import Ahead
from capfilt.engine.plan import Plan, PlannedStage, RunReader, compile_plan
from capfilt.engine.worker import PassJob, _computed, solve_barrier
from capfilt.errors import CapfiltError, DamageError, InputError, PlanError
from capfilt.fingerprint import NOT_IDENTITY
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.stage import Resource, Transform
from capfilt.stages.decoding import Decoded, ImageTransform

SHARDS = ("aaaaaaaa-5-1", "bbbbbbbb-7-2", "cccccccc-1-3")
Change = Callable[[pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True)
class Copy:
    """Adds the column `name` with what `take` holds, followed by `mark`."""

    name: str
    take: str = "key"
    mark: str = ""
    rows_per_call: int | None = None
    device: str = field(default="cpu", metadata=NOT_IDENTITY)
    # Told of each call with (device, batch); may raise, or return other columns.
    spy: Callable[[str, pa.RecordBatch], Any] = field(
        default=lambda *_: None, metadata=NOT_IDENTITY
    )

    version = 1
    resource: ClassVar[Resource] = "cpu"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.take,)

    @property
    def adds(self) -> pa.Schema:
        return pa.schema([pa.field(self.name, pa.string())])

    def open(self) -> AbstractContextManager[Transform]:
        return contextlib.nullcontext(self._copied)

    def _copied(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        instead = self.spy(self.device, rows)
        if instead is not None:
            return instead
        texts = [f"{text}{self.mark}" for text in rows.column(0).to_pylist()]
        return pa.record_batch([pa.array(texts, pa.string())], schema=self.adds)


def ignore(_: int) -> None:
    pass


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    for shard in SHARDS:
        count = int(shard.split("-")[1])
        rows = [
            {"key": f"{shard[0]}{n}", "source_status": "ok", "attempt": 0} for n in range(count)
        ]
        table = pa.Table.from_pylist(rows, schema.SOURCE)
        assert ledger.commit(Receipt(source.STAGE, shard, count), table)
    return ledger


def advance(ledger: Ledger, plan: Plan, *shards: str, told: Callable[[int], None] = ignore) -> None:
    with PassJob(str(ledger.root), plan, plan.stages).open(0, told) as do:
        for shard in shards or plan.shards:
            do(shard)


def texts(ledger: Ledger, plan: Plan, name: str, shard: str) -> list[str]:
    found: list[str] = RunReader(ledger, plan).read(shard, [name])[name].to_pylist()
    return found


def test_stages_of_a_pass_see_each_others_columns_and_are_all_published(ledger: Ledger) -> None:
    plan = compile_plan([Copy("a", mark="!"), Copy("b", "a", "?")], SHARDS)
    told: list[int] = []
    advance(ledger, plan, told=told.append)
    for shard in SHARDS:
        keys = ledger.read(source.STAGE, shard)["key"].to_pylist()
        assert texts(ledger, plan, "a", shard) == [f"{key}!" for key in keys]
        assert texts(ledger, plan, "b", shard) == [f"{key}!?" for key in keys]
        for planned in plan.stages:
            receipt = ledger.check(planned.id, shard, planned.stage.adds)
            assert (receipt.rows, receipt.counts) == (len(keys), {})
            assert receipt.seconds >= 0
    assert told == [5, 7, 1]


def test_the_smallest_wish_cuts_the_slices_and_changes_nothing(ledger: Ledger) -> None:
    whole = compile_plan([Copy("a"), Copy("b", "a")], SHARDS)
    advance(ledger, whole)
    seen: list[tuple[int, list[str]]] = []

    def spy(_: str, rows: pa.RecordBatch) -> None:
        seen.append((rows.num_rows, rows.schema.names))

    told: list[int] = []
    small = Copy("a", mark="'", rows_per_call=3, spy=spy)
    cut = compile_plan([small, Copy("b", "a", rows_per_call=4)], SHARDS)
    advance(ledger, cut, SHARDS[1], told=told.append)
    assert seen == [(3, ["key"]), (3, ["key"]), (1, ["key"])]  # no columns but those it needs
    assert told == [3, 3, 1]
    expected = texts(ledger, whole, "b", SHARDS[1])
    assert texts(ledger, cut, "b", SHARDS[1]) == [f"{text}'" for text in expected]


def test_what_is_done_is_not_done_again(ledger: Ledger) -> None:
    calls: list[str] = []
    first = Copy("a", spy=lambda *_: calls.append("a"))
    second = Copy("b", "a", spy=lambda *_: calls.append("b"))
    advance(ledger, compile_plan([first], SHARDS), SHARDS[0])
    plan = compile_plan([first, second], SHARDS)
    advance(ledger, plan, SHARDS[0])
    assert calls == ["a", "b"]
    advance(ledger, plan, SHARDS[0])
    assert calls == ["a", "b"]
    ledger.path(plan.stages[0].id, SHARDS[0]).unlink()
    advance(ledger, plan, SHARDS[0])
    assert calls == ["a", "b", "a"]


def test_a_worker_computes_on_its_device_under_the_same_identity(ledger: Ledger) -> None:
    devices: list[str] = []
    plan = compile_plan([Copy("a", spy=lambda device, _: devices.append(device))], SHARDS)
    job = PassJob(str(ledger.root), plan, plan.stages, ("cuda:0", "cuda:1"))
    for worker, shard in enumerate(SHARDS):
        with job.open(worker, ignore) as do:
            do(shard)
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]
    assert ledger.shards(plan.stages[0].id) == set(SHARDS)


def test_statuses_are_counted_in_the_receipt(ledger: Ledger) -> None:
    plan = compile_plan([Copy("status", "source_status")], SHARDS)
    advance(ledger, plan)
    assert ledger.receipt(plan.stages[0].id, SHARDS[1]).counts == {"ok": 7}


# --- races


def test_the_loser_of_a_race_builds_on_what_was_published(ledger: Ledger) -> None:
    """Another worker publishes `a` after we computed our own and before we publish it."""
    stages: list[Copy] = []
    theirs = pa.table({"a": [f"theirs {n}" for n in range(5)]})
    seen: list[str] = []

    def lose(_: str, rows: pa.RecordBatch) -> None:
        seen.append(rows.column("a")[0].as_py())
        ledger.commit(Receipt(plan.stages[0].id, SHARDS[0], 5), theirs)

    stages = [Copy("a", mark=" ours"), Copy("b", "a", spy=lose)]
    plan = compile_plan(stages, SHARDS)
    advance(ledger, plan, SHARDS[0])
    assert seen == ["a0 ours", "theirs 0"]  # the first was thrown away
    for name in ("a", "b"):
        assert texts(ledger, plan, name, SHARDS[0]) == theirs["a"].to_pylist()


def test_the_loser_of_the_last_column_leaves_the_winners(ledger: Ledger) -> None:
    def lose(_: str, __: pa.RecordBatch) -> None:
        winner = pa.table({"b": ["theirs"] * 5})
        ledger.commit(Receipt(plan.stages[1].id, SHARDS[0], 5), winner)

    plan = compile_plan([Copy("a"), Copy("b", "a", spy=lose)], SHARDS)
    advance(ledger, plan, SHARDS[0])
    assert texts(ledger, plan, "b", SHARDS[0]) == ["theirs"] * 5
    assert texts(ledger, plan, "a", SHARDS[0])[0] == "a0"


def _stamped(_: str, rows: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"a": [f"process {os.getpid()}"] * rows.num_rows})


def _race(root: Path, plan: Plan, gate: "multiprocessing.synchronize.Event") -> None:
    gate.wait()
    advance(Ledger(root), plan)


def test_racing_processes_never_mix_their_columns(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    shards = tuple(f"{number:08d}-2-x" for number in range(25))
    rows = [{"key": "k", "source_status": "ok", "attempt": 0}] * 2
    for shard in shards:
        ledger.commit(Receipt(source.STAGE, shard, 2), pa.Table.from_pylist(rows, schema.SOURCE))
    plan = compile_plan([Copy("a", spy=_stamped), Copy("b", "a"), Copy("c", "b")], shards)
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    racers = [context.Process(target=_race, args=(tmp_path, plan, gate)) for _ in range(3)]
    for racer in racers:
        racer.start()
    gate.set()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    for shard in shards:
        said = [texts(ledger, plan, name, shard) for name in "abc"]
        assert said[0] == said[1] == said[2]
        assert said[0][0].startswith("process ")


# --- stages that are wrong


def none_written(ledger: Ledger) -> bool:
    return ledger.stages() == [source.STAGE]


def one_row(count: int, name: str = "a") -> Callable[[str, pa.RecordBatch], pa.RecordBatch]:
    return lambda *_: pa.record_batch([pa.array(["x"] * count, pa.string())], names=[name])


@pytest.mark.parametrize(
    "spy",
    [
        one_row(4),
        one_row(6),
        one_row(0),
        one_row(5, "other"),
        lambda _, rows: pa.record_batch({"a": [1] * rows.num_rows}),
        lambda _, rows: pa.record_batch({"a": ["x"] * rows.num_rows, "b": ["x"] * rows.num_rows}),
    ],
    ids=["too few", "too many", "none", "another column", "another type", "one more column"],
)
def test_a_stage_that_is_not_row_aligned_is_told_with_its_shard(
    ledger: Ledger, spy: Callable[[str, pa.RecordBatch], Any]
) -> None:
    plan = compile_plan([Copy("a", spy=spy)], SHARDS)
    with pytest.raises(PlanError, match=f"stage {plan.stages[0].id} returned .*{SHARDS[0]}"):
        advance(ledger, plan)
    assert none_written(ledger)


def test_a_stage_that_fails_is_told_with_its_shard_and_reason(ledger: Ledger) -> None:
    def fail(_: str, __: pa.RecordBatch) -> None:
        raise ZeroDivisionError("by nothing")

    plan = compile_plan([Copy("a"), Copy("b", "a", spy=fail)], SHARDS)
    failed = f"stage {plan.stages[1].id} failed on shard {SHARDS[0]}: ZeroDivisionError"
    with pytest.raises(CapfiltError, match=failed) as told:
        advance(ledger, plan)
    assert isinstance(told.value.__cause__, ZeroDivisionError)
    assert none_written(ledger)  # not even what the stage before it had computed


def test_an_error_that_a_stage_raises_on_purpose_keeps_its_kind(ledger: Ledger) -> None:
    def refuse(_: str, __: pa.RecordBatch) -> None:
        raise InputError("no such model")

    with pytest.raises(InputError, match="no such model"):
        advance(ledger, compile_plan([Copy("a", spy=refuse)], SHARDS))


def test_shards_that_were_done_before_a_failure_are_kept(ledger: Ledger) -> None:
    def fail(_: str, rows: pa.RecordBatch) -> None:
        if rows.num_rows == 7:
            raise MemoryError

    plan = compile_plan([Copy("a", spy=fail)], SHARDS)
    with pytest.raises(CapfiltError, match=SHARDS[1]):
        advance(ledger, plan)
    assert ledger.shards(plan.stages[0].id) == {SHARDS[0]}


def test_a_missing_source_is_damage_that_names_the_file(ledger: Ledger) -> None:
    ledger.path(source.STAGE, SHARDS[2]).unlink()
    with pytest.raises(DamageError, match=f"{SHARDS[2]}.parquet is missing"):
        advance(ledger, compile_plan([Copy("a")], SHARDS))


# --- barriers


@dataclass(frozen=True)
class Totals:
    """Adds each row's place among the rows of all shards; `change` may spoil that."""

    change: Change = field(default=lambda batch: batch, metadata=NOT_IDENTITY)

    name = "totals"
    version = 1
    needs = ("key",)
    adds = pa.schema([pa.field("place", pa.int64())])

    def solve(self, shards: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
        tables = list(shards)
        start = 0
        for table in tables:
            assert table.schema.names == ["key"]
            places = range(start, start := start + table.num_rows)
            yield self.change(pa.record_batch([pa.array(places)], schema=self.adds))


def test_a_barrier_publishes_each_shards_own_rows(ledger: Ledger) -> None:
    plan = compile_plan([Totals()], SHARDS)
    told: list[int] = []
    for _ in range(2):  # the second time there is nothing to do
        solve_barrier(RunReader(ledger, plan), plan.stages[0], told.append)
    places = [ledger.read(plan.stages[0].id, shard)["place"].to_pylist() for shard in SHARDS]
    assert places == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11], [12]]
    assert told == [5, 7, 1]


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows.slice(1), lambda rows: rows.rename_columns(["other"])],
    ids=["too few rows", "another column"],
)
def test_a_barrier_that_is_not_row_aligned_is_told_with_its_shard(
    ledger: Ledger, change: Change
) -> None:
    plan = compile_plan([Totals(change)], SHARDS)
    with pytest.raises(PlanError, match=f"stage {plan.stages[0].id} returned .*{SHARDS[0]}"):
        solve_barrier(RunReader(ledger, plan), plan.stages[0], ignore)
    assert none_written(ledger)


def test_a_stage_that_works_on_shards_is_no_barrier(ledger: Ledger) -> None:
    plan = compile_plan([Copy("a")], SHARDS)
    with pytest.raises(PlanError, match="is not a barrier"):
        solve_barrier(RunReader(ledger, plan), plan.stages[0], ignore)


class Watched(Executor):
    """A pool that does its work at once, and is heard of."""

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def submit(self, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        self.heard.append("begun")
        done: Future[Any] = Future()
        done.set_result(fn(*args, **named))
        return done


def test_the_next_slice_is_decoded_before_the_stages_are_at_this_one() -> None:
    heard: list[str] = []
    read: list[str] = []

    @dataclass(frozen=True)
    class Looks:
        name = "looks"
        version = 1
        resource: ClassVar[Resource] = "model"
        rows_per_call = 2
        needs = ("image",)
        adds = pa.schema([pa.field("seen", pa.int32())])

        def open(self) -> AbstractContextManager[Transform]:
            return contextlib.nullcontext(ImageTransform(self._look, 8))

        def _look(self, batch: pa.RecordBatch, images: Decoded) -> pa.RecordBatch:
            heard.append(f"looked at {len(images.images)}")
            return pa.record_batch([pa.array([1] * batch.num_rows, pa.int32())], schema=self.adds)

    image = io.BytesIO()
    Image.new("RGB", (9, 9)).save(image, "PNG")
    table = pa.table({"image": pa.array([image.getvalue()] * 6, pa.binary())})

    class Reader:
        def read(self, shard: str, columns: list[str]) -> pa.Table:
            read.append(shard)
            return table

    reader: Any = Reader()  # reads are all that is asked of it
    stage = Looks()
    planned = PlannedStage(stage=stage, id="looks-1", upstream=())
    with stage.open() as transform:
        ahead = Ahead(reader, Watched(heard))
        ahead.expect("t")
        _computed((planned,), "s", lambda _: transform, ignore, ahead)
        ahead.expect(None)
        _computed((planned,), "t", lambda _: transform, ignore, ahead)
    begun, look = ["begun", "begun"], "looked at 2"
    first = [*begun, *begun, look, *begun, look, "begun", *begun, look]  # a read, two pictures
    assert heard == [*first, *begun, look, *begun, look, look]
    assert read == ["s", "t"]
