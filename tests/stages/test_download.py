"""The download stage against a real server: every fault costs its own row, and no more."""

import io
import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from capfilt import schema
from capfilt.simweb.corruption import Noise
from capfilt.simweb.faults import HARMLESS, PASSING, Fault
from capfilt.simweb.replies import FaultSettings
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb
from capfilt.stages.download import Download, Resize
from capfilt.stages.download.guard import is_public
from capfilt.stages.download.opener import Limits, guarded_urlopen
from capfilt.stages.failures import can_pass

# img2dataset imports a module that Python has announced to remove.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

CLEAN = SimulatedWeb(seed=5, noise=Noise().scaled(0.0))
PATIENT = Download(
    allow_private_hosts=True, timeout=2.0, total_timeout=4.0, max_bytes=2_000_000, threads=16
)
SETTINGS = FaultSettings(delay_s=0.2, drip_s=0.001, huge_bytes=1 << 30)


def batch(urls: list[str | None], statuses: list[str] | None = None) -> pa.RecordBatch:
    count = len(urls)
    columns = {
        "url": urls,
        "image_ref": [None] * count,
        "source_status": statuses or [schema.SOURCE_OK] * count,
        "source_error": [None] * count,
    }
    arrays = [pa.array(values, pa.string()) for values in columns.values()]
    return pa.record_batch(arrays, names=list(columns))


def fetch(stage: Download, rows: pa.RecordBatch) -> list[dict[str, object]]:
    with stage.open() as transform:
        fetched = transform(rows)
    assert fetched.schema == schema.DOWNLOAD
    found: list[dict[str, object]] = fetched.to_pylist()
    return found


def test_every_fault_costs_its_own_row_with_a_reason() -> None:
    faults = {f"/img/{number:09d}.jpg": fault for number, fault in enumerate(Fault)}
    with WebServer(CLEAN, faults=faults, settings=SETTINGS) as server:
        urls: list[str | None] = [
            "http://127.0.0.1:1/x.jpg" if fault is Fault.REFUSED else server.url(path)
            for path, fault in faults.items()
        ]
        rows = fetch(PATIENT, batch(urls))
    for fault, row in zip(faults.values(), rows, strict=True):
        fine = fault in HARMLESS
        assert (row["status"] == schema.SUCCESS) == fine, (fault, row["error_message"])
        assert (row["image"] is not None) == fine
        assert bool(row["error_message"]) != fine
        if not fine:
            assert can_pass(str(row["failure"])) == (fault in PASSING), (fault, row)
        else:
            assert isinstance(row["image"], bytes)
            assert len(row["image"]) == row["image_bytes"]
            assert len(str(row["sha256"])) == 64


def test_a_drip_that_never_ends_is_ended_by_the_total_time() -> None:
    slow = FaultSettings(drip_s=0.3, drip_bytes=16)
    with WebServer(CLEAN, faults={"/img/000000001.jpg": Fault.DRIP}, settings=slow) as server:
        stage = Download(allow_private_hosts=True, timeout=2.0, total_timeout=1.0)
        (row,) = fetch(stage, batch([server.url("/img/000000001.jpg")]))
    assert row["status"] == schema.FAILED_TO_DOWNLOAD
    assert can_pass(str(row["failure"])), row["error_message"]


def test_rows_keep_their_places_and_refused_ones_are_not_fetched() -> None:
    with WebServer(CLEAN) as server:
        urls: list[str | None] = [server.url(f"/img/{n:09d}.jpg") for n in range(12)]
        urls[4] = None
        statuses = [schema.SOURCE_OK] * 12
        statuses[4], statuses[7] = schema.INVALID_URL, schema.DUPLICATE_URL
        rows = fetch(PATIENT, batch(urls, statuses))
        alone = [fetch(PATIENT, batch([url]))[0] for url in (urls[2], urls[11])]
        assert server.hits["/img/000000007.jpg"] == 0
    assert rows[4]["status"] == schema.INVALID_URL
    assert rows[7]["status"] == schema.DUPLICATE_URL
    assert [rows[2]["image"], rows[11]["image"]] == [row["image"] for row in alone]


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/x",
        "http://localhost:9/x",
        "http://[::1]:9/x",
        "http://[::ffff:127.0.0.1]:9/x",
        "http://2130706433:9/x",
        "http://0.0.0.0:9/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/x",
        "http://192.168.1.1/x",
        "http://100.64.0.1/x",
    ],
)
def test_private_addresses_are_refused(address: str) -> None:
    (row,) = fetch(Download(timeout=1.0, total_timeout=2.0), batch([address]))
    assert row["status"] == schema.FAILED_TO_DOWNLOAD
    assert "not a public address" in str(row["error_message"])
    assert not can_pass(str(row["failure"]))


@pytest.mark.parametrize("scheme", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_other_schemes_are_never_opened(scheme: str) -> None:
    with (
        guarded_urlopen(Limits(True, 2.0, 1000)),
        pytest.raises(urllib.error.URLError, match="unknown url type"),
    ):
        urllib.request.urlopen(scheme, timeout=1.0)


def test_the_opener_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("here")
    with guarded_urlopen(Limits(True, 2.0, 1000)):
        pass
    with urllib.request.urlopen((tmp_path / "x").as_uri()) as answer:
        assert answer.read() == b"here"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("224.0.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_images_are_resized_as_asked() -> None:
    with WebServer(CLEAN) as server:
        urls: list[str | None] = [server.url(f"/img/{n:09d}.jpg") for n in range(4)]
        small = Download(allow_private_hosts=True, resize=Resize(image_size=64, min_image_size=100))
        rows = fetch(small, batch(urls))
    for row in rows:
        if row["status"] == schema.FAILED_TO_RESIZE:
            assert row["error_message"] == "image too small"
        else:
            assert min(int(str(row["width"])), int(str(row["height"]))) == 64


def _exif_jpeg(orientation: int) -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    image = Image.new("RGB", (90, 60), "white")
    image.paste((200, 30, 30), (0, 0, 90, 20))
    image.save(out, "JPEG", exif=exif)
    return out.getvalue()


def _local_ref(file: Path) -> str:
    status = file.stat()
    return json.dumps(["file", str(file), status.st_size, status.st_mtime_ns])


def test_fetched_and_local_pictures_are_turned_and_fail_alike(tmp_path: Path) -> None:
    files = {
        "turned.jpg": _exif_jpeg(6),
        "cut.jpg": _exif_jpeg(1)[:-300],
        "page.jpg": b"<html>gone</html>",
        "empty.jpg": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    count = len(files)
    with WebServer(CLEAN, folder=tmp_path) as server:
        fetched = fetch(PATIENT, batch([server.url(name) for name in files]))
    columns = {
        "url": list(files),
        "image_ref": [_local_ref(tmp_path / name) for name in files],
        "source_status": [schema.SOURCE_OK] * count,
        "source_error": [None] * count,
    }
    arrays = [pa.array(values, pa.string()) for values in columns.values()]
    local = fetch(PATIENT, pa.record_batch(arrays, names=list(columns)))
    for web, disk in zip(fetched, local, strict=True):
        assert {**web, "exif": None} == {**disk, "exif": None}  # img2dataset's, of fetched ones
    turned, *failed = local
    assert [turned[n] for n in ("width", "height", "original_width", "original_height")] == [
        *(60, 90),
        *(60, 90),
    ]
    assert "a camera" in str(fetched[0]["exif"])
    assert "Orientation" not in str(fetched[0]["exif"])
    with Image.open(io.BytesIO(files["turned.jpg"])) as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert isinstance(turned["image"], bytes)
    with Image.open(io.BytesIO(turned["image"])) as stored:
        assert stored.getexif().get(0x0112) is None
        assert np.abs(np.asarray(stored).astype(int) - upright).mean() < 3
    assert [row["failure"] for row in failed] == ["truncated_image", *["not_an_image"] * 2]
    assert {row["status"] for row in failed} == {schema.FAILED_TO_RESIZE}


def test_local_files_that_are_gone_or_changed_are_told_apart(tmp_path: Path) -> None:
    gone, changed = tmp_path / "gone.jpg", tmp_path / "changed.jpg"
    for file in (gone, changed):
        file.write_bytes(_exif_jpeg(1))
    refs = [_local_ref(file) for file in (gone, changed)]
    gone.unlink()
    changed.write_bytes(b"another")
    columns = {"url": ["a", "b"], "image_ref": refs, "source_status": [schema.SOURCE_OK] * 2}
    arrays = [pa.array(values, pa.string()) for values in columns.values()]
    nothing = pa.nulls(2, pa.string())
    rows = pa.record_batch([*arrays, nothing], names=[*columns, "source_error"])
    assert [row["failure"] for row in fetch(PATIENT, rows)] == ["missing_file", "changed_file"]
