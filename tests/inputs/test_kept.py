"""Whole runs: columns that are carried to the export, texts of one image, and a next round."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from capfilt.cli.app import app
from capfilt.cli.console import progress_bar
from capfilt.commands import folder as commands
from capfilt.commands.hardware import Hardware
from capfilt.commands.query import query
from capfilt.commands.run import run as run_round
from capfilt.errors import DamageError, InputError
from capfilt.export.config import COLUMNS, ExportConfig
from capfilt.export.kept import Kept, kept_of
from capfilt.inputs import InputSpec
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger
from capfilt.recipe.options import RoundOptions
from capfilt.simweb.faults import Fault
from capfilt.simweb.server import WebServer
from tests.places import local

# img2dataset imports a module that Python has announced to remove.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
WORK = Hardware(workers=1, device="cpu")
RAW = RoundOptions(policy="raw", dedup="sha256", shard_rows=3, allow_private_hosts=True, timeout=2)


def run(out: Path, *paths: Path | str, keep: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
    """Run a round without models; returns its result for machines."""
    spec = InputSpec(tuple(map(str, paths)), keep_columns=keep, **given)
    done = run_round(spec, RAW, out, WORK, progress_bar(True), lambda _: None)
    result: dict[str, Any] = done.plain()["result"]
    return result


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.new("RGB", (40 + number, 40), (20 * number, 90, 30)).save(folder / f"{number}.png")
    return folder


def table(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def exported(result: dict[str, Any]) -> pa.Table:
    files = sorted((Path(result["dataset"]) / "data").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def local_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"image": f"{n}.png", "caption": f"text {n}", "id": n, "width": f"w{n}", "tags": ["a"] * n}
        for n in range(count)
    ]


def test_columns_are_carried_and_known_everywhere(tmp_path: Path) -> None:
    rows, out = local_rows(7), tmp_path / "run"
    path = table(pictures(tmp_path / "data", 7) / "t.jsonl", *rows)
    plain = run(out, path, kind="images")
    assert exported(plain).column_names == COLUMNS.names
    result = run(out, path, kind="images", keep=("id", "width", "tags"))
    found = exported(result)
    assert found.column_names == [*COLUMNS.names, "id", "input_width", "tags"]
    assert found["id"].to_pylist() == [row["id"] for row in rows]
    assert found["id"].type == pa.int64()
    assert found["input_width"].to_pylist() == [row["width"] for row in rows]
    assert found["tags"].to_pylist() == [row["tags"] for row in rows]
    # Only the export differs: sources and stages are those of the run without.
    ledger = Ledger(out)
    assert len([name for name in ledger.stages() if name.startswith("download-")]) == 1
    assert result["dataset"] != plain["dataset"]
    assert run(out, path, kind="images")["dataset"] == plain["dataset"]
    assert run(out, path, kind="images", keep=("id", "width", "tags")) == result
    assert commands.status(out).carried == ("id", "width", "tags")
    card = (Path(result["dataset"]) / "README.md").read_text()
    assert "Carried from the input: `id`, `input_width`, `tags`." in card
    assert commands.verify(out, progress_bar(True)).problems == []
    opened = datasets.load_dataset(
        "parquet", data_files=f"{result['dataset']}/data/*.parquet", split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert opened[3]["tags"] == ["a"] * 3
    garbage = {item.path.name for item in commands.gc(out, 1, False).garbage}
    assert Path(plain["dataset"]).name in garbage
    assert not any(name.startswith(source.KEPT_STAGE) for name in garbage)
    run(out, path, kind="images")
    garbage = {item.path.name for item in commands.gc(out, 1, True).garbage}
    assert any(name.startswith(source.KEPT_STAGE) for name in garbage)
    assert exported(run(out, path, kind="images", keep=("id",)))["id"].to_pylist() == list(range(7))


def test_other_values_are_never_taken_for_those_of_before(tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "data", 4), tmp_path / "run"
    rows = local_rows(4)
    first = run(out, table(folder / "t.jsonl", *rows), kind="images", keep=("id",))
    rows[2]["id"] = 70
    second = run(out, table(folder / "t.jsonl", *rows), kind="images", keep=("id",))
    assert exported(first)["id"].to_pylist() == [0, 1, 2, 3]
    assert exported(second)["id"].to_pylist() == [0, 1, 70, 3]
    assert len(Ledger(out).shards(source.STAGE)) == 2


def test_a_damaged_or_missing_file_of_carried_columns_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    path = table(pictures(tmp_path / "data", 4) / "t.jsonl", *local_rows(4))
    run(out, path, kind="images", keep=("id",))
    ledger = Ledger(out)
    (stage,) = (name for name in ledger.stages() if name.startswith(source.KEPT_STAGE))
    one, other = sorted(ledger.shards(stage))
    ledger.path(stage, one).unlink()
    content = bytearray(ledger.path(stage, other).read_bytes())
    content[8] ^= 1
    local(ledger.path(stage, other)).write_bytes(content)
    problems = {(p.kind, p.path) for p in commands.verify(out, progress_bar(True)).problems}
    expected = {
        ("missing", str(ledger.path(stage, one))),
        ("damaged", str(ledger.path(stage, other))),
    }
    assert problems == expected
    how = commands.ExportRequest(to=tmp_path / "again")
    with pytest.raises(DamageError, match="missing"):
        commands.export(out, how, progress_bar(True), lambda _: None)
    ledger.path(stage, other).unlink()
    run(out, path, kind="images", keep=("id",))  # makes both again
    assert commands.verify(out, progress_bar(True)).problems == []


def test_names_that_collide_are_prefixed_or_refused_before_any_work(tmp_path: Path) -> None:
    rows = [{**row, "input_width": 1} for row in local_rows(1)]
    path = table(pictures(tmp_path / "data", 1) / "t.jsonl", *rows)
    with pytest.raises(InputError, match="two columns of the export would be named 'input_width'"):
        run(tmp_path / "run", path, kind="images", keep=("width", "input_width"))
    assert not (tmp_path / "run").exists()
    kept = kept_of("columns-1", pa.schema([("a", pa.float32()), ("b", pa.list_(pa.bool_()))]))
    assert kept == Kept("columns-1", ("a", "b"), ("float32", "list:bool"))
    assert kept.schema.types == [pa.float32(), pa.list_(pa.bool_())]
    assert ExportConfig(kept=kept).columns.names == [*COLUMNS.names, "a", "b"]


def test_a_retrys_rows_carry_their_columns_too(tmp_path: Path) -> None:
    folder, out = pictures(tmp_path / "web", 5), tmp_path / "run"
    faults = {"/1.png": Fault.BROKEN_SERVER, "/3.png": Fault.BROKEN_SERVER}
    with WebServer(folder=folder, faults=faults) as server:
        port = int(server.base_url.rpartition(":")[2])
        rows = [{"url": server.url(f"{n}.png"), "caption": f"t{n}", "id": n} for n in range(5)]
        path = table(tmp_path / "t.jsonl", *rows)
        assert exported(run(out, path, keep=("id",)))["id"].to_pylist() == [0, 2, 4]
    with WebServer(folder=folder, port=port):
        done = commands.retry(out, {}, False, WORK, progress_bar(True), lambda _: None).plain()[
            "result"
        ]
    found = exported(done)
    assert sorted(zip(found["text"].to_pylist(), found["id"].to_pylist(), strict=True)) == [
        (f"t{n}", n) for n in range(5)
    ]
    assert commands.verify(out, progress_bar(True)).problems == []


def test_texts_of_one_address_are_all_kept_and_it_is_asked_once(tmp_path: Path) -> None:
    texts = [["one", "two", "three"], ["four"], ["five", "six"]]
    with WebServer(folder=pictures(tmp_path / "web", 3)) as server:
        rows = [{"url": server.url(f"{n}.png"), "caption": own} for n, own in enumerate(texts)]
        result = run(tmp_path / "run", table(tmp_path / "t.jsonl", *rows))
        assert server.hits == {"/0.png": 1, "/1.png": 1, "/2.png": 1}
    assert exported(result)["text"].to_pylist() == ["one", "two", "three", "four", "five", "six"]


def test_a_policy_without_captioner_needs_texts(tmp_path: Path) -> None:
    path = table(pictures(tmp_path / "data", 2) / "t.jsonl", *local_rows(2))
    with pytest.raises(InputError, match="no row has a text"):
        run(tmp_path / "run", path, kind="images", no_captions=True)
    assert not list(tmp_path.glob("run/stages/download-*"))


def test_a_next_round_starts_from_an_export(tmp_path: Path) -> None:
    rows = [{**row, "caption": [row["caption"], "of another"]} for row in local_rows(4)]
    path = table(pictures(tmp_path / "data", 4) / "t.jsonl", *rows)
    first = run(tmp_path / "run", path, kind="images")
    second = run(tmp_path / "next", first["dataset"])
    names = ["key", "url", "text", "origin", "sha256"]
    one, two = exported(first).select(names), exported(second).select(names)
    assert two["text"].to_pylist() == one["text"].to_pylist()
    assert two["key"].to_pylist() == one["key"].to_pylist()
    assert two["origin"].to_pylist() == ["web"] * 8
    statuses = {
        row["source_status"]
        for shard in Ledger(tmp_path / "next").shards(source.STAGE)
        for row in Ledger(tmp_path / "next").read(source.STAGE, shard).to_pylist()
    }
    assert statuses == {"ok", "another_text"}


def test_the_option_takes_names_with_commas_or_one_by_one(tmp_path: Path) -> None:
    path = table(
        tmp_path / "t.jsonl", {"url": "http://a.example/1", "caption": "t", "a": 1, "b": 2}
    )
    given = ["--keep-columns", "a, b", "--keep-columns", "a", "--policy", "raw"]
    done = CliRunner().invoke(app, ["plan", str(path), "--run", str(tmp_path / "run"), *given])
    assert done.exit_code == 0, done.output
    assert "carrying 'a' (int64), 'b' (int64)" in done.output
    wrong = CliRunner().invoke(
        app, ["plan", str(path), "--run", str(tmp_path), "--keep-columns", "c"]
    )
    assert wrong.exit_code == 2
    assert "no column 'c'" in wrong.output


def test_carried_columns_are_asked_by_sql(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "caption": "a", "status": f"s{n}", "n": n} for n in range(4)]
    pictures(tmp_path / "images", 4)
    listed = table(tmp_path / "t.jsonl", *rows)
    run(tmp_path / "run", listed, keep=("status", "n"), images_dir=tmp_path / "images")
    sql = "select input_status, n, status from rows order by n"
    found = query(tmp_path / "run", sql, all_rows=True).rows
    assert found == [(f"s{n}", n, "success") for n in range(4)]
