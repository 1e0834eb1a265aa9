"""A folder of images with a captions table, whose names are hostile, and references to images."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import InputError
from capfilt.inputs import InputSpec, open_input, read_image
from capfilt.inputs.refs import MAX_IMAGE_BYTES
from tests.inputs.tools import fault_of, has_all, rows_of

Row = dict[str, str | None]


def folder_of(tmp_path: Path, *names: str) -> Path:
    """Make a folder whose images hold their own names, beside a file that must stay unread."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    folder = tmp_path / "data"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def captions(folder: Path, *names: str) -> Path:
    lines = [json.dumps({"image": name, "caption": f"c{i}"}) for i, name in enumerate(names)]
    table = folder / "captions.jsonl"
    table.write_text("\n".join(lines))
    return table


def image_of(row: Row) -> bytes:
    assert row["image_ref"] is not None
    return read_image(row["image_ref"])


def reason(folder: Path, name: str) -> str | None:
    """Return why the image `name` costs its row; the row beside it must not suffer."""
    good, bad = rows_of(captions(folder, "ok.jpg", name), kind="images")
    assert image_of(good) == b"ok.jpg"
    assert bad["image_ref"] is None
    assert (bad["url"], bad["caption"]) == (name, "c1")
    return bad["input_error"]


def test_names_of_any_characters(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "sub/b.png",
        'quote" and \\.jpg',
        "new\nline.jpg",
        "日本 %2F\x01.jpg",
        "[1].jpg",
    ]
    folder = folder_of(tmp_path, *names)
    rows = rows_of(captions(folder, *names, "./a.jpg", "sub/../a.jpg"), kind="images")
    assert [image_of(row).decode() for row in rows] == [*names, "a.jpg", "a.jpg"]
    assert [row["url"] for row in rows[: len(names)]] == names
    assert rows[0]["image_ref"] == rows[-1]["image_ref"]


def test_a_folder_whose_path_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"bytes")
    table = captions(folder, "a.jpg")
    (row,) = rows_of(table, kind="images")
    assert row["image_ref"] is not None
    assert row["image_ref"].isascii()
    assert "caf\\udce9" in open_input(InputSpec((str(table),), "images")).describe()
    assert image_of(row) == b"bytes"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../secret.jpg", "leads out of the images folder"),
        ("sub/../../secret.jpg", "leads out of the images folder"),
        ("/etc/passwd", "leads out of the images folder"),
        ("out.jpg", "leads out of the images folder"),
        ("folder/secret.jpg", "leads out of the images folder"),
        ("missing.jpg", "No such file"),
        ("ok.jpg/x", "No"),
        ("", "no image name"),
        (".", "no regular file"),
        ("pipe.jpg", "no regular file"),
        ("loop.jpg", "no regular file"),
        ("nul\x00.jpg", "not a path"),
        ("x" * 5000, "File name too long"),
        ("huge.jpg", f"more than {MAX_IMAGE_BYTES}"),
    ],
)
def test_a_bad_name_costs_its_row(tmp_path: Path, name: str, expected: str) -> None:
    folder = folder_of(tmp_path, "ok.jpg", "sub/b.jpg")
    (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # sparse
    message = reason(folder, name)
    assert message is not None
    assert expected in message


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "ok.jpg")
    (folder / "link.jpg").symlink_to("ok.jpg")
    first, second = rows_of(captions(folder, "ok.jpg", "link.jpg"), kind="images")
    assert first["image_ref"] == second["image_ref"]


def test_a_folder_beside_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    folder_of(tmp_path, "ok.jpg")
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "x.jpg").write_bytes(b"x")
    assert reason(tmp_path / "data", "../data2/x.jpg") == (
        "the image name leads out of the images folder (--images-dir)"
    )


def test_links_into_a_store_are_followed_on_request(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "blob").write_bytes(b"in the store")
    folder = folder_of(tmp_path, "ok.jpg")
    (folder / "link.jpg").symlink_to("../store/blob")
    (folder / "all").symlink_to("../store")
    (folder / "gone.jpg").symlink_to("../store/not-fetched")
    (folder / "pipe.jpg").symlink_to("../store/pipe")
    os.mkfifo(store / "pipe")
    names = ["ok.jpg", "link.jpg", "all/blob", "all\\blob", "gone.jpg", "pipe.jpg"]
    hostile = ["all/../secret.jpg", "../secret.jpg", str(store / "blob"), "all\\..\\secret.jpg"]
    table = captions(folder, *names, *hostile)
    rows = rows_of(table, kind="images", follow_links=True)
    found = [image_of(row) if row["image_ref"] else None for row in rows]
    assert found == [b"ok.jpg", *[b"in the store"] * 3, *[None] * 6]
    reasons = [row["input_error"] or "" for row in rows]
    assert "target is missing" in reasons[4]
    assert "no regular file" in reasons[5]
    assert all("leads out of the images folder" in reason for reason in reasons[6:])
    refused = rows_of(table, kind="images")
    assert [row["image_ref"] is None for row in refused] == [False, *[True] * 9]
    assert all("--follow-links" in (row["input_error"] or "") for row in refused[1:4])
    other = folder / "urls.csv"
    other.write_text("url,caption\nu,c\n")
    assert "--follow-links goes with --input-format images" in fault_of(other, follow_links=True)


def test_backslashes_of_windows_separate_folders_where_no_file_is_called_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "sub/a.png", "b.png", "odd\\name.png")
    names = [".\\sub\\a.png", "sub\\a.png", ".\\b.png", "odd\\name.png"]
    rows = rows_of(captions(folder, *names), kind="images")
    assert [image_of(row) for row in rows] == [
        b"sub/a.png", b"sub/a.png", b"b.png", b"odd\\name.png"
    ]  # fmt: skip
    assert [row["url"] for row in rows] == names
    assert reason(folder_of(tmp_path, "ok.jpg"), "..\\secret.jpg") is not None


# --- where the images are looked for


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_the_hubs_imagefolder_is_found_by_itself(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, "a.jpg", "images/a.jpg")
    table = folder / name
    if name.endswith(".parquet"):
        columns = {"file_name": ["a.jpg", "images/a.jpg"], "text": ["one", "two"]}
        pq.write_table(pa.table(columns), table)
    elif name.endswith(".csv"):
        table.write_text("file_name,text\na.jpg,one\nimages/a.jpg,two\n")
    else:
        lines = [
            {"file_name": "a.jpg", "text": "one"},
            {"file_name": "images/a.jpg", "text": "two"},
        ]
        table.write_text("\n".join(map(json.dumps, lines)))
    for given in (folder, table):
        rows = rows_of(given)
        assert [image_of(row) for row in rows] == [b"a.jpg", b"images/a.jpg"]
    (folder / "urls.csv").write_text("url,caption\nu,c\n")
    assert has_all(fault_of(folder), ["metadata" if ".csv" in name else "urls.csv"])


def test_images_folder_beside_the_table_is_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "images/a.jpg", "a.jpg")
    table = captions(folder, "a.jpg")
    for path in (table, folder):
        (row,) = rows_of(path, kind="images")
        assert image_of(row) == b"images/a.jpg"
    (row,) = rows_of(table, images_dir=str(folder))  # kind: auto
    assert image_of(row) == b"a.jpg"
    data = open_input(InputSpec((str(table),), "images"))
    assert data.local
    assert data.describe() == f"{table}: 1 row, images in {folder}/images with captions"


@pytest.mark.parametrize("column", ["image", "file_name", "FileName", "image_path", "file"])
def test_names_of_the_image_column(tmp_path: Path, column: str) -> None:
    folder = folder_of(tmp_path, "a.jpg")
    (folder / "metadata.csv").write_text(f"{column},text\na.jpg,c\n")
    (row,) = rows_of(folder, kind="images")
    assert image_of(row) == b"a.jpg"
    (folder / "metadata.csv").write_text("pic,text\na.jpg,c\n")
    assert has_all(fault_of(folder, kind="images"), ["no image name column", "--image-col"])
    (row,) = rows_of(folder, image_col="pic")  # kind: auto
    assert image_of(row) == b"a.jpg"


def test_wrong_folders(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jpg", "sub/b.jpg")
    table = captions(folder, "a.jpg")
    message = fault_of(table, images_dir=str(tmp_path / "nope"))
    assert has_all(message, ["nope: no such folder", "--images-dir"])
    message = fault_of(table, images_dir=str(folder / "sub"))
    assert has_all(message, [str(table), "none of the 1 row", "No such file"])
    other = captions(folder / "sub", "b.jpg")
    assert has_all(fault_of(table, other, kind="images"), ["2 folders", "--images-dir"])
    (folder / "other.csv").write_text("image,caption\na.jpg,c\n")
    message = fault_of(folder, kind="images")
    assert has_all(message, ["several tables (captions.jsonl, other.csv)", "name the right one"])
    assert has_all(fault_of(folder / "a.jpg", kind="images"), ["a.jpg", "does not tell its format"])


# --- references


def test_an_image_that_changed_is_not_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jpg")
    table = captions(folder, "a.jpg")
    (old,) = rows_of(table, kind="images")
    os.utime(folder / "a.jpg", ns=(1, 1))  # the same bytes, but no one knows
    with pytest.raises(InputError, match=r"a\.jpg: changed since"):
        image_of(old)
    (new,) = rows_of(table, kind="images")
    assert new["image_ref"] != old["image_ref"]
    assert image_of(new) == b"a.jpg"
    (folder / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.jpg: No such file"):
        image_of(new)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_an_image_that_was_replaced_by_something_else_is_not_read(
    tmp_path: Path, kind: str
) -> None:
    folder = folder_of(tmp_path, "a.jpg")
    (row,) = rows_of(captions(folder, "a.jpg"), kind="images")
    path = folder / "a.jpg"
    path.unlink()
    if kind == "link":
        path.symlink_to(tmp_path / "secret.jpg")
    elif kind == "pipe":
        os.mkfifo(path)  # nobody writes: opening it must not wait
    else:
        path.mkdir()
    with pytest.raises(
        InputError, match=r"a\.jpg: (Too many levels|not a regular file|Is a directory)"
    ):
        image_of(row)


# --- real data


@pytest.mark.parametrize(
    ("name", "images", "rows"), [("smoke_cc0", 16, 25), ("smoke_ccby48", 48, 240)]
)
def test_real_pictures(test_data: Path, name: str, images: int, rows: int) -> None:
    found = rows_of(test_data / name / "captions.csv", kind="images")
    assert len(found) == rows
    assert all(row["caption"] and row["input_error"] is None for row in found)
    contents = {row["url"]: image_of(row) for row in found}
    assert len(contents) == images
    for url, content in contents.items():
        assert content == (test_data / name / "images" / str(url)).read_bytes()
