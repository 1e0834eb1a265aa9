"""`capfilt query`: what DuckDB sees of a run is what capfilt reads and exports."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.e2e.test_damage import capfilt
from tests.unit.test_exports import ROWS, Folder, finished, folder

__all__ = ["finished", "folder"]  # fixtures


def ask(run: Path, sql: str) -> list[dict[str, Any]]:
    done = capfilt("query", run, sql, "--json")
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


def test_the_texts_are_those_of_the_table_of_scores(folder: Folder) -> None:
    (file,) = folder.run.glob("export-*/scores.parquet")
    table = pq.read_table(file)
    found = ask(folder.run, "select * from texts order by key, caption_index nulls first")
    assert list(found[0]) == table.column_names
    rows = sorted(
        table.to_pylist(),
        key=lambda r: (r["key"], -1 if r["caption_index"] is None else r["caption_index"]),
    )
    assert found == rows
    assert {row["kept"] for row in found} == {True, False}


def test_the_rows_have_every_column_of_every_stage(folder: Folder) -> None:
    (row,) = ask(folder.run, "select count(*) n, count(distinct key) k from rows")
    assert (row["n"], row["k"]) == (ROWS, ROWS)
    (one,) = ask(folder.run, "select * from rows order by key limit 1")
    wanted = {"key", "caption", "status", "image", "phash", "captions", "itm_score", "dup_of"}
    assert wanted | {"caption_itm_scores", "keep_web", "reason"} <= set(one)
    best = "select max(itm_score) m from rows where keep_web"
    assert ask(folder.run, best)[0]["m"] > 0.5


def test_the_printed_view_is_for_a_duckdb_of_ones_own(folder: Folder, tmp_path: Path) -> None:
    printed = capfilt("query", folder.run, "--print-view").out
    with duckdb.connect(str(tmp_path / "own.duckdb")) as own:
        own.execute(printed)
        assert own.sql("select count(*) from rows").fetchall() == [(ROWS,)]


def test_a_run_that_is_not_finished_and_foreign_shards(folder: Folder) -> None:
    for stage in ("select", "dedup"):
        (place,) = (folder.run / "stages").glob(f"{stage}-*")
        shutil.rmtree(place)
    (scored,) = (folder.run / "stages").glob("match_captions-*")
    first, *_ = sorted(scored.iterdir())
    first.rename(first.with_name("f" * 16 + ".parquet"))  # of no shard of this round
    sql = "select origin, count(*) n, count(itm_score) s, count(kept) k from texts group by all"
    found = {row["origin"]: row for row in ask(folder.run, sql)}
    assert found["web"] == {"origin": "web", "n": ROWS, "s": ROWS, "k": 0}
    assert found["synthetic"] == {"origin": "synthetic", "n": ROWS, "s": ROWS - 10, "k": 0}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["selec 1"], "DuckDB: Parser Error"),
        (["select nothing from rows"], 'DuckDB: Binder Error: Referenced column "nothing"'),
        ([], "give a question in SQL, or --print-view"),
        (["select 1", "--print-view"], "give a question in SQL, or --print-view"),
    ],
)
def test_what_is_no_question_is_refused_in_one_line(
    words: list[str], told: str, folder: Folder
) -> None:
    done = capfilt("query", folder.run, *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert told in done.err


def test_a_person_is_shown_a_table_that_moves_no_cursor(folder: Folder) -> None:
    sql = "select 'a\x1b[2Jb' || chr(10) || 'c' as said, 'x'::blob as image, 1.5 as n"
    assert capfilt("query", folder.run, sql).out.splitlines() == [
        "said     image      n",
        "a[2Jb c  <1 bytes>  1.5",
        "1 row",
    ]
    many = capfilt("query", folder.run, "select unnest(range(500)) n").out.splitlines()
    assert len(many) == 102
    assert many[-1].startswith("… the first 100 rows")
    assert len(ask(folder.run, "select unnest(range(500)) n")) == 500
    assert ask(folder.run, "select 'nan'::float x, date '2020-01-02' d, [1, null] l") == [
        {"x": None, "d": "2020-01-02", "l": [1, None]}
    ]


def test_without_duckdb_it_says_what_to_install(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    done = capfilt("query", folder.run, "select 1")
    assert (done.code, "pip install 'capfilt[query]'" in done.err) == (2, True)
    assert capfilt("query", folder.run, "--print-view").code == 0
