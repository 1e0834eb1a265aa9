"""What every store promises, for a folder of this machine and for a bucket alike."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.store.location import Location, location
from capfilt.store.reading import arrow_file, names_below, names_in, ranged, size_below
from capfilt.store.stores import store_of

_NUMBERS = itertools.count()


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "folder":
        return location(str(tmp_path / "run"))
    return location(request.getfixturevalue("bucket").place(f"contract-{next(_NUMBERS)}"))


def holding(content: bytes) -> Callable[[BinaryIO], None]:
    def write(out: BinaryIO) -> None:
        out.write(content)

    return write


def test_the_first_to_create_a_name_wins_and_its_file_never_changes(root: Location) -> None:
    store = store_of(root)
    assert store.put_new("a/b.txt", holding(b"first"))
    assert not store.put_new("a/b.txt", holding(b"other"))
    assert (root / "a" / "b.txt").read_bytes() == b"first"


def test_of_racing_writers_one_wins_and_the_file_is_its_own(root: Location) -> None:
    store, writers = store_of(root), 8
    for number in range(5):
        start = threading.Barrier(writers)

        def create(writer: int, number: int = number, start: Any = start) -> bool:
            start.wait()
            return store.put_new(f"{number}.txt", holding(b"%d" % writer * 1000))

        with ThreadPoolExecutor(writers) as pool:
            won = [writer for writer, was in enumerate(pool.map(create, range(writers))) if was]
        assert len(won) == 1
        assert (root / f"{number}.txt").read_bytes() == b"%d" % won[0] * 1000


def test_what_a_writer_breaks_off_is_never_seen(root: Location) -> None:
    def breaking(out: BinaryIO) -> None:
        out.write(b"half")
        raise RuntimeError("broken off")

    store = store_of(root)
    with pytest.raises(RuntimeError, match="broken off"):
        store.put_new("a.txt", breaking)
    assert not (root / "a.txt").exists()
    assert store.leftovers() == []
    assert store.put_new("a.txt", holding(b"whole"))


def test_an_empty_file_and_a_large_one_come_back_as_they_were(root: Location) -> None:
    store, large = store_of(root), bytes(range(256)) * 150_000  # beyond what stays in memory
    assert store.put_new("empty", holding(b""))
    assert store.put_new("large", holding(large))
    assert (root / "empty").read_bytes() == b""
    assert (root / "large").read_bytes() == large
    assert [(root / n).stat().st_size for n in ("empty", "large")] == [0, len(large)]
    with (root / "large").open("rb") as stream:
        assert stream.read(10) + stream.read() == large
    with ranged(root / "large") as stream:
        stream.seek(-70_000, 2)  # partly in the tail that came first
        assert stream.read(65_000) == large[-70_000:-5_000]
        assert stream.seek(5) == 5
        assert stream.read(300) == large[5:305]


def test_names_are_listed_as_in_a_folder(root: Location) -> None:
    store = store_of(root)
    assert names_in(root) == []
    assert not root.is_dir()
    names = ["b/2.parquet", "b/1.parquet", "b/c/3.txt", "a ü+%&.txt", "bb/4.txt"]
    for name in names:
        store.put_new(name, holding(name.encode()))
    own = set(names_in(root)) - {".tmp"}
    assert own == {"a ü+%&.txt", "b", "bb"}
    assert sorted(n for n in names_below(root) if not n.startswith(".tmp/")) == sorted(names)
    assert sorted(p.name for p in (root / "b").glob("*.parquet")) == ["1.parquet", "2.parquet"]
    assert [p.name for p in root.glob("b*/4.txt")] == ["4.txt"]
    assert size_below(root / "b") == sum(len(n) for n in names if n.startswith("b/"))
    assert (root / "b").is_dir()
    assert not (root / "b").is_file()
    assert not (root / "no").exists()
    assert (root / "a ü+%&.txt").read_text(encoding="utf-8") == "a ü+%&.txt"


def test_a_thousand_names_and_more_are_listed(bucket: Any) -> None:
    root = location(bucket.place("many"))
    folder = bucket.folder / "web" / "many"
    folder.mkdir()
    for number in range(2_100):
        (folder / f"{number:05d}").write_bytes(b"x")
    assert sorted(names_in(root)) == [f"{number:05d}" for number in range(2_100)]


def test_what_is_missing_is_a_file_not_found(root: Location) -> None:
    for read in (root / "no").read_bytes, (root / "no").stat, lambda: ranged(root / "no").read():
        with pytest.raises(FileNotFoundError):
            read()
    (root / "no").unlink(missing_ok=True)


def test_what_is_set_aside_keeps_its_content_and_frees_its_name(root: Location) -> None:
    store = store_of(root)
    for content in (b"one", b"two"):
        assert store.put_new("x/y.txt", holding(content))
        moved = store.set_aside(root / "x" / "y.txt")
        assert moved.read_bytes() == content
        assert not (root / "x" / "y.txt").exists()
    assert store.put_new("folder/a/1", holding(b"1"))
    aside = store.set_aside(root / "folder")
    assert (aside / "a" / "1").read_bytes() == b"1"
    assert not (root / "folder").is_dir()


def test_a_removed_folder_is_gone_and_its_neighbours_stay(root: Location) -> None:
    store = store_of(root)
    for name in ("a/1", "a/b/2", "ab/3"):
        store.put_new(name, holding(b"x"))
    store.remove(root / "a")
    assert [n for n in names_below(root) if not n.startswith(".tmp/")] == ["ab/3"]
    store.remove(root / "ab" / "3")
    assert not (root / "ab" / "3").exists()


def test_a_name_can_point_to_another_and_then_to_one_more(root: Location) -> None:
    store = store_of(root)
    store.check()
    assert [store.point("latest", target) for target in ("one", "one", "two")] == [True] * 3


def test_columns_of_parquet_are_read_by_range(root: Location) -> None:
    table = pa.table({"wide": [b"x" * 1000] * 5_000, "narrow": list(range(5_000))})
    store_of(root).put_new(
        "t.parquet", lambda out: pq.write_table(table, out, row_group_size=1_000, compression=None)
    )
    with arrow_file(root / "t.parquet") as file, pq.ParquetFile(file) as parquet:
        assert parquet.read(["narrow"]) == table.select(["narrow"])
        assert parquet.read_row_group(2) == table.slice(2_000, 1_000)
