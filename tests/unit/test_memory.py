"""A resume reads no row of an input whose files are those that were cut."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.inputs import InputSpec, open_input
from capfilt.inputs.parquet import ParquetTable
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.memory import Memory, cut_files
from capfilt.ledger.source import SourceManifest, cut, peek
from tests.places import local

ROWS = 25


class Folder:
    """Two tables, a run folder, and how many rows were read of the tables."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = [root / "a.parquet", root / "b.parquet"]
        for number, file in enumerate(self.files):
            self.write(file, number)
        self.ledger, self.read = Ledger(root / "run"), 0
        real = ParquetTable.read

        def counted(table: ParquetTable, *given: Any) -> Iterator[pa.RecordBatch]:
            for batch in real(table, *given):
                self.read += batch.num_rows
                yield batch

        monkeypatch.setattr(ParquetTable, "read", counted)

    def write(self, file: Path, number: int, rows: int = ROWS) -> None:
        urls = [f"http://h.example/{number}/{i}" for i in range(rows)]
        columns = {"url": urls, "caption": [f"text {i}" for i in range(rows)], "id": range(rows)}
        pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), file)

    def cut(self, shard_rows: int = 10, **options: Any) -> SourceManifest:
        spec = InputSpec(tuple(map(str, self.files)), **options)
        data = open_input(spec, Memory(self.ledger, shard_rows))
        assert peek(data, self.ledger, shard_rows) == cut(data, self.ledger, shard_rows)
        return cut(data, self.ledger, shard_rows)

    def rows_read(self, **options: Any) -> int:
        self.read = 0
        self.cut(**options)
        return self.read


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


def test_the_same_files_are_not_read_again(folder: Folder) -> None:
    first = folder.cut()
    assert (first.rows, folder.read > 0) == (2 * ROWS, True)
    assert folder.rows_read() == 0
    assert folder.cut() == first
    spec = InputSpec(tuple(map(str, folder.files)))
    known = open_input(spec, Memory(folder.ledger, 10))
    assert known.describe() == open_input(spec).describe()
    assert known.row_count_hint == 2 * ROWS
    assert [b.num_rows for b in known.rows()] == [ROWS, ROWS]  # they can be read all the same


@pytest.mark.parametrize("change", ["time", "content", "order", "option", "shards", "fewer"])
def test_other_files_or_options_are_read(folder: Folder, change: str) -> None:
    first = folder.cut()
    if change == "time":
        os.utime(folder.files[0], ns=(1, 1))
        assert folder.rows_read() > 0
        assert folder.cut() == first
    elif change == "content":
        folder.write(folder.files[1], 5)
        assert folder.rows_read() > 0
        assert folder.cut().id != first.id
    elif change == "order":
        folder.files.reverse()
        assert folder.rows_read() > 0
    elif change == "option":
        assert folder.rows_read(no_captions=True) > 0
    elif change == "shards":  # those that are there fit any size, and what is in them is known
        folder.read = 0
        assert folder.cut(7) == first
        assert folder.read == 0
    else:
        folder.files.pop()
        assert folder.rows_read() > 0


def test_a_shard_or_a_record_that_is_gone_is_made_again(folder: Folder) -> None:
    first = folder.cut()
    folder.ledger.path(source.STAGE, first.shards[2]).unlink()
    assert folder.rows_read() > 0
    assert folder.ledger.shards(source.STAGE) == set(first.shards)
    (record,) = map(local, cut_files(folder.ledger))
    for content in ("", "{}", record.read_text().replace(first.id, "f" * 16)):
        record.write_text(content)
        assert folder.rows_read() == 0  # the digests of all rows are there
        assert folder.cut() == first
    (manifest,) = (folder.ledger.root / "inputs").iterdir()
    manifest.unlink()
    assert folder.cut() == first
    assert manifest.exists()


def test_carried_columns_are_remembered(folder: Folder) -> None:
    folder.cut(keep_columns=("id",))
    assert folder.rows_read(keep_columns=("id",)) == 0
    (stage,) = [name for name in folder.ledger.stages() if name.startswith(source.KEPT_STAGE)]
    for file in folder.ledger.folder(stage).iterdir():
        file.unlink()
    assert folder.rows_read(keep_columns=("id",)) > 0
    assert folder.rows_read(keep_columns=("id",)) == 0


def test_rows_that_depend_on_more_than_the_table_are_read_each_time(tmp_path: Path) -> None:
    """An image that comes later is found by the next run."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "1.png")
    table = tmp_path / "t.csv"
    table.write_text("image,caption\n1.png,a\n2.png,b\n")
    ledger = Ledger(tmp_path / "run")
    spec = InputSpec((str(table),), "images")

    def invalid() -> int:
        return cut(open_input(spec, Memory(ledger, 10)), ledger, 10).invalid_urls

    assert (invalid(), invalid()) == (1, 1)
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "2.png")
    assert invalid() == 0
    assert cut_files(ledger) == []
