"""Addresses without texts, several texts a row, bytes as texts, and several formats in one call."""

import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.inputs import InputSpec, open_input
from tests.inputs.tools import fault_of, has_all, pairs_of, rows_of


def put(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def objects(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    return put(folder, name, "\n".join(map(json.dumps, rows)))


# --- no texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_address_a_line(tmp_path: Path, end: str) -> None:
    lines = ["http://a.example/1 ", "", "https://a.example/2", "nonsense"]
    path = put(tmp_path, "urls.txt", end.join(lines))
    expected = [("http://a.example/1", None), ("https://a.example/2", None), ("nonsense", None)]
    assert pairs_of(path) == expected
    assert "an address a line" in open_input(InputSpec((str(path),))).describe()
    packed = tmp_path / "urls.txt.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert pairs_of(packed) == expected


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("a caption\thttp://a.example/1\n", ["line 1", "holds a tab", "tsv"]),
        ("# Licence\n", ["'# Licence', which is no address", "--input-format csv"]),
        ("\n\n", ["'', which is no address"]),
    ],
)
def test_a_text_file_that_is_no_list_of_addresses(
    tmp_path: Path, content: str, parts: list[str]
) -> None:
    path = put(tmp_path, "a.txt", content)
    assert has_all(fault_of(path), [str(path), *parts])


def test_tables_without_texts(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "url,caption,id\nu1,one,7\n")
    assert pairs_of(path, no_captions=True) == [("u1", None)]
    bare = put(tmp_path, "b.csv", "url,id\nu1,7\n")
    assert has_all(fault_of(bare), ["no caption column", "--no-captions"])
    assert pairs_of(bare, no_captions=True) == [("u1", None)]
    assert "reads no texts" in fault_of(path, no_captions=True, caption_col="caption")


# --- several texts


def test_lists_of_texts(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"url": "u1", "caption": ["one", "two"]},
        {"url": "u2", "caption": "alone"},
        {"url": "u3", "caption": []},
        {"url": "u4"},
    ]
    expected = [("u1", "one"), ("u1", "two"), ("u2", "alone"), ("u3", None), ("u4", None)]
    path = objects(tmp_path, "a.jsonl", *rows)
    assert pairs_of(path) == expected
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary())):
        texts = pa.array([["one", "two"], ["alone"], [], None], pa.list_(pa.string())).cast(kind)
        table = pa.table({"url": ["u1", "u2", "u3", "u4"], "caption": texts})
        pq.write_table(table, tmp_path / "a.parquet")
        assert pairs_of(tmp_path / "a.parquet") == expected
    message = fault_of(objects(tmp_path, "b.jsonl", {"url": "u", "caption": ["one", 7]}))
    assert has_all(message, ["line 1", "'caption' is an array, not a text"])
    message = fault_of(objects(tmp_path, "c.jsonl", {"url": ["u"], "caption": "one"}))
    assert has_all(message, ["line 1", "'url' is an array"])


# --- bytes as texts


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_are_texts_and_bad_ones_cost_their_row(tmp_path: Path, kind: pa.DataType) -> None:
    urls = pa.array([b"u1", b"u2", b"u3"], kind)
    texts = pa.array(["café".encode(), b"caf\xe9", None], kind)
    pq.write_table(pa.table({"url": urls, "text": texts}), path := tmp_path / "a.parquet")
    rows = rows_of(path)
    assert [row["caption"] for row in rows] == ["café", "caf\\xe9", None]
    assert [row["input_error"] for row in rows] == [None, "'text' is not UTF-8", None]


# --- xz


def test_xz_is_unpacked_and_torn_ones_are_told(tmp_path: Path) -> None:
    packed = lzma.compress(b"url,caption\n" + b"u,a text\n" * 50_000)
    path = tmp_path / "a.csv.xz"
    path.write_bytes(packed)
    assert len(pairs_of(path)) == 50_000
    for broken in (packed[:-20], packed[:60] + b"\0" * 8 + packed[68:], b"no xz at all"):
        path.write_bytes(broken)
        assert has_all(fault_of(path), [str(path), "cannot be read", "torn"])


# --- several formats


def test_several_formats_in_one_call(tmp_path: Path) -> None:
    first = put(tmp_path, "a.csv", "url,caption\nu1,one\n")
    second = tmp_path / "b.parquet"
    pq.write_table(pa.table({"url": ["u2"], "caption": ["two"]}), second)
    third = objects(tmp_path, "c.jsonl", {"caption": "three", "url": "u3"})
    assert pairs_of(first, second, third) == [("u1", "one"), ("u2", "two"), ("u3", "three")]
    data = open_input(InputSpec((str(first), str(second))))
    assert "2 rows, comma-separated, double" not in data.describe()
    assert has_all(data.describe(), ["2 rows", "comma-separated", "Parquet"])
    other = put(tmp_path, "d.tsv", "url\tTEXT\nu4\tfour\n")
    assert has_all(fault_of(first, other), [f"'caption' in {first}", f"'TEXT' in {other}"])


def test_images_beside_addresses_in_one_call(tmp_path: Path) -> None:
    urls = put(tmp_path, "a.csv", "url,caption\nu1,one\n")
    image = pa.array([{"bytes": b"\xff\xd8\xff", "path": "p.jpg"}])
    pq.write_table(pa.table({"image": image, "text": ["two"]}), path := tmp_path / "b.parquet")
    rows = rows_of(urls, path)
    assert [(row["url"], row["caption"]) for row in rows] == [("u1", "one"), ("p.jpg", "two")]
    assert [row["image_ref"] is None for row in rows] == [True, False]
    data = open_input(InputSpec((str(urls), str(path))))
    assert not data.local
    assert has_all(data.describe(), [str(urls), str(path)])


# --- columns that are carried


def kept_of(*paths: Path, names: tuple[str, ...], **options: Any) -> tuple[dict[str, str], Any]:
    spec = InputSpec(tuple(map(str, paths)), keep_columns=names, **options)
    data = open_input(spec)
    assert data.kept is not None
    for block_rows in (1, 100):
        rows = [row for batch in data.rows(block_rows) for row in batch["kept"].to_pylist()]
    return {field.name: str(field.type) for field in data.kept}, rows


def test_types_of_carried_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": ["u1", "u2"],
            "caption": ["a", "b"],
            "n": pa.array([1, None], pa.int16()),
            "x": pa.array([0.5, 1.5], pa.float32()),
            "yes": [True, None],
            "tags": [["a"], []],
            "word": pa.array(["w", "w"]).dictionary_encode(),
            "bytes": [b"x", None],
            "when": pa.array([0, 1], pa.timestamp("s")),
        }
    )
    pq.write_table(table, path := tmp_path / "a.parquet")
    types, rows = kept_of(path, names=("n", "x", "yes", "tags", "word", "bytes", "url"))
    kinds = ["int16", "float", "bool", "list<item: string>", "string", "string", "string"]
    assert list(types.values()) == kinds
    assert list(rows[0].values()) == [1, 0.5, True, ["a"], "w", "x", "u1"]
    assert list(rows[1].values()) == [None, 1.5, None, [], "w", None, "u2"]
    message = fault_of(path, keep_columns=("when",))
    assert has_all(message, ["'when' is of type timestamp", "--keep-columns takes texts"])
    message = fault_of(path, keep_columns=("words",))
    assert has_all(message, ["no column 'words'", "mean 'word'?", "--keep-columns"])
    other = put(tmp_path, "b.csv", "url,caption,n\nu,c,7\n")
    assert has_all(fault_of(path, other, keep_columns=("n",)), ["int16", "string", str(other)])


def test_types_of_carried_json_values(tmp_path: Path) -> None:
    base = {"url": "u", "caption": "c"}
    first: dict[str, Any] = {**base, "i": 1, "f": 1, "s": "x", "b": True, "l": [], "none": None}
    second = {**base, "i": None, "f": 0.5, "s": "\ud800y", "b": False, "l": [1, 2.5], "none": None}
    path = objects(tmp_path, "a.jsonl", first, second)
    types, rows = kept_of(path, names=("i", "f", "s", "b", "l", "none"))
    assert list(types.values()) == [
        "int64", "double", "string", "bool", "list<item: double>", "string"
    ]  # fmt: skip
    assert rows[1] == {"i": None, "f": 0.5, "s": "\ufffdy", "b": False, "l": [1, 2.5], "none": None}
    for value, part in (("x", "'i' is of type string, but int64"), ({}, "neither a text"),
                        (1 << 70, "64 bits"), ([1, "x"], "several types")):  # fmt: skip
        path = objects(tmp_path, "b.jsonl", first, {**base, "i": value})
        assert has_all(fault_of(path, keep_columns=("i",)), ["line 2", part])


def test_rows_of_several_texts_carry_the_same(tmp_path: Path) -> None:
    path = objects(tmp_path, "a.jsonl", {"url": "u", "caption": ["a", "b"], "id": 7})
    assert kept_of(path, names=("id",))[1] == [{"id": 7}, {"id": 7}]


def test_cocos_annotations_are_known(tmp_path: Path) -> None:
    annotations = [{"image_id": 1, "caption": "a dog"}]
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": annotations}
    path = objects(tmp_path, "captions.json", coco)
    assert has_all(fault_of(path), ["COCO's annotations", "jq -c"])
