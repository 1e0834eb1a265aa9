"""Rows that end their process: real crashes in real processes, each booked at its own row."""

import contextlib
import csv
import io
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import capfilt
from capfilt import schema
from capfilt.engine import isolation
from capfilt.engine.deaths import Attempts
from capfilt.engine.executors import Processes
from capfilt.engine.isolation import booked
from capfilt.engine.plan import PlannedStage, RunReader, compile_plan
from capfilt.engine.worker import PassJob
from capfilt.errors import InputError, WorkerError
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.models.recipe import ModelRef
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb
from capfilt.stage import Resource, Transform
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.phash import Phash
from capfilt.stages.download import Download
from capfilt.stages.match import MatchCaptions, MatchWeb
from capfilt.stages.policies.blip import Select
from tests.places import local

ROOT = Path(capfilt.__file__).parents[1]
SHARDS = ("aaaaaaaa-5-1", "bbbbbbbb-7-2", "cccccccc-1-3", "dddddddd-2-4")


@dataclass(frozen=True)
class Judge:
    """Adds a text and an error to each row; a key that holds `fatal` ends its process.

    `most_rows`: more than so many at a time end it too, as a shortage of memory would.
    """

    fatal: tuple[str, ...] = ()
    most_rows: int = 1_000_000
    opens: bool = True
    rows_per_call: int | None = None

    name = "judge"
    version = 1
    resource: ClassVar[Resource] = "model"
    needs = ("key",)
    adds = pa.schema([pa.field("judged", pa.string()), pa.field("judge_error", pa.string())])

    def open(self) -> AbstractContextManager[Transform]:
        if not self.opens:
            os._exit(3)
        return contextlib.nullcontext(self._judged)

    def _judged(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        keys = rows.column("key").to_pylist()
        if any(key in self.fatal for key in keys) or len(keys) > self.most_rows:
            os.abort()
        if "refuse" in self.fatal:
            raise InputError("no such model")
        texts = [f"about {key}" for key in keys]
        return pa.record_batch([texts, pa.nulls(len(keys), pa.string())], schema=self.adds)


@dataclass(frozen=True)
class After:
    """Adds what it finds of `judged`: a stage behind the one that crashes."""

    name = "after"
    version = 1
    resource: ClassVar[Resource] = "model"
    rows_per_call: ClassVar[int | None] = None
    needs = ("judged",)
    adds = pa.schema([pa.field("seen", pa.string())])

    def open(self) -> AbstractContextManager[Transform]:
        return contextlib.nullcontext(_seen)


def _seen(rows: pa.RecordBatch) -> pa.RecordBatch:
    seen = [text and text.upper() for text in rows.column("judged").to_pylist()]
    return pa.record_batch([pa.array(seen, pa.string())], names=["seen"])


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "run")
    for shard in SHARDS:
        count = int(shard.split("-")[1])
        rows = [
            {"key": f"{shard[0]}{n}", "source_status": "ok", "attempt": 0} for n in range(count)
        ]
        table = pa.Table.from_pylist(rows, schema.SOURCE)
        assert ledger.commit(Receipt(source.STAGE, shard, count), table)
    return ledger


def run(ledger: Ledger, judge: Judge, workers: int = 2) -> dict[str, dict[str, str | None]]:
    """Run both stages; returns the rows by key."""
    plan = compile_plan([judge, After()], SHARDS)
    Processes(workers).run(PassJob(str(ledger.root), plan, plan.stages), SHARDS, lambda _: None)
    reader = RunReader(ledger, plan)
    tables = [reader.read(s, ["key", "judged", "judge_error", "seen"]) for s in SHARDS]
    for shard in SHARDS:
        for planned in plan.stages:
            assert ledger.check(planned.id, shard, planned.stage.adds).version == 1
    return {row["key"]: row for table in tables for row in table.to_pylist()}


@pytest.mark.slow
def test_the_rows_that_end_their_process_are_found_and_booked(ledger: Ledger) -> None:
    fatal = ("b5", "d0")
    rows = run(ledger, Judge(fatal))
    assert len(rows) == 5 + 7 + 1 + 2
    for key, row in rows.items():
        if key in fatal:
            assert row["judge_error"] == "crashed_decoder: signal 6 (SIGABRT)"
            assert row["judged"] is row["seen"] is None
        else:
            assert (row["judged"], row["judge_error"]) == (f"about {key}", None)
            assert row["seen"] == f"ABOUT {key.upper()}"


@pytest.mark.slow
def test_what_no_single_row_does_books_nothing(ledger: Ledger) -> None:
    rows = run(ledger, Judge(most_rows=6))
    assert all(row["judged"] == f"about {key}" for key, row in rows.items())
    assert {row["judge_error"] for row in rows.values()} == {None}


@pytest.mark.slow
def test_a_machine_on_which_every_row_crashes_is_told_and_books_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_MOST_BOOKED", 1)
    every = Judge(tuple(f"a{number}" for number in range(5)))
    with pytest.raises(WorkerError, match="no fault of single pictures"):
        isolated(ledger, every)
    assert ledger.stages() == [source.STAGE]


_ALONE = """
import sys
from capfilt.engine.executors import Serial
from tests.e2e.test_crashes import *
fatal = tuple(filter(None, sys.argv[2].split(",")))
plan = compile_plan([Judge(fatal), After()], SHARDS)
Serial().run(PassJob(sys.argv[1], plan, plan.stages), SHARDS, lambda _: None)
"""


@pytest.mark.slow
def test_a_run_of_one_process_that_dies_at_a_shard_is_careful_the_third_time(
    ledger: Ledger,
) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _ALONE, str(ledger.root), "b5"]
    codes = [subprocess.run(command, env=env, check=False).returncode for _ in range(3)]
    assert codes == [-signal.SIGABRT, -signal.SIGABRT, 0]
    plan = compile_plan([Judge(("b5",)), After()], SHARDS)
    rows = RunReader(ledger, plan).read(SHARDS[1], ["key", "judge_error"]).to_pylist()
    errors = [row["key"] for row in rows if row["judge_error"]]
    assert errors == ["b5"]
    assert list((ledger.root / ".attempts").iterdir()) == []


def test_an_exception_or_a_living_process_is_no_death(ledger: Ledger) -> None:
    attempts = Attempts(local(ledger.root))
    with pytest.raises(ZeroDivisionError), attempts.noted("x-1~shard"):
        raise ZeroDivisionError
    with attempts.noted("x-1~shard"), attempts.noted("x-1~shard"), attempts.noted("x-1~shard"):
        assert not attempts.is_deadly("x-1~shard")
    assert not attempts.is_deadly("x-1~shard")


def isolated(ledger: Ledger, *stages: Judge) -> None:
    plan = compile_plan(stages, SHARDS)
    PassJob(str(ledger.root), plan, plan.stages).rescue(SHARDS[0])


def test_a_stage_that_ends_its_process_when_it_opens_is_no_fault_of_a_row(ledger: Ledger) -> None:
    with pytest.raises(WorkerError, match="when it opens: exit code 3"):
        isolated(ledger, Judge(opens=False))


def test_an_error_that_a_stage_raises_on_purpose_keeps_its_kind(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="no such model"):
        isolated(ledger, Judge(("refuse",)))


def test_every_stage_that_decodes_pictures_can_book_a_row() -> None:
    model = ModelRef("digest", "name", "path")
    matching = [kind(model) for kind in (MatchWeb, MatchCaptions)]
    for stage in (Download(), Phash(), Caption(model), *matching):
        row = booked(PlannedStage(stage, f"{stage.name}-1", ()), "signal 9 (SIGKILL)")
        assert row.schema == stage.adds
        told = [value for value in row.to_pylist()[0].values() if value is not None]
        assert told in (
            [],
            ["crashed_decoder: signal 9 (SIGKILL)"],
            [schema.FAILED_TO_RESIZE, "crashed_decoder", "signal 9 (SIGKILL)"],
        )
    with pytest.raises(WorkerError, match="cannot be null"):
        booked(PlannedStage(Select(), "select-1", ()), "signal 9 (SIGKILL)")


# --- the command line

_PLUGIN = """
import os
import signal
from PIL import Image
Image.init()
def crashing(fp, filename):
    os.abort()
Image.register_open("XVTHUMB", crashing, lambda prefix: prefix[:8] == b"CRASHING")
"""


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (80, 60), (shade, 90, 200)).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_pictures_that_crash_cost_their_rows_and_nothing_is_fetched_twice(
    workers: int, tmp_path: Path
) -> None:
    site, web = tmp_path / "site", tmp_path / "web"
    site.mkdir()
    web.mkdir()
    (site / "sitecustomize.py").write_text(_PLUGIN)
    names = [f"{number}.jpg" for number in range(12)]
    for number, name in enumerate(names):
        bad = number in (3, 8)
        (web / name).write_bytes(b"CRASHING" + bytes(20) if bad else jpeg(20 * number))
    with WebServer(SimulatedWeb(seed=1), folder=web) as server:
        with (tmp_path / "urls.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["url", "caption"])
            writer.writerows([server.url(name), f"picture {name}"] for name in names)
        command = [sys.executable, "-m", "capfilt", "run", str(tmp_path / "urls.csv")]
        command += ["--run", str(tmp_path / "run"), "--policy", "raw", "--allow-private-hosts"]
        command += ["--workers", str(workers), "--shard-rows", "5", "--dedup", "none", "--quiet"]
        path = os.pathsep.join((str(site), str(ROOT)))
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        hits = [server.hits[f"/{name}"] for name in names]
    assert hits == [1] * len(names)
    files = sorted((tmp_path / "run" / "stages").glob("download-*/*.parquet"))
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    crashed = [row for row in rows if row["failure"] == "crashed_decoder"]
    assert [row["status"] for row in crashed] == [schema.FAILED_TO_RESIZE] * 2
    assert {row["error_message"] for row in crashed} == {"signal 6 (SIGABRT)"}
    assert sum(row["status"] == schema.SUCCESS for row in rows) == 10
