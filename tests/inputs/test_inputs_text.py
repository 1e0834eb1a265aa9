"""CSV, TSV and JSON lines: every way in which they are well or badly written."""

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from capfilt.errors import InputError
from capfilt.inputs import InputSpec, open_input
from tests.inputs.tools import fault_of, has_all, pairs_of, rows_of

HEAD = "url,caption\n"


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- what is read


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("url,caption\nu1,one\nu2,two\n", [("u1", "one"), ("u2", "two")]),
        ("url,caption\nu1,no line end at the end", [("u1", "no line end at the end")]),
        ("url,caption\r\nu1,one\r\nu2,\r\n", [("u1", "one"), ("u2", "")]),
        ("url,caption\ru1,one\ru2,two\r", [("u1", "one"), ("u2", "two")]),
        ("\ufeffurl,caption\nu1,mark\n", [("u1", "mark")]),
        ('url,caption\nu1,"a, b"\nu2,"say ""hi"""\n', [("u1", "a, b"), ("u2", 'say "hi"')]),
        ('url,caption\nu1,"two\nlines"\nu2,x\n', [("u1", "two\nlines"), ("u2", "x")]),
        ('url,caption\nu1,5" nail\n', [("u1", '5" nail')]),
        ("url,caption\nu1,nul \x00 and bell \x07\n", [("u1", "nul \x00 and bell \x07")]),
        ("url,caption\nu1,NA\nu2,null\nu3, \n", [("u1", "NA"), ("u2", "null"), ("u3", " ")]),
        ("url,caption\n\nu1,blank lines\n\n", [("u1", "blank lines")]),
        ("caption,id,url\none,7,u1\n", [("u1", "one")]),
        ("url;caption\nu1;a, b\n", [("u1", "a, b")]),
        ("url|caption\nu1|bar\n", [("u1", "bar")]),
        ("url\tcaption\nu1\ttab in a csv\n", [("u1", "tab in a csv")]),
        ("url,caption\nu1," + "long " * 50_000 + "\n", [("u1", "long " * 50_000)]),
    ],
)
def test_csv(tmp_path: Path, content: str, expected: list[tuple[str, str]]) -> None:
    assert pairs_of(put(tmp_path, "a.csv", content)) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('url\tcaption\nu1\t" the best "\n', [("u1", '" the best "')]),
        ('url\tcaption\nu1\t"never closed\nu2\tx\n', [("u1", '"never closed'), ("u2", "x")]),
        ('url\tcaption\nu1\t"a" b\nu2\t"say ""hi"""\n', [("u1", '"a" b'), ("u2", '"say ""hi"""')]),
        # A quote that opens in one row and closes in the next must not swallow a row.
        ('url\tcaption\nu1\t"a\nu2\tb"\n', [("u1", '"a'), ("u2", 'b"')]),
        ('url\tcaption\nu1\t"a\nu2\tb""c"\n', [("u1", '"a'), ("u2", 'b""c"')]),
        # Written with quoting: doubled quotes, a quoted header, a line end inside a text.
        ('url\tcaption\nu1\t"say ""hi"""\n', [("u1", 'say "hi"')]),
        ('"url"\t"caption"\n"u1"\t"quoted"\n', [("u1", "quoted")]),
        ('url\tcaption\nu1\t"two\nlines"\n', [("u1", "two\nlines")]),
        ('url\tcaption\nu1\t"a\ttab"\n', [("u1", "a\ttab")]),
        ("url,caption\nu1,commas in a tsv\n", [("u1", "commas in a tsv")]),
    ],
)
def test_tsv(tmp_path: Path, content: str, expected: list[tuple[str, str]]) -> None:
    assert pairs_of(put(tmp_path, "a.tsv", content)) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"url": "u1", "caption": "one"}\n', [("u1", "one")]),
        ('{"url": "u1", "caption": null}\n{"url": "u2"}\n{"caption": ""}',
         [("u1", None), ("u2", None), (None, "")]),
        ('\n{"url": "u1", "caption": "x"}\r\n  \n', [("u1", "x")]),
        ('{"url": "u1", "caption": "a\\nb\\u0000 \u2028 \\ud83d\\ude00"}\n',
         [("u1", "a\nb\x00 \u2028 \U0001f600")]),
        ('\ufeff{"url": "u1", "caption": "mark", "extra": [1, {"a": 2}]}\n', [("u1", "mark")]),
    ],
)  # fmt: skip
def test_json_lines(tmp_path: Path, content: str, expected: list[tuple[str, str]]) -> None:
    for name in ("a.jsonl", "a.ndjson", "a.json"):
        assert pairs_of(put(tmp_path, name, content)) == expected


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst", ".lz4"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_compressed_text(tmp_path: Path, name: str, suffix: str) -> None:
    text = '{"url": "u1", "caption": "é"}\n' if name == "a.jsonl" else "url,caption\nu1,é\n"
    codec = {".gz": "gzip", ".zst": "zstd"}.get(suffix, suffix[1:])
    path = tmp_path / (name + suffix)
    with pa.output_stream(str(path), compression=codec) as out:
        out.write(text.encode())
    assert pairs_of(path) == [("u1", "é")]


def test_gzip_of_several_members_is_read_to_the_end(tmp_path: Path) -> None:
    content = gzip.compress(b"url,caption\nu1,a\n") + gzip.compress(b"u2,b\n")
    assert pairs_of(put(tmp_path, "a.csv.gz", content)) == [("u1", "a"), ("u2", "b")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "latin-1", "UTF-8-SIG"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path, "a.csv", "url,caption\nu1,café\n".encode(encoding))
    assert pairs_of(path, encoding=encoding) == [("u1", "café")]


def test_half_a_surrogate_pair_costs_its_row(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", '{"url":"u1","caption":"a\\ud83d"}\n{"url":"u2","caption":"b"}')
    cut, whole = rows_of(path)
    assert (cut["url"], cut["caption"]) == ("u1", "a\ufffd")
    assert cut["input_error"] == "'caption' holds half of a surrogate pair, which is no text"
    assert (whole["caption"], whole["input_error"]) == ("b", None)


# --- what is refused, with its line


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", HEAD + "u1,ok\nu2,a, b\n",
         ["a.csv line 3", "3 columns", "header has 2", "double quotes", "'u2,a, b'"]),
        ("a.csv", HEAD + 'u1,"x\ny"\nu2\n', ["a.csv line 4", "1 column"]),
        ("a.csv", HEAD + 'u1,ok\n\nu2,"two\nlines",x\n', ["a.csv line 4", "3 columns"]),
        ("a.csv", HEAD + 'u1,ok\nu2,"open\nu3,x\n', ["a.csv line 3", "never closes", '("")']),
        ("a.csv", HEAD + 'u1,"open\nu3,"x, y"\n', ["a.csv line 2", "line 3", "broken quoting"]),
        ("a.csv", HEAD + 'u1,"the" best\n', ["a.csv line 2", "written twice"]),
        ("a.tsv", "url\tcaption\nu1\ta\tb\n", ["a.tsv line 2", "3 columns", "not hold a tab"]),
        ("a.csv", "http://x.org/1.jpg,one\nhttp://x.org/2.jpg,two\n",
         ["a.csv line 1, column 1", "no header", "http://x.org/1.jpg", "'url,caption'"]),
        ("a.tsv", "a cat\thttp://x.org/1.jpg\n",
         ["a.tsv line 1, column 2", "no header", "'caption<TAB>url'"]),
        ("a.csv", "a,b,http://x.org/1.jpg\n", ["line 1, column 3", "'url,caption'"]),
        ("a.csv", ",\nu1,x\n", ["a.csv line 1", "no header"]),
        ("a.csv", "\nurl,caption\nu1,x\n", ["a.csv line 1", "first line must name"]),
        ("a.csv", '"url"x,caption\n', ["a.csv line 1", "header is broken"]),
        ("a.csv", HEAD, ["a.csv", "no rows", "at least one"]),
        ("a.jsonl", '{"url":"u1","caption":"a"}\n\n{"url": "u2", "caption: 1}\n',
         ["a.jsonl line 3, column 27", "not JSON", "one whole JSON object"]),
        ("a.jsonl", '[{"url": "u1", "caption": "a"}]\n', ["a.jsonl line 1", "array", "jq -c"]),
        ("a.json", '[\n{"url": "u1"}]\n', ["a.json line 1", "not JSON", "jq -c '.[]'"]),
        ("a.jsonl", '{"url":"u1","caption":"a"}\n7\n', ["line 2", "a number", "must be an object"]),
        ("a.jsonl", '{"url":"u1","caption":"a"}\nnull\n', ["line 2", "null"]),
        ("a.jsonl", '{"url":"u1","caption":"a"}\n"u"\n', ["line 2", "a text, but"]),
        ("a.jsonl", '{"url":"u1","caption":"a"}\n{"url":"u2","caption":3.5}\n',
         ["a.jsonl line 2", "'caption' is a number", "write it as a string"]),
        ("a.jsonl", '{"url":["u1"],"caption":"a"}\n', ["line 1", "'url' is an array"]),
        ("a.jsonl", '{"url":"u1","caption":{}}\n', ["line 1", "'caption' is an object"]),
        ("a.jsonl", '{"url":"u1","caption":true}\n', ["line 1", "true or false"]),
        ("a.jsonl", '{"url":"u1","caption":"a"}\n' + "[" * 100_000 + "\n",
         ["a.jsonl line 2", "not readable"]),
        ("a.jsonl", '{"url":"u1","caption":"a","n":' + "9" * 5000 + "}\n",
         ["a.jsonl line 1", "not readable"]),
        ("a.jsonl", "{}\n", ["a.jsonl line 1", "no object with keys"]),
        ("a.csv", b"url,caption\nu1,ok\nu2,caf\xe9!\n",
         ["a.csv line 3, column 7", "byte 0xE9", "not utf-8", "--encoding"]),
        ("a.csv", b"\xef\xbb\xbfurl,caption\r\nu1,caf\xe9\r\n", ["line 2, column 7", "0xE9"]),
        ("a.jsonl", b'{"url":"u1","caption":"a"}\n{"url":"\xff"}\n',
         ["a.jsonl line 2, column 9", "byte 0xFF"]),
        ("a.csv", b"url,caption\nu1,cut \xf0\x9f\x98", ["a.csv line 2, column 8", "byte 0xF0"]),
        ("a.csv", "url,caption\nu1,x\n".encode("utf-16"),
         ["a.csv line 1, column 1", "--encoding utf-16"]),
    ],
)  # fmt: skip
def test_refused_with_file_line_and_advice(
    tmp_path: Path, name: str, content: str | bytes, parts: list[str]
) -> None:
    message = fault_of(put(tmp_path, name, content))
    assert has_all(message, parts), message


def test_a_bad_byte_far_into_the_file_is_found_in_its_line(tmp_path: Path) -> None:
    line = "u,é and some more text\n".encode()
    path = put(tmp_path, "a.csv", HEAD.encode() + line * 100_000 + b"u,\xe9\n")
    assert "a.csv line 100002, column 3: byte 0xE9" in fault_of(path)


def test_lines_are_counted_over_blocks_and_blank_lines(tmp_path: Path) -> None:
    line = '{"url":"u","caption":"c"}\n'
    path = put(tmp_path, "a.jsonl", "\n" + line * 20_000 + "{\n")
    assert "a.jsonl line 20002, column 2: not JSON" in fault_of(path)
    path = put(tmp_path, "a.csv", HEAD + "\n" + "u,c\n" * 20_000 + "u\n")
    assert "a.csv line 20003: 1 column" in fault_of(path)


def test_text_in_the_wrong_wide_encoding_is_told(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", b"url,caption\nu1,x\n")
    assert has_all(fault_of(path, encoding="utf-16"), ["a.csv line 1", "not utf-16", "--encoding"])


@pytest.mark.parametrize("encoding", ["utf-9", "base64"])
def test_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    message = fault_of(put(tmp_path, "a.csv", HEAD), encoding=encoding)
    assert has_all(message, [f"--encoding {encoding}", "cp1252"])


@pytest.mark.parametrize("keep", [-1, -4, 30])
def test_torn_compression(tmp_path: Path, keep: int) -> None:
    whole = gzip.compress(b"url,caption\n" + b"".join(b"u%d,x\n" % i for i in range(5000)))
    message = fault_of(put(tmp_path, "a.csv.gz", whole[:keep]))
    assert has_all(message, ["a.csv.gz", "torn", "Fetch it again"])


def test_a_file_without_lines_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(40 * 1024 * 1024)  # zeros, sparse: one line
    assert has_all(fault_of(path), ["a.csv line 1", "is this a text table?", "--input-format"])


def test_a_field_beyond_the_limit(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", HEAD + "u1,ok\nu2," + "x" * (16 * 1024 * 1024 + 1) + "\n")
    assert has_all(fault_of(path), ["a.csv line 3", "16777216 characters"])


def test_a_file_that_changes_after_the_check_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", HEAD + "u1,a\n")
    data = open_input(InputSpec((str(path),)))
    put(tmp_path, "a.csv", HEAD + "u1,a\nu2,b\n")
    with pytest.raises(InputError, match=r"a\.csv: changed while"):
        next(data.rows())
    path.unlink()
    with pytest.raises(InputError, match="it was there before"):
        next(data.rows())


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_rows_are_streamed_in_constant_memory(tmp_path: Path, name: str) -> None:
    row = {
        "a.csv": 'u,"x, y"\n',
        "a.tsv": "u\tx\n",
        "a.jsonl": '{"url":"u","caption":"x"}\n',
    }[name]
    head = {"a.csv": HEAD, "a.tsv": "url\tcaption\n", "a.jsonl": ""}[name]

    def peak(rows: int) -> int:
        data = open_input(InputSpec((str(put(tmp_path, name, head + row * rows)),)))
        tracemalloc.start()
        try:
            assert sum(block.num_rows for block in data.rows(500)) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is loaded once
    assert peak(20_000) < 1.2 * peak(2_000)


def test_blocks_must_have_rows(tmp_path: Path) -> None:
    data = open_input(InputSpec((str(put(tmp_path, "a.csv", HEAD + "u,x\n")),)))
    with pytest.raises(InputError, match="blocks of 0 rows"):
        data.rows(0)


def test_description(tmp_path: Path) -> None:
    path = put(tmp_path, "a.tsv", "URL\tTEXT\nu\tx\n")
    data = open_input(InputSpec((str(path),)))
    assert not data.local
    assert data.describe() == (
        f"{path}: 1 row, tab-separated, no quoting, columns 'URL' and 'TEXT'"
    )


def test_the_writers_of_the_standard_library_are_read_back(tmp_path: Path) -> None:
    rows = [("http://x/1", 'a "b", c'), ("http://x/2", "d\te\r\nf"), ("http://x/3", "'")]
    for dialect, name in (
        (csv.excel, "a.csv"),
        (csv.excel_tab, "a.tsv"),
        (csv.unix_dialect, "b.csv"),
    ):
        out = io.StringIO(newline="")
        csv.writer(out, dialect).writerows([("url", "caption"), *rows])
        assert pairs_of(put(tmp_path, name, out.getvalue())) == rows
    lines = "\n".join(json.dumps({"url": url, "caption": text}) for url, text in rows)
    assert pairs_of(put(tmp_path, "a.jsonl", lines)) == rows
