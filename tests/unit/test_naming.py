"""Rows are named in blocks and pieces as they were one by one, whichever process does it."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt import schema
from capfilt.errors import DamageError
from capfilt.inputs import RAW, Input, InputSpec, open_input, parquet, urls
from capfilt.ledger import repeats, source
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.memory import Memory
from capfilt.ledger.publish import Publisher
from capfilt.ledger.records import Bytes, publish_records, read_records
from tests.places import local

Row = tuple[str | None, str | None, str | None, str | None]


def one_by_one(rows: list[Row]) -> list[tuple[str, str, str | None, bytes]]:
    """Name rows as the first versions did: (key, status, error, digest)."""
    addresses: Counter[str] = Counter()
    names: Counter[str] = Counter()
    image: tuple[str | None, str | None] | None = None
    texts: set[str] = set()
    found = []
    for url, caption, ref, given_error in rows:
        address = f"{ref}\x00{caption or ''}"
        if ref is None:
            try:
                address = urls.normalise(url or "")
            except ValueError:
                address = (url or "").strip()
        name = f"{ref if url is None else url}\x00{'0' if caption is None else '1' + caption}"
        key_text = f"{name}\x00{names[name]}".encode()
        key = hashlib.blake2b(key_text, digest_size=16).hexdigest()
        fault = given_error or (urls.fault_of(url) if ref is None else None)
        status: str = schema.SOURCE_OK
        if fault is not None:
            status = schema.INVALID_URL
        elif addresses[address]:
            status, fault = schema.DUPLICATE_URL, "an earlier row has the same address"
        addresses[address] += 1
        names[name] += 1
        parts = (key, url, caption, ref, status, fault)
        joined = b"\x00".join(b"\xff" if p is None else p.encode() for p in parts)
        digest = hashlib.blake2b(joined, digest_size=16).digest()
        text = caption or ""
        if (url, ref) == image and status != schema.INVALID_URL:
            alone = schema.DUPLICATE_URL if ref is None else schema.SOURCE_OK
            if status == alone and text not in texts:
                status, fault = schema.ANOTHER_TEXT, None
            texts.add(text)
        else:
            image = (url, ref) if status == schema.SOURCE_OK else None
            texts = {text}
        found.append((key, status, fault, digest))
    return found


some_urls = st.sampled_from(
    [
        *("http://a.example/1", "http://a.example/1 ", "http://A.example/1", "http://a.example/2"),
        *("ftp://a.example/1", "", None, "http://a.example/%2e%2e/1?a=b&amp;c=d", "a"),
    ]
)
some_rows = st.lists(
    st.tuples(
        some_urls,
        st.sampled_from([None, "", "one", "two"]),
        st.sampled_from([None, None, None, "ref1", "ref2"]),
        st.sampled_from([None, None, None, None, "torn"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(some_rows, st.integers(1, 9))
def test_blocks_are_named_as_rows_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], block: int
) -> None:
    def stream(_: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), block):
            columns = zip(*rows[start : start + block], strict=True)
            yield pa.record_batch([pa.array(c, pa.string()) for c in columns], schema=RAW)

    ledger = Ledger(tmp_path_factory.mktemp("run"))
    manifest = source.cut(Input(False, len(rows), "rows", stream), ledger, len(rows))
    (shard,) = manifest.shards
    expected = one_by_one(rows)
    table = ledger.read(source.STAGE, shard)
    assert table["key"].to_pylist() == [key for key, *_ in expected]
    assert table["source_status"].to_pylist() == [status for _, status, *_ in expected]
    assert table["source_error"].to_pylist() == [fault for _, _, fault, _ in expected]
    digest = hashlib.blake2b(b"".join(d for *_, d in expected), digest_size=8).hexdigest()
    assert shard == f"{expected[0][0][:8]}-{len(rows)}-{digest}"


@given(
    st.lists(
        st.from_regex(r"https?://[a-z0-9.-]{1,70}/[ -~]{0,12}", fullmatch=True)
        | st.text(max_size=12)
        | st.sampled_from(["http://a.b.com/x\n", "http://a.com/.", "http://a.com/a?b=%2E", "/\n"])
    )
)
def test_plain_addresses_are_those_of_the_pattern(texts: list[str]) -> None:
    texts = [text for text in texts if text.isprintable() or "\n" in text]
    found = urls.plain(pa.array(texts, pa.string())).to_pylist()
    assert found == [urls._PLAIN.fullmatch(text) is not None for text in texts]


@pytest.mark.parametrize("at_a_time", [5, 1 << 22])
def test_repeats_are_those_of_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    """Also where the first halves of two digests are equal."""
    monkeypatch.setattr(repeats, "_AT_A_TIME", at_a_time)
    rng = np.random.default_rng(0)
    pieces = [np.zeros((n, 16), np.uint8) for n in (30, 0, 7, 50)]
    for piece in pieces:
        piece[:, [0, 9]] = rng.integers(0, 4, (len(piece), 2))
    found = repeats.find_repeats(pieces, tmp_path / "own")
    seen: Counter[bytes] = Counter()
    for number, piece in enumerate(pieces):
        expected = []
        for row, digest in enumerate(piece):
            if seen[digest.tobytes()]:
                expected.append((row, seen[digest.tobytes()]))
            seen[digest.tobytes()] += 1
        assert [tuple(pair) for pair in zip(*found.of(number), strict=True)] == expected
    assert len(found.files) == (1 if at_a_time > 100 else 18)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values: Bytes = rng.integers(0, 256, (100, 5)).astype(np.uint8)
    publish_records(Publisher(tmp_path), "a", iter([values[:30], values[30:]]), lambda: {"n": 1})
    file = tmp_path / "a"
    assert (read_records(file, 5).values == values).all()
    assert read_records(file, 5).said == {"n": 1}
    content = file.read_bytes()
    for place in (0, 200, len(content) - 40, len(content) - 1):
        file.write_bytes(bytes([*content[:place], content[place] ^ 1, *content[place + 1 :]]))
        with pytest.raises(DamageError, match="remove"):
            read_records(file, 5)
    for size in (0, 10, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(DamageError):
            read_records(file, 5)


# --- pieces of files


class Lists:
    """Lists of addresses in row groups of 4, cut in pieces of at least 6 rows, and what is read."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.read = root, Counter[str]()
        self.ledger = Ledger(root / "run")
        monkeypatch.setattr(parquet, "_PART_ROWS", 6)
        real = parquet.ParquetTable.read

        def counted(table: parquet.ParquetTable, *given: Any) -> Iterator[pa.RecordBatch]:
            for batch in real(table, *given):
                self.read[table.stamp.path.name] += batch.num_rows
                yield batch

        monkeypatch.setattr(parquet.ParquetTable, "read", counted)

    def write(self, name: str, numbers: list[int], text: str = "text") -> None:
        columns = {
            "url": [f"http://h.example/{number}" for number in numbers],
            "caption": [f"{text} {place % 3}" for place in range(len(numbers))],
        }
        pq.write_table(pa.table(columns), self.root / f"{name}.parquet", row_group_size=4)

    def cut(self, run: Path | None = None, rows: int = 5, processes: int = 1) -> list[str]:
        ledger = self.ledger if run is None else Ledger(run)
        spec = InputSpec((str(self.root / "*.parquet"),))
        data = open_input(spec, Memory(ledger, rows))
        peeked = source.peek(data, ledger, rows)
        manifest = source.cut(data, ledger, rows, processes=processes)
        assert manifest == peeked
        assert set(manifest.shards) <= ledger.shards(source.STAGE)
        tables = [ledger.read(source.STAGE, shard) for shard in manifest.shards]
        read = pa.concat_tables([pq.read_table(f) for f in sorted(self.root.glob("*.parquet"))])
        assert pa.concat_tables(tables)["url"].to_pylist() == read["url"].to_pylist()
        return list(manifest.shards)


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lists:
    return Lists(tmp_path, monkeypatch)


def test_pieces_and_processes_change_nothing(
    lists: Lists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With repeats over the ends of files, and texts of one image over those of pieces."""
    lists.write("a", [*range(10), 7, 7, 7, 7, 3])
    lists.write("b", [3, 3, 3, 20, 21, 22, 23, 24, 25, 1, 1], "other")
    lists.write("c", [1, *range(30, 50)])
    monkeypatch.setattr(source, "_FEW_ROWS", 0)
    alone = lists.cut()
    monkeypatch.setattr(parquet, "_PART_ROWS", 1000)
    assert lists.cut(tmp_path / "whole") == alone
    monkeypatch.setattr(parquet, "_PART_ROWS", 3)
    assert lists.cut(tmp_path / "two", processes=2) == alone
    files = {
        run: {f.relative_to(run): f.read_bytes() for f in (run / "stages").rglob("*.parquet")}
        for run in (local(lists.ledger.root), tmp_path / "two")
    }
    one, two = files.values()
    assert one == two


def test_of_a_longer_list_the_new_file_alone_is_read(lists: Lists) -> None:
    for number in range(12):
        lists.write(f"list-{number:02}", list(range(10 * number, 10 * number + 10)))
    first = lists.cut()
    assert len(lists.read) == 12
    lists.read.clear()
    lists.write("list-12", list(range(120, 130)))
    assert lists.cut()[: len(first)] == first
    assert set(lists.read) == {"list-12.parquet"}
    lists.read.clear()
    lists.write("list-045", list(range(200, 210)))  # between others
    second = lists.cut()
    assert set(first) <= set(second)
    assert set(lists.read) == {"list-045.parquet"}


def test_a_changed_file_costs_itself_and_what_follows_from_it(lists: Lists) -> None:
    for number in range(8):
        lists.write(f"list-{number}", list(range(10 * number, 10 * number + 10)))
    first = lists.cut()
    lists.read.clear()
    lists.write("list-3", [*range(30, 39), 72])  # 72 is no longer new where it was
    second = lists.cut()
    assert set(lists.read) == {"list-3.parquet", "list-7.parquet"}
    assert len(set(first) - set(second)) == 2


def test_what_is_damaged_is_found_out_again(lists: Lists) -> None:
    lists.write("a", list(range(10)))
    first = lists.cut()
    for file in (local(lists.ledger.root) / "cuts").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert lists.cut() == first
    shutil.rmtree(local(lists.ledger.root) / "cuts")
    assert lists.cut() == first


_CUT = """
import sys
from pathlib import Path
from capfilt.inputs import InputSpec, open_input
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger

if __name__ == "__main__":
    source._FEW_ROWS = 0
    data = open_input(InputSpec((sys.argv[1],)))
    source.cut(data, Ledger(Path(sys.argv[2])), 50, processes=2)
"""


def test_a_kill_costs_nothing_but_what_was_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    for number in range(6):
        rows = [f"http://h.example/{number}/{i}" for i in range(4000)]
        pq.write_table(pa.table({"url": rows, "caption": rows}), folder / f"{number}.parquet")
    script = tmp_path / "cutting.py"
    script.write_text(_CUT)
    whole = source.cut(open_input(InputSpec((str(folder),))), Ledger(tmp_path / "whole"), 50).shards
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(run)], start_new_session=True
    )
    while process.poll() is None and len(Ledger(run).shards(source.STAGE)) < 40:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = Ledger(run).shards(source.STAGE)
    assert 0 < len(before) < len(whole)
    written: list[str] = []
    real = Ledger.commit

    def noted(ledger: Ledger, receipt: Any, table: pa.Table) -> bool:
        written.append(receipt.shard)
        return real(ledger, receipt, table)

    monkeypatch.setattr(Ledger, "commit", noted)
    data = open_input(InputSpec((str(folder),)), Memory(Ledger(run), 50))
    assert source.cut(data, Ledger(run), 50).shards == whole
    assert set(written) == set(whole) - before
