"""WebDataset tars: whole, odd, hostile and torn."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from capfilt.errors import InputError
from capfilt.inputs import InputSpec, open_input, read_image
from tests.inputs.tools import fault_of, has_all, rows_of

Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members, kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, text: bytes | None = b"a caption", **fields: object) -> Members:
    members = [(f"{key}.jpg", f"image of {key}".encode())]
    if text is not None:
        members.append((f"{key}.txt", text))
    if fields:
        members.append((f"{key}.json", json.dumps(fields).encode()))
    return members


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples(tmp_path: Path, kind: int) -> None:
    members = [
        *sample("000", url="http://x/0", caption="other"),
        *sample("d/001"),
        *sample("002", b""),
    ]
    rows = rows_of(write_tar(tmp_path / "a.tar", members, kind))
    assert [(row["url"], row["caption"]) for row in rows] == [
        ("http://x/0", "a caption"),
        ("a.tar/d/001", "a caption"),
        ("a.tar/002", ""),
    ]
    images = [read_image(str(row["image_ref"])) for row in rows]
    assert images == [b"image of 000", b"image of d/001", b"image of 002"]


def test_captions_in_the_json(tmp_path: Path) -> None:
    members = [*sample("0", None, caption="a", alt="b"), *sample("1", None)]
    path = write_tar(tmp_path / "a.tar", members)
    assert [row["caption"] for row in rows_of(path)] == ["a", None]
    assert [row["caption"] for row in rows_of(path, caption_col="alt")] == ["b", None]


def test_fields_named_by_options(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("0", b"txt", link="http://x", alt="b"))
    (row,) = rows_of(path, url_col="link", caption_col="alt")
    assert (row["url"], row["caption"]) == ("http://x", "b")


def test_long_and_odd_names(tmp_path: Path) -> None:
    keys = ["x" * 150, "日本", "../../etc/evil", "/abs/olute", "sp ace\n"]
    path = write_tar(tmp_path / "a.tar", [m for key in keys for m in sample(key)])
    rows = rows_of(path)
    assert [read_image(str(row["image_ref"])) for row in rows] == [
        f"image of {key}".encode() for key in keys
    ]
    assert not (tmp_path.parent / "etc").exists()  # nothing is ever extracted


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("caf\udce9.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    (row,) = rows_of(tmp_path / "a.tar")
    assert row["url"] == "a.tar/caf\\udce9"
    assert read_image(str(row["image_ref"])) == b"x"


def test_tars_of_the_same_name_in_two_folders_give_different_addresses(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", sample("k"))
    rows = rows_of(f"{tmp_path}/*/0.tar")
    assert [row["url"] for row in rows] == ["a/0.tar/k", "b/0.tar/k"]


def test_extensions(tmp_path: Path) -> None:
    members = [
        ("0.seg.png", b"no image"), ("0.PNG", b"png"), ("0.txt", b"upper case"),
        ("1.png", b"png"), ("1.jpg", b"jpg"),
        ("2.jpg", b"first"), ("2.jpg", b"second"),
        ("README", b"ignored"), (".hidden.jpg", b"ignored"),
    ]  # fmt: skip
    rows = rows_of(write_tar(tmp_path / "a.tar", members))
    assert [read_image(str(row["image_ref"])) for row in rows] == [b"png", b"jpg", b"first"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("1.txt", b"text alone")], "the tar has no image for this sample"),
        ([("1.jpg", b"x"), ("1.txt", b"caf\xe9")], "the .txt member is not UTF-8"),
        ([("1.jpg", b"x"), ("1.json", b"{")], "the .json member is not JSON"),
        ([("1.jpg", b"x"), ("1.json", b"[" * 100_000)], "the .json member is not JSON"),
        ([("1.jpg", b"x"), ("1.json", b"[]")], "the .json member is no object"),
        ([("1.jpg", b"x"), ("1.json", b'{"url": 7}')], "'url' in the .json member is no text"),
        ([("1.jpg", b"x"), ("1.json", b'{"url": "\\ud800"}')],
         "'url' in the .json member holds half of a surrogate pair"),
        ([("1.jpg", b"x"), ("1.txt", b"x" * (16 * 1024 * 1024 + 1))],
         "the .txt member is too long or no plain file"),
    ],
)  # fmt: skip
def test_a_bad_sample_costs_its_row(tmp_path: Path, members: Members, reason: str) -> None:
    path = write_tar(tmp_path / "a.tar", [*sample("0"), *members, *sample("2")])
    before, bad, after = rows_of(path)
    assert (bad["url"], bad["image_ref"], bad["input_error"]) == ("a.tar/1", None, reason)
    assert before["input_error"] is None
    assert after["input_error"] is None


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_cost_their_row(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("0.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
        info = tarfile.TarInfo("1.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    special, plain = rows_of(path)
    assert special["image_ref"] is None
    assert special["input_error"] == "the image is a link or another special member of the tar"
    assert read_image(str(plain["image_ref"])) == b"x"


# --- damage


def many(path: Path) -> Path:
    return write_tar(path, [m for i in range(20) for m in sample(f"{i:03d}")], tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("keep", [700, 5000, 5 * 1024 + 100, 20 * 1024 + 10])
def test_torn(tmp_path: Path, keep: int) -> None:
    path = many(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[:keep])
    assert has_all(fault_of(path), [str(path), "cannot be read as a tar", "fetch it again"])


def test_a_tar_without_an_end_mark_is_whole(tmp_path: Path) -> None:
    path = many(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes().rstrip(b"\x00").ljust(40 * 1024, b"\x00"))
    assert len(rows_of(path)) == 20


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = many(tmp_path / "a.tar")
    content = bytearray(path.read_bytes())
    content[10 * 1024] ^= 0xFF  # in the name of the sixth sample's image
    path.write_bytes(content)
    assert has_all(fault_of(path), ["damaged at byte 10240"])


def test_tars_joined_by_cat_are_not_cut_short(tmp_path: Path) -> None:
    path = many(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes() * 2)
    assert has_all(fault_of(path), ["several tars joined by cat"])


def test_a_size_that_leads_backwards_does_not_hang(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("0"), tarfile.GNU_FORMAT)
    evil = tarfile.TarInfo("1.jpg")
    evil.size = -1536  # from the end of this header, at byte 2560, back to that of 0.txt
    path.write_bytes(path.read_bytes()[:2048] + evil.tobuf(tarfile.GNU_FORMAT) + bytes(9216))
    assert has_all(fault_of(path), [str(path), "cannot be read as a tar"])


def test_rows_are_streamed_in_constant_memory(tmp_path: Path) -> None:
    def peak(samples: int) -> int:
        members = [member for i in range(samples) for member in sample(f"{i:05d}")]
        path = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
        data = open_input(InputSpec((str(path),)))
        tracemalloc.start()
        try:
            assert sum(block.num_rows for block in data.rows(50)) == samples
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is loaded once
    assert peak(1000) < 1.2 * peak(100)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + b"\x00" * 600])
def test_not_a_tar(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert str(path) in fault_of(path)


def test_a_compressed_tar_under_a_plain_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz"):
        pass
    assert has_all(fault_of(path), ["compressed", "decompress it"])


def test_a_tar_without_samples(tmp_path: Path) -> None:
    assert has_all(fault_of(write_tar(tmp_path / "a.tar", [])), ["a.tar", "no rows"])
    path = write_tar(tmp_path / "b.tar", [("0.txt", b"x"), ("1.txt", b"x")])
    assert has_all(fault_of(path), ["none of the 2 rows is usable", "no image"])


def test_a_changed_tar_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("0"))
    (row,) = rows_of(path)
    write_tar(path, sample("1") + sample("2"))
    with pytest.raises(InputError, match=r"a\.tar: changed since"):
        read_image(str(row["image_ref"]))
