from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt import schema
from capfilt.errors import InputError
from capfilt.inputs import RAW, Input
from capfilt.inputs import urls as addresses
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger

Row = tuple[str | None, str | None]


def as_input(rows: list[Row], block: int = 7) -> Input:
    def stream(_: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            nulls = [None] * len(part)
            columns = [[url for url, _ in part], [text for _, text in part], nulls, nulls]
            yield pa.record_batch([pa.array(c, pa.string()) for c in columns], schema=RAW)

    return Input(local=False, row_count_hint=None, description="rows", stream=stream)


def web(count: int, start: int = 0) -> list[Row]:
    return [(f"http://a.example/{i}.jpg", f"text {i}") for i in range(start, start + count)]


def read_all(ledger: Ledger, shards: tuple[str, ...]) -> pa.Table:
    return pa.concat_tables([ledger.read(source.STAGE, shard) for shard in shards])


def test_rows_are_cut_in_order_and_named_by_content(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    manifest = source.cut(as_input(web(25)), ledger, 10)
    assert [int(name.split("-")[1]) for name in manifest.shards] == [10, 10, 5]
    assert manifest.rows == 25
    table = read_all(ledger, manifest.shards)
    assert table["url"].to_pylist() == [url for url, _ in web(25)]
    assert len(set(table["key"].to_pylist())) == 25
    again = source.cut(as_input(web(25), block=3), Ledger(tmp_path / "other"), 10)
    assert again.shards == manifest.shards


def test_appending_keeps_every_old_shard_and_the_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    before = source.cut(as_input(web(25)), ledger, 10)
    after = source.cut(as_input(web(48)), ledger, 10)
    assert after.shards[:3] == before.shards
    assert read_all(ledger, after.shards)["url"].to_pylist() == [url for url, _ in web(48)]
    assert ledger.shards(source.STAGE) == set(after.shards)


def test_rows_put_in_front_leave_the_old_shards(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    before = source.cut(as_input(web(20)), ledger, 10)
    rows = [*web(3, start=100), *web(20)]
    after = source.cut(as_input(rows), ledger, 10)
    assert after.shards[1:] == before.shards
    assert read_all(ledger, after.shards)["url"].to_pylist() == [url for url, _ in rows]


def test_another_shard_size_keeps_what_is_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    before = source.cut(as_input(web(20)), ledger, 10)
    assert source.cut(as_input(web(20)), ledger, 4).shards == before.shards


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=25), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_however_inputs_follow_each_other_no_row_is_lost_or_moved(
    tmp_path_factory: pytest.TempPathFactory, inputs: list[list[int]], shard_rows: int
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("run"))
    for numbers in inputs:
        rows: list[Row] = [(f"http://a.example/{n}", str(n % 7)) for n in numbers]
        if not rows:
            continue
        manifest = source.cut(as_input(rows), ledger, shard_rows)
        table = read_all(ledger, manifest.shards)
        assert table["url"].to_pylist() == [url for url, _ in rows]
        assert len(set(table["key"].to_pylist())) == len(rows)
        assert source.rows_of(manifest.shards, ledger) == len(rows) == manifest.rows
        assert manifest.duplicate_urls == len(rows) - len(set(numbers))
        assert source.load_manifest(ledger, manifest.id) == manifest


def test_what_the_input_says_of_each_row(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("http://a.example/1", "one"),
        ("http://a.example/1 ", "another text, the same address"),
        ("file:///etc/passwd", "x"),
        ("ftp://a.example/x", "x"),
        (None, "x"),
        ("", ""),
        ("http://", "x"),
        ("http://[::1", "x"),
        ("a.example/x", "x"),
        ("HTTPS://a.example/2", None),
    ]
    manifest = source.cut(as_input(rows), Ledger(tmp_path), 100)
    table = read_all(Ledger(tmp_path), manifest.shards)
    statuses = table["source_status"].to_pylist()
    assert statuses == ["ok", "duplicate_url", *["invalid_url"] * 7, "ok"]
    reasons = table["source_error"].to_pylist()
    assert [reason is None for reason in reasons] == [status == "ok" for status in statuses]
    assert "file" in reasons[2]
    assert (manifest.duplicate_urls, manifest.invalid_urls, manifest.empty_captions) == (1, 7, 2)


def test_two_spellings_of_one_address_count_as_one(tmp_path: Path) -> None:
    spellings: list[Row] = [
        ("http://a.example/my%20photo.jpg?a=1&b=2", "one"),
        ("http://A.example:80/my photo.jpg?a=1&amp;b=2#top", "two"),
        ("//a.example\\my photo.jpg?a=1&b=2", "three"),
        ("  HTTP://a.example/x/../my\n%20photo.jpg?a=1&b=2", "four"),
        ("http://a.example/my%20photo.jpg?a=1&b=3", "another"),
    ]
    manifest = source.cut(as_input(spellings), Ledger(tmp_path), 10)
    table = read_all(Ledger(tmp_path), manifest.shards)
    assert table["source_status"].to_pylist() == ["ok", *["duplicate_url"] * 3, "ok"]
    assert table["url"].to_pylist() == [url for url, _ in spellings]  # as the list has them
    assert len(set(table["key"].to_pylist())) == 5


def test_shards_of_the_first_version_are_found_again(tmp_path: Path) -> None:
    """Their names are digests of statuses and reasons too, which must not change."""
    rows: list[Row] = [
        ("http://a.example/1", "one"),
        ("http://a.example/1 ", "two"),
        ("https://a.example/b%20c?d=e&f=g", "x"),
        ("HTTP://A.example/x", "x"),
        ("file:///etc/passwd", "x"),
        ("data:image/gif;base64,R0lG", "x"),
        (None, "x"),
        ("", ""),
        ("http://", "x"),
        ("http://[::1", "x"),
        ("a.example/x", "x"),
        ("images/1.jpg", "x"),
        ("http://127.0.0.1:8000/img/1.jpg", None),
    ]
    assert source.cut(as_input(rows), Ledger(tmp_path), 5).shards == (
        "f7763f90-5-79740a9077e226cd",
        "a9f2a4e7-5-25f13d9bb67c668a",
        "79f03db4-3-9a20f244fd34952e",
    )


def test_a_respelled_duplicate_renames_its_own_shard_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*web(9), ("http://a.example/3.jpg#again", "x"), *web(20, start=50)]
    ledger = Ledger(tmp_path)
    with monkeypatch.context() as first_version:
        first_version.setattr(addresses, "normalise", str.strip)
        before = source.cut(as_input(rows), ledger, 5)
    after = source.cut(as_input(rows), ledger, 5)
    changed = [
        n for n, (a, b) in enumerate(zip(before.shards, after.shards, strict=True)) if a != b
    ]
    assert changed == [1]
    assert (before.duplicate_urls, after.duplicate_urls) == (0, 1)


def test_peek_writes_nothing_and_says_the_same(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    peeked = source.peek(as_input(web(25)), ledger, 10)
    assert not (tmp_path / "run").exists()
    assert source.cut(as_input(web(25)), ledger, 10) == peeked


def test_no_rows_and_no_shard_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        source.cut(as_input([]), Ledger(tmp_path), 10)
    with pytest.raises(InputError, match="at least 1"):
        source.cut(as_input(web(1)), Ledger(tmp_path), 0)


def test_the_texts_of_one_image_follow_each_other(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("http://a.example/1", "one"),
        ("http://a.example/1", "two"),
        ("http://a.example/1", "one"),
        ("http://a.example/2", "one"),
        ("http://a.example/1", "three"),
        ("http://a.example/1", "four"),
        ("ftp://a.example/1", "one"),
        ("ftp://a.example/1", "two"),
    ]
    manifest = source.cut(as_input(rows, block=2), Ledger(tmp_path), 3)
    statuses = read_all(Ledger(tmp_path), manifest.shards)["source_status"].to_pylist()
    apart, invalid = schema.DUPLICATE_URL, schema.INVALID_URL
    assert statuses == ["ok", "another_text", apart, "ok", apart, apart, invalid, invalid]
    # Names and keys are those that the rows had before there was such a status.
    assert manifest.shards == (
        "f7763f90-3-222a19ff5ae0b843", "56295d75-3-247ac06eadfdaa7d", "b0c27eb3-2-5ff1b2c201192cd1"
    )  # fmt: skip


def test_local_rows_of_one_image_are_its_texts(tmp_path: Path) -> None:
    def stream(_: int) -> Iterator[pa.RecordBatch]:
        texts = ["one", "two", None, "", "one", "one", "two", "three"]
        refs = ["ref1"] * 5 + ["ref2", "ref1", "ref1"]
        columns = [["u"] * 8, texts, refs, [None] * 8]
        yield pa.record_batch([pa.array(c, pa.string()) for c in columns], schema=RAW)

    data = Input(local=True, row_count_hint=8, description="rows", stream=stream)
    manifest = source.cut(data, Ledger(tmp_path), 10)
    statuses = read_all(Ledger(tmp_path), manifest.shards)["source_status"].to_pylist()
    other, again = "another_text", "duplicate_url"
    assert statuses == ["ok", other, other, again, again, "ok", again, "ok"]
    assert manifest.shards == ("cbd085f2-8-15de3210193ab10d",)


def test_two_local_images_of_one_address_have_keys_of_their_own(tmp_path: Path) -> None:
    def stream(_: int) -> Iterator[pa.RecordBatch]:
        columns = [["u", "u", "u"], ["t", "t", "t"], ["ref1", "ref2", "ref1"], [None] * 3]
        yield pa.record_batch([pa.array(c, pa.string()) for c in columns], schema=RAW)

    data = Input(local=True, row_count_hint=3, description="rows", stream=stream)
    manifest = source.cut(data, Ledger(tmp_path), 10)
    table = read_all(Ledger(tmp_path), manifest.shards)
    assert len(set(table["key"].to_pylist())) == 3
    assert table["source_status"].to_pylist() == ["ok", "ok", "duplicate_url"]
