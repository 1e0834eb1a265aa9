import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt import schema
from capfilt.engine.plan import Plan, compile_plan
from capfilt.engine.verify import Kind, Problem, verify_ledger
from capfilt.engine.worker import PassJob
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.stage import Resource, Transform
from tests.places import local

SHARDS = ("aaaaaaaa-3-1", "bbbbbbbb-4-2", "cccccccc-2-3")


@dataclass(frozen=True)
class Count:
    """Writes a number for the column that it reads."""

    name: str
    needs: tuple[str, ...]

    version = 1
    resource: ClassVar[Resource] = "cpu"
    rows_per_call = None

    @property
    def adds(self) -> pa.Schema:
        return pa.schema([pa.field(f"{self.name}_n", pa.int64())])

    def open(self) -> AbstractContextManager[Transform]:
        return self._opened()

    @contextmanager
    def _opened(self) -> Iterator[Transform]:
        yield lambda rows: pa.record_batch([pa.array(range(rows.num_rows))], schema=self.adds)


@dataclass(frozen=True)
class Run:
    """A finished run of two stages, the second of which reads what the first adds."""

    ledger: Ledger
    plan: Plan

    @property
    def first(self) -> str:
        return self.plan.stages[0].id

    @property
    def second(self) -> str:
        return self.plan.stages[1].id

    def problems(self) -> list[tuple[Kind, str]]:
        return [(problem.kind, problem.path) for problem in self.found()]

    def found(self) -> list[Problem]:
        return verify_ledger(self.ledger, self.plan)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    ledger = Ledger(tmp_path)
    plan = compile_plan([Count("first", ("key",)), Count("second", ("first_n",))], SHARDS)
    with PassJob(str(tmp_path), plan, plan.stages).open(0, lambda _: None) as advance:
        for shard in SHARDS:
            rows = int(shard.split("-")[1])
            one = {"key": "k", "source_status": "ok", "attempt": 0}
            table = pa.Table.from_pylist([one] * rows, schema.SOURCE)
            ledger.commit(Receipt(source.STAGE, shard, rows), table)
            advance(shard)
    return Run(ledger, plan)


def test_a_sound_run_has_no_problems_and_every_row_is_told(run: Run) -> None:
    told: list[int] = []
    assert verify_ledger(run.ledger, run.plan, told.append) == []
    assert sum(told) == 3 * (3 + 4 + 2)


def test_what_is_not_done_yet_is_no_problem(run: Run) -> None:
    run.ledger.path(run.second, SHARDS[1]).unlink()
    assert run.problems() == []


def test_what_later_stages_were_computed_from_is_missed(run: Run) -> None:
    paths = [run.ledger.path(stage, SHARDS[1]) for stage in (source.STAGE, run.first)]
    for path in paths:
        path.unlink()
    found = run.found()
    assert ("missing", str(paths[0])) in [(one.kind, one.path) for one in found]
    assert ("missing", str(paths[1])) in [(one.kind, one.path) for one in found]
    assert all(one.detail for one in found)
    assert all(SHARDS[1] in one.path for one in found)


def test_a_missing_source_is_a_problem_before_any_stage(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    found = verify_ledger(ledger, compile_plan([], SHARDS))
    assert [(one.kind, Path(one.path).stem) for one in found] == [("missing", s) for s in SHARDS]


def damage(run: Run, content: bytes) -> str:
    """Replace a file of the first stage; returns the one problem's text, and holds its place."""
    path = local(run.ledger.path(run.first, SHARDS[0]))
    path.write_bytes(content)
    (problem,) = run.found()
    assert (problem.kind, problem.path) == ("damaged", str(path))
    return problem.detail


def test_a_torn_file_is_found_wherever_it_was_cut(run: Run) -> None:
    whole = run.ledger.path(run.first, SHARDS[0]).read_bytes()
    for length in range(0, len(whole), len(whole) // 12):
        assert "torn" in damage(run, whole[:length])
    assert "torn" in damage(run, whole[:-1])


def test_a_flipped_bit_is_found_wherever_it_is(run: Run) -> None:
    """Data pages and footer alike; of the footer, where it changes what is read."""
    path = local(run.ledger.path(run.first, SHARDS[0]))
    whole = path.read_bytes()
    data_bytes = run.ledger.receipt(run.first, SHARDS[0]).data_bytes
    for place in range(0, data_bytes, max(1, data_bytes // 20)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        assert damage(run, bytes(changed))
    path.write_bytes(whole)
    assert run.problems() == []


def test_a_file_of_another_shard_or_stage_is_found(run: Run) -> None:
    other = run.ledger.path(run.first, SHARDS[1]).read_bytes()
    assert f"foreign: its receipt is of {run.first} {SHARDS[1]}" in damage(run, other)
    other = run.ledger.path(run.second, SHARDS[0]).read_bytes()
    assert f"foreign: its receipt is of {run.second}" in damage(run, other)


def test_a_parquet_file_of_somebody_else_is_found(run: Run, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.parquet"
    pq.write_table(pa.table({"first_n": [0, 1, 2]}), stranger)
    assert "no capfilt receipt" in damage(run, stranger.read_bytes())
    assert "torn or foreign" in damage(run, b"")
    assert "torn or foreign" in damage(run, b"PAR1 no Parquet at all PAR1")


def test_other_rows_and_other_columns_than_planned_are_found(run: Run) -> None:
    path = local(run.ledger.path(run.first, SHARDS[0]))
    adds = run.plan.stages[0].stage.adds
    path.unlink()
    two = pa.table({"first_n": [0, 1]}, schema=adds)
    assert run.ledger.commit(Receipt(run.first, SHARDS[0], 2), two)
    assert "has 2 rows, its shard has 3" in damage(run, path.read_bytes())
    path.unlink()
    assert run.ledger.commit(Receipt(run.first, SHARDS[0], 3), two)
    assert "2 rows, its receipt says 3" in damage(run, path.read_bytes())
    path.unlink()
    renamed = pa.table({"other": [0, 1, 2]})
    assert run.ledger.commit(Receipt(run.first, SHARDS[0], 3), renamed)
    assert "other columns" in damage(run, path.read_bytes())


def test_files_that_no_stage_writes_are_found(run: Run) -> None:
    folder = local(run.ledger.folder(run.first))
    (folder / "notes.txt").write_text("mine")
    (folder / "folder.parquet").mkdir()
    (folder / SHARDS[0]).write_text("")
    names = {SHARDS[0], "folder.parquet", "notes.txt"}
    assert run.problems() == [("foreign", str(folder / name)) for name in sorted(names)]


def test_a_parquet_file_beside_the_shards_is_foreign_without_a_receipt(run: Run) -> None:
    path = local(run.ledger.path(run.first, "dddddddd-1-4"))
    pq.write_table(pa.table({"first_n": [0]}), path)
    assert run.problems() == [("foreign", str(path))]
    path.write_bytes(b"no Parquet at all")
    assert run.problems() == [("foreign", str(path))]
    path.unlink()
    assert run.ledger.commit(Receipt(run.first, path.stem, 1), pa.table({"first_n": [0]}))
    assert run.problems() == []  # a shard of another input of this folder


def test_a_folder_in_a_shards_place_is_damage(run: Run) -> None:
    path = local(run.ledger.path(run.first, SHARDS[0]))
    path.unlink()
    path.mkdir()
    assert ("damaged", str(path)) in run.problems()


def test_what_a_dead_process_left_is_found_and_what_a_living_one_writes_is_not(run: Run) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from capfilt.ledger.publish import Publisher\n"
        "held = Publisher(pathlib.Path(sys.argv[1])).scratch_dir()\n"
        "held.__enter__()\n"
        "os._exit(9)\n"
    )
    root = str(run.ledger.root)
    died = subprocess.run([sys.executable, "-c", script, root], check=False)
    assert died.returncode == 9
    with run.ledger.publisher.scratch_dir() as mine:
        (left,) = (p for p in mine.parent.iterdir() if p != mine and p.suffix != ".lease")
        assert run.problems() == [("unfinished", str(left))]
