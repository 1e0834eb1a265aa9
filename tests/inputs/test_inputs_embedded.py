"""Images inside of Parquet and Arrow: the Hub's tables, `save_to_disk`, and capfilt's exports."""

import io
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.errors import InputError
from capfilt.export.config import COLUMNS
from capfilt.inputs import InputSpec, open_input, read_image, refs
from tests.inputs.tools import fault_of, has_all, rows_of

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Cell = dict[str, bytes | str | None] | None


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, 90, 30)).save(out, "PNG")
    return out.getvalue()


def cell(number: int) -> Cell:
    return {"bytes": png(number), "path": f"{number}.png"}


def hub_table(cells: Sequence[Cell], **columns: Any) -> pa.Table:
    texts = columns or {"text": [f"text {i}" for i in range(len(cells))]}
    return pa.table({"image": pa.array(cells, IMAGE), **texts})


def images_of(rows: list[dict[str, str | None]]) -> list[bytes | None]:
    return [read_image(row["image_ref"]) if row["image_ref"] else None for row in rows]


def write_arrow(path: Path, table: pa.Table, batch_rows: int, stream: bool = True) -> Path:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with path.open("wb") as out, make(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("group", [2, 7])
def test_the_hubs_parquet_is_found_and_read(tmp_path: Path, group: int, statistics: bool) -> None:
    table = hub_table([cell(n) for n in range(7)])
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(table, path, row_group_size=group, write_statistics=statistics)
    for given in (path, tmp_path):
        rows = rows_of(given)
        assert [row["url"] for row in rows] == [f"{n}.png" for n in range(7)]
        assert [row["caption"] for row in rows] == [f"text {n}" for n in range(7)]
        assert images_of(rows) == [png(n) for n in range(7)]
    assert images_of(list(reversed(rows))) == [png(n) for n in range(6, -1, -1)]
    data = open_input(InputSpec((str(path),)))
    assert data.local
    assert "images in 'image', texts 'text'" in data.describe()


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_are_read_by_batch_and_row(tmp_path: Path, stream: bool) -> None:
    path = write_arrow(tmp_path / "a.arrow", hub_table([cell(n) for n in range(7)]), 3, stream)
    assert images_of(rows_of(path)) == [png(n) for n in range(7)]
    path.write_bytes(path.read_bytes()[:-40] if stream else path.read_bytes()[:-5])
    assert has_all(fault_of(path), [str(path), "cannot be read as Arrow", "torn"])


def test_an_arrow_file_with_hostile_offsets_is_refused(tmp_path: Path) -> None:
    table = hub_table([cell(n) for n in range(3)])
    path = write_arrow(tmp_path / "a.arrow", table, 3)
    content = path.read_bytes()
    sizes = [len(png(n)) for n in range(3)]
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, sizes[0], sum(sizes[:2]), sum(sizes)))
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, offsets[:8] + b"\xff\xff\xff\x6f" + offsets[12:]))
    assert has_all(fault_of(path), [str(path), "cannot be read as Arrow"])


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("name", ["image", "jpg", "Image_Bytes"])
def test_plain_bytes_are_images_where_they_begin_as_images(
    tmp_path: Path, name: str, large: bool
) -> None:
    kind = pa.large_binary() if large else pa.binary()
    images = pa.array([png(0), None, png(2)], kind)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: images, "caption": ["a", "b", "c"]}), path)
    rows = rows_of(path)
    assert images_of(rows) == [png(0), None, png(2)]
    assert [row["input_error"] for row in rows] == [None, "no image in this row", None]
    assert [row["url"] for row in rows] == [f"a.parquet/{n}" for n in range(3)]
    names = pa.array([b"0.png", b"1.png"])  # names, as Spark writes strings
    pq.write_table(pa.table({"url": [b"u", b"v"], "image": names, "text": ["a", "b"]}), path)
    assert [(row["url"], row["image_ref"]) for row in rows_of(path)] == [("u", None), ("v", None)]


def test_an_image_without_bytes_is_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "1.png").write_bytes(png(1))
    cells: list[Cell] = [
        cell(0),
        {"bytes": None, "path": "sub/1.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": None},
        None,
    ]
    path = folder / "a.parquet"
    pq.write_table(hub_table(cells), path)
    rows = rows_of(path)
    assert images_of(rows) == [png(0), png(1), None, None, None, None]
    reasons = [row["input_error"] or "" for row in rows]
    assert "leads out of the images folder" in reasons[2]
    assert "No such file" in reasons[3]
    assert reasons[4:] == ["no image in this row"] * 2


def test_of_an_image_and_an_address_the_image_wins_unless_told(tmp_path: Path) -> None:
    table = hub_table([cell(0), cell(1)], url=["http://a.example/0", None], text=["a", "b"])
    pq.write_table(table, path := tmp_path / "a.parquet")
    rows = rows_of(path)
    assert images_of(rows) == [png(0), png(1)]
    assert [row["url"] for row in rows] == ["http://a.example/0", "1.png"]
    rows = rows_of(path, prefer="url")
    assert images_of(rows) == [None, png(1)]
    assert not open_input(InputSpec((str(path),), prefer="url")).local
    pq.write_table(pa.table({"url": ["u"], "text": ["t"]}), other := tmp_path / "b.parquet")
    assert "--prefer goes with --input-format hf" in fault_of(other, prefer="url")


def test_an_address_without_an_image_is_fetched_on_request(tmp_path: Path) -> None:
    cells: list[Cell] = [cell(0), None, {"bytes": None, "path": "gone.png"}, None]
    urls = ["http://a.example/0", "http://a.example/1", "http://a.example/2", " "]
    table = hub_table(cells, url=urls, text=["a", "b", "c", "d"])
    pq.write_table(table, path := tmp_path / "a.parquet")
    reasons = [row["input_error"] for row in rows_of(path)]
    assert reasons[1] == "no image in this row, but an address: give --download-missing"
    assert reasons[3] == "no image in this row"
    rows = rows_of(path, download_missing=True)
    assert [row["image_ref"] is not None for row in rows] == [True, False, False, False]
    assert [row["input_error"] is None for row in rows] == [True, True, False, False]
    assert not open_input(InputSpec((str(path),), download_missing=True)).local


def test_tables_that_are_no_clear_choice_are_refused(tmp_path: Path) -> None:
    two = pa.table({"left": pa.array([cell(0)], IMAGE), "right": pa.array([cell(1)], IMAGE)})
    pq.write_table(two.append_column("text", pa.array(["t"])), path := tmp_path / "two.parquet")
    assert has_all(fault_of(path), ["'left', 'right' each hold images", "--image-col"])
    (row,) = rows_of(path, image_col="right")
    assert images_of([row]) == [png(1)]
    pq.write_table(hub_table([cell(0)], label=[7]), silent := tmp_path / "silent.parquet")
    assert has_all(fault_of(silent), ["no caption column", "--no-captions"])
    (row,) = rows_of(silent, no_captions=True)
    assert (row["caption"], images_of([row])) == (None, [png(0)])
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        pq.write_table(hub_table([cell(0)]), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert has_all(fault_of(tmp_path / "data"), ["several splits (test, train)", "train-*.parquet"])
    assert len(rows_of(tmp_path / "data" / "train-*.parquet")) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    columns = {"image": [cell(n) for n in range(5)], "text": [f"text {n}" for n in range(5)]}
    data = datasets.Dataset.from_dict(columns, features=features)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    rows = rows_of(tmp_path / "one")
    assert images_of(rows) == [png(n) for n in range(5)]
    assert [row["caption"] for row in rows] == columns["text"]
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    parts = ["holds the splits train, test", f"such as {tmp_path}/two/train"]
    assert has_all(fault_of(tmp_path / "two"), parts)
    assert len(rows_of(tmp_path / "two" / "train")) == 5
    state = json.loads((tmp_path / "one/state.json").read_text())
    for files in ([{"filename": "../x.arrow"}], [{"filename": "gone.arrow"}], [7], None):
        (tmp_path / "one/state.json").write_text(json.dumps({**state, "_data_files": files}))
        assert "state.json: names" in fault_of(tmp_path / "one")
    (tmp_path / "one/state.json").write_text("{")
    assert "state.json: cannot be read" in fault_of(tmp_path / "one")


# --- several texts


def test_an_image_with_several_texts_has_a_row_for_each(tmp_path: Path) -> None:
    texts = [["one", "two"], [], None, ["three"]]
    pq.write_table(
        hub_table([cell(n) for n in range(4)], text=texts), path := tmp_path / "a.parquet"
    )
    rows = rows_of(path)
    assert [row["caption"] for row in rows] == ["one", "two", None, None, "three"]
    assert images_of(rows) == [png(0), png(0), png(1), png(2), png(3)]
    assert rows[0]["image_ref"] == rows[1]["image_ref"]


# --- exports


def export_table(rows: list[tuple[str, str, str | None]]) -> pa.Table:
    """Make an export of (key, text, origin); the image is a number's in the key."""
    plain = [
        {
            **dict.fromkeys(COLUMNS.names),
            "key": key,
            "url": f"http://a.example/{key}",
            "image": {"bytes": png(int(key)), "path": f"{key}.jpg"},
            "text": text,
            "origin": origin,
        }
        for key, text, origin in rows
    ]
    return pa.Table.from_pylist(plain, COLUMNS)


EXPORT: list[tuple[str, str, str | None]] = [
    ("1", "of the web", "web"),
    ("1", "written", "synthetic"),
    ("2", "written", "synthetic"),
    ("2", "written too", "synthetic"),
    ("3", "of a person", "human"),
    ("3", "of another", "human"),
    ("4", "written", "synthetic"),
    ("4", "of the web", "web"),
    ("5", "of nobody knows", None),
]
NEXT = [
    ("1", "of the web"),
    ("2", None),
    ("3", "of a person"),
    ("3", "of another"),
    ("4", "of the web"),
    ("5", "of nobody knows"),
]


def test_what_an_export_carries_is_not_taken_for_its_own_columns(tmp_path: Path) -> None:
    table = export_table(EXPORT)
    for name in ("caption", "image_url", "image_ref", "input_error"):
        table = table.append_column(name, pa.array([f"{name} {n}" for n in range(9)]))
    pq.write_table(table, path := tmp_path / "a.parquet")
    names = ("key", "origin", "image_ref", "input_error", "url")
    data = open_input(InputSpec((str(path),), keep_columns=names))
    rows = [row for batch in data.rows(2) for row in batch.to_pylist()]
    assert [(row["url"][-1], row["caption"]) for row in rows] == NEXT
    assert images_of(rows) == [png(int(key)) for key, _ in NEXT]
    assert [row["kept"]["key"] for row in rows] == [key for key, _ in NEXT]
    numbers = [int(row["kept"]["image_ref"].split()[1]) for row in rows]
    assert numbers == [0, 2, 4, 5, 7, 8]
    assert [row["kept"]["input_error"] for row in rows] == [f"input_error {n}" for n in numbers]


@pytest.mark.parametrize("cut", [9, 1, 3, 7])
def test_an_export_gives_each_image_once_with_its_texts_of_the_web(
    tmp_path: Path, cut: int
) -> None:
    table = export_table(EXPORT)
    for start in range(0, 9, cut):  # an image's rows may go on in the next file
        part = table.slice(start, cut)
        pq.write_table(part, tmp_path / f"train-{start:05d}-of-00009.parquet", row_group_size=2)
    rows = rows_of(tmp_path)
    assert [((row["url"] or "")[-1], row["caption"]) for row in rows] == NEXT
    assert images_of(rows) == [png(int(key)) for key, _ in NEXT]
    assert rows[2]["image_ref"] == rows[3]["image_ref"]
    assert "synthetic ones are written anew" in open_input(InputSpec((str(tmp_path),))).describe()
    all_rows = rows_of(tmp_path, kind="hf")  # every row a pair, on request
    assert [row["caption"] for row in all_rows] == [text for _, text, _ in EXPORT]


def test_a_folder_of_an_export_is_read_by_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    pq.write_table(export_table(EXPORT), path)
    entry = {"path": f"data/{path.name}", "bytes": path.stat().st_size}
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "manifest.json").write_text(json.dumps({"digest": "d", "files": [entry]}))
    assert len(rows_of(tmp_path)) == len(NEXT)
    assert len(rows_of(tmp_path, kind="export")) == len(NEXT)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"digest": "d", "files": [{**entry, "bytes": 1}]})
    )
    assert has_all(fault_of(tmp_path), [str(path), "not as the manifest", "capfilt verify"])
    outside: list[Any] = [
        {"path": "data/../../x.parquet", "bytes": 1},
        {"path": "/x.parquet"},
        7,
        {},
    ]
    manifest = {"digest": "d", "files": [*outside, entry]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert len(rows_of(tmp_path)) == len(NEXT)
    pq.write_table(hub_table([cell(0)]), other := tmp_path / "other.parquet")
    assert has_all(fault_of(other, kind="export"), ["no column 'key'", "--input-format hf"])


# --- references


def test_a_row_group_is_decoded_once_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big: list[Cell] = [{"bytes": bytes([n]) * 200_000, "path": None} for n in range(150)]
    path = tmp_path / "a.parquet"
    pq.write_table(hub_table(big), path, row_group_size=150, write_batch_size=4, compression="none")
    found = [row["image_ref"] or "" for row in rows_of(path)]
    opened: list[object] = []
    real = pq.ParquetFile.iter_batches

    def counted(file: pq.ParquetFile, *given: Any, **named: Any) -> Any:
        opened.append(file)
        return real(file, *given, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    refs._parquet_group.cache_clear()
    before = pa.total_allocated_bytes()
    peak = 0
    for n, ref in enumerate(found):
        assert read_image(ref) == bytes([n]) * 200_000
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert len(opened) == 1
    assert peak < 15_000_000  # of 30 MB in the row group
    path.write_bytes(path.read_bytes() + b"x")
    refs._parquet_group.cache_clear()
    with pytest.raises(InputError, match="changed since"):
        read_image(found[0])


def test_checking_an_input_reads_no_image(tmp_path: Path) -> None:
    big: list[Cell] = [{"bytes": bytes([n]) * 1_000_000, "path": f"{n}.png"} for n in range(30)]
    pq.write_table(hub_table(big), path := tmp_path / "a.parquet")
    write_arrow(arrow := tmp_path / "a.arrow", hub_table(big), 10)
    del big
    for file in (path, arrow):
        tracemalloc.start()
        before = pa.default_memory_pool().max_memory()
        assert len(rows_of(file)) == 30
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
        assert pa.default_memory_pool().max_memory() <= before + 5_000_000
