"""Which files and columns an input is made of, and how a wrong choice is told."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.inputs import InputSpec, open_input
from tests.inputs.tools import fault_of, has_all, pairs_of


def table(
    folder: Path, name: str, url: str = "url", caption: str = "caption", row: str = "u"
) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{url},{caption}\n{row},c\n")
    return path


def write_parquet(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# --- columns


@pytest.mark.parametrize("url", ["url", "URL", "image_url", "Img_URL", "imageurl", "image_link"])
@pytest.mark.parametrize("caption", ["caption", "TEXT", "alt_text", "alttext", "Alt"])
def test_known_names_in_any_case(tmp_path: Path, url: str, caption: str) -> None:
    assert pairs_of(table(tmp_path, "a.csv", url, caption)) == [("u", "c")]


def test_given_names_win_over_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,caption,link,title\n1,2,3,4\n")
    assert pairs_of(path, url_col="link", caption_col="title") == [("3", "4")]
    assert pairs_of(path, caption_col="title") == [("1", "4")]


def test_one_column_can_be_both(tmp_path: Path) -> None:
    assert pairs_of(table(tmp_path, "a.csv"), caption_col="url") == [("u", "u")]
    path = write_parquet(tmp_path / "a.parquet", url=pa.array(["u"]))
    assert pairs_of(path, caption_col="url") == [("u", "u")]


@pytest.mark.parametrize(
    ("header", "options", "parts"),
    [
        ("link,caption", {}, ["no address column", "'link', 'caption'", "--url-col"]),
        ("url,title", {}, ["no caption column", "'url', 'title'", "--caption-col"]),
        ("url,caption", {"url_col": "urll"}, ["no column 'urll'", "mean 'url'?", "--url-col"]),
        ("url,TITLE", {"caption_col": "tittle"}, ["mean 'TITLE'?", "Correct --caption-col"]),
        ("url,caption", {"caption_col": "xyz"}, ["columns are 'url', 'caption'. C"]),
        ("url,image_url,text", {}, ["'url', 'image_url' could each be the address", "--url-col"]),
        ("url,caption,TEXT", {}, ["'caption', 'TEXT' could each be", "--caption-col"]),
        ("url,URL,text", {}, ["'url', 'URL' could each be", "--url-col"]),
        ("url,url,text", {}, ["two columns are named 'url'", "rename one"]),
        ("image,caption", {}, ["no address column", "--input-format images", "--images-dir"]),
        ("a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r,s,t,u,v", {}, ["'t' and 2 more"]),
    ],
)  # fmt: skip
def test_wrong_columns(
    tmp_path: Path, header: str, options: dict[str, str], parts: list[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header + "\n")
    message = fault_of(path, **options)
    assert has_all(message, [str(path), *parts]), message


def test_tables_that_disagree(tmp_path: Path) -> None:
    first, second = table(tmp_path, "1.csv"), table(tmp_path, "2.csv", url="image_url")
    message = fault_of(first, second)
    assert has_all(message, [f"'url' in {first}", f"'image_url' in {second}", "rename"])
    third = table(tmp_path, "3.csv", url="link")
    assert has_all(fault_of(first, third), [f"{third}: no address column", "'link'"])
    assert pairs_of(first, table(tmp_path, "4.csv", caption="caption,x", row="v,w")) == [
        ("u", "c"),
        ("v", "w"),
    ]


def test_tables_may_spell_a_column_in_any_case(tmp_path: Path) -> None:
    first = table(tmp_path, "1.csv", url="Url", caption="TEXT")
    pq.write_table(pa.table({"text": [["a", "b"]], "URL": ["w"]}), second := tmp_path / "2.parquet")
    third = tmp_path / "3.jsonl"
    third.write_text('{"url": "x", "Text": "y"}')
    expected = [("u", "c"), ("w", "a"), ("w", "b"), ("x", "y")]
    assert pairs_of(first, second, third) == expected
    assert sorted(pairs_of(third, second, first)) == expected


def test_bytes_without_addresses_may_be_images(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"my pixels": [b"1"], "text": ["a"]}), file)
    told = ["'my pixels' holds bytes", "--image-col 'my pixels'", "--url-col"]
    assert has_all(fault_of(file), told)


# --- Parquet


def test_parquet_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", url=pa.array(["u"]), caption=pa.array([7]))
    parts = [f"{path}: column 'caption' is of type int64", "write this one as strings"]
    assert has_all(fault_of(path), parts)
    path = write_parquet(tmp_path / "b.parquet", url=pa.array([["u"]]), caption=pa.array(["c"]))
    assert "'url' is of type list" in fault_of(path)


def test_parquet_column_of_nulls_alone(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", url=pa.array(["u"]), caption=pa.nulls(1))
    assert pairs_of(path) == [("u", None)]


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    good, bad = b"caf\xc3\xa9", b"caf\xe9"
    captions = pa.array([good] * 20_000 + [None, bad, good])
    raw = pa.Array.from_buffers(pa.string(), len(captions), captions.buffers())
    path = write_parquet(tmp_path / "a.parquet", url=pa.array(["u"] * len(captions)), caption=raw)
    parts = [f"{path} row 20002, column 'caption'", "not UTF-8", "write the file again"]
    assert has_all(fault_of(path), parts)


@pytest.mark.parametrize("keep", [3, 200, -1, -9])
def test_torn_parquet(tmp_path: Path, keep: int) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", url=pa.array(["u"] * 99), caption=pa.array(["c"] * 99)
    )
    path.write_bytes(path.read_bytes()[:keep])
    assert has_all(fault_of(path), [str(path), "torn", "fetch or write it again"])


def test_parquet_that_is_damaged_inside(tmp_path: Path) -> None:
    texts = pa.array([f"text {i}" for i in range(5000)])
    path = write_parquet(tmp_path / "a.parquet", url=texts, caption=texts)
    content = bytearray(path.read_bytes())
    content[2000:4000] = b"\xff" * 2000
    path.write_bytes(content)
    assert has_all(fault_of(path), [str(path), "cannot be read as Parquet"])


# --- files, folders, globs


def test_a_folder_is_read_in_the_order_of_names_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.csv", ".hidden.csv", "sub/d.csv"):
        table(tmp_path, name, row=name)
    (tmp_path / "LICENSE.txt").write_text("no table")
    assert [url for url, _ in pairs_of(tmp_path)] == ["a.csv", "b.csv", "c.csv"]


def test_globs_and_files_keep_the_order_given_and_count_once(tmp_path: Path) -> None:
    b, a = (table(tmp_path, name, row=name) for name in ("b.csv", "a.csv"))
    table(tmp_path, "sub/d.csv", row="d")
    table(tmp_path, ".hidden.csv", row="no")
    assert [url for url, _ in pairs_of(b, f"{tmp_path}/*.csv", a)] == ["b.csv", "a.csv"]
    nested = [url for url, _ in pairs_of(f"{tmp_path}/**/*.csv")]
    assert nested == ["a.csv", "b.csv", "d"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    table(tmp_path, "a.csv", row="a")
    assert pairs_of(table(tmp_path, "[a].csv", row="brackets")) == [("brackets", "c")]


def test_an_explicit_format_wins_over_the_name(tmp_path: Path) -> None:
    assert pairs_of(table(tmp_path, "list.txt"), kind="csv") == [("u", "c")]
    path = tmp_path / "list.csv"
    path.write_text('{"url":"u","caption":"j"}\n')
    assert pairs_of(path, kind="jsonl") == [("u", "j")]


def test_a_folder_with_an_explicit_format_takes_those_alone(tmp_path: Path) -> None:
    table(tmp_path, "a.csv")
    write_parquet(tmp_path / "b.parquet", url=pa.array(["p"]), caption=pa.array(["c"]))
    assert pairs_of(tmp_path, kind="parquet") == [("p", "c")]
    message = fault_of(tmp_path)
    assert has_all(message, ["csv (a.csv)", "parquet (b.parquet)", "--input-format"])


def test_missing_things(tmp_path: Path) -> None:
    missing = tmp_path / "nope" / "a.csv"
    assert has_all(fault_of(missing), [f"{missing}: no such file", f"exists is {tmp_path}"])
    assert has_all(fault_of(tmp_path / "*.csv"), ["*.csv: this glob matches no file", "quote it"])
    assert has_all(fault_of(tmp_path), ["no table or tar in this folder", "it is empty"])
    (tmp_path / "x.txt").write_text("x")
    assert has_all(fault_of(tmp_path), ["it holds x.txt"])
    assert has_all(fault_of(tmp_path, kind="csv"), ["no csv file in this folder"])
    assert has_all(fault_of(tmp_path / "x.txt"), ["'x', which is no address", "--input-format csv"])
    (tmp_path / "x.md").write_text("x")
    assert has_all(fault_of(tmp_path / "x.md"), ["does not tell its format", "--input-format csv"])
    assert "no input was given" in fault_of()
    assert "one of the input paths is empty" in fault_of("")


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "https"])
def test_an_address_is_refused_and_not_repeated(scheme: str) -> None:
    fault = fault_of(f"{scheme}://bucket/list.csv?X-Amz-Signature=secret-word")
    assert has_all(fault, [f"an address with {scheme}://", "copy them here", "--run"])
    assert "secret-word" not in fault


def test_empty_and_strange_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    assert has_all(fault_of(tmp_path / "a.csv"), ["a.csv: the file is empty", "completely?"])
    os.mkfifo(tmp_path / "b.csv")
    assert "b.csv: not a regular file" in fault_of(tmp_path / "b.csv")
    (tmp_path / "c.tar.gz").write_bytes(b"x")
    assert has_all(fault_of(tmp_path / "c.tar.gz"), ["c.tar.gz: a compressed tar", "decompress"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = table(tmp_path, "a.csv")
    path.chmod(0)
    assert has_all(fault_of(path), [str(path), "must be readable"])


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"kind": "csv", "images_dir": "."}, "--images-dir"),
        ({"kind": "csv", "image_col": "x"}, "--image-col"),
        ({"download_missing": True}, "--download-missing"),
    ],
)
def test_options_that_do_not_go_with_the_kind(
    tmp_path: Path, options: dict[str, str | bool], option: str
) -> None:
    message = fault_of(table(tmp_path, "a.csv"), **options)
    assert has_all(message, [f"{option} goes with --input-format", "read as csv"])


# --- real data


def test_real_web_pairs(test_data: Path) -> None:
    path = test_data / "metadata" / "cc3m_val_1000.tsv"
    pairs = pairs_of(path)
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    assert pairs == [tuple(line.split("\t")) for line in lines]
    assert len(pairs) == 1000
    assert not open_input(InputSpec((str(path),))).local
