"""Folders that img2dataset itself has written, whole and damaged."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.errors import InputError
from capfilt.inputs import InputSpec, open_input, read_image
from tests.inputs import run_img2dataset as made
from tests.inputs.tools import fault_of, has_all, rows_of

FORMATS = ("files", "parquet", "webdataset")
Row = dict[str, str | None]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folders of a real run of img2dataset, one for each format."""
    folder = tmp_path_factory.mktemp("img2dataset")
    command = [sys.executable, "-W", "ignore", "-m", "tests.inputs.run_img2dataset", str(folder)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], timeout=120)
    return folder


@pytest.fixture(params=FORMATS)
def output(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> Path:
    """A copy of one of them that a test may damage."""
    return Path(shutil.copytree(written / request.param, tmp_path / request.param))


def number_of(row: Row) -> int:
    return int(str(row["url"]).rpartition("/")[2])


def split(rows: list[Row]) -> list[list[Row]]:
    """Return the rows of each shard, sorted as they were asked for."""
    assert len(rows) == made.SHARDS * made.ROWS
    shards = [rows[: made.ROWS], rows[made.ROWS :]]
    return [sorted(shard, key=number_of) for shard in shards]


@pytest.mark.slow
def test_every_row_is_there_with_its_own_image(output: Path) -> None:
    for shard, rows in enumerate(split(rows_of(output))):
        for number, row in enumerate(rows):
            assert number_of(row) == number
            assert row["caption"] == made.caption(shard, number)
            if made.status(number) == "success":
                image = Image.open(io.BytesIO(read_image(str(row["image_ref"]))))
                assert image.size == made.size(number)
                assert row["input_error"] is None


@pytest.mark.slow
def test_rows_that_failed_stay_with_their_reason(output: Path) -> None:
    failed = [row for row in rows_of(output) if made.status(number_of(row)) != "success"]
    assert len(failed) == 8
    for row in failed:
        assert row["image_ref"] is None
        reason = f"img2dataset: {made.status(number_of(row))}: "
        assert str(row["input_error"]).startswith(reason)
    assert any("HTTP Error 404" in str(row["input_error"]) for row in failed)


@pytest.mark.slow
def test_rows_that_failed_can_be_downloaded_instead(output: Path) -> None:
    data = open_input(InputSpec((str(output),), download_missing=True))
    rows = [row for batch in data.rows() for row in batch.to_pylist()]
    assert not data.local
    assert all(row["input_error"] is None for row in rows)
    assert sum(row["image_ref"] is None for row in rows) == 8


@pytest.mark.slow
def test_the_description_names_the_shards(output: Path) -> None:
    data = open_input(InputSpec((str(output),)))
    assert data.local
    assert data.describe() == (f"{output}/00000.parquet and 1 more: 24 rows, img2dataset shards")


@pytest.mark.slow
def test_one_shard_alone(written: Path) -> None:
    for path in ("files/00001.parquet", "parquet/00001.parquet", "webdataset/00001.tar"):
        rows = rows_of(written / path)
        assert len(rows) == made.ROWS
        assert {row["caption"] for row in rows} == {made.caption(1, n) for n in range(made.ROWS)}


@pytest.mark.slow
def test_tars_alone_have_no_failed_rows(written: Path) -> None:
    rows = rows_of(written / "webdataset", kind="webdataset")
    assert len(rows) == 16
    by_table = {row["image_ref"]: row for row in rows_of(written / "webdataset")}
    for row in rows:
        # The .txt has "" where the caption was null.
        assert row == {**by_table[row["image_ref"]], "caption": row["caption"]}
        assert row["caption"] == (by_table[row["image_ref"]]["caption"] or "")


@pytest.mark.slow
def test_as_a_list_of_addresses(written: Path) -> None:
    data = open_input(InputSpec((str(written / "files"),), kind="parquet"))
    assert not data.local
    assert data.row_count_hint == 24


@pytest.mark.slow
def test_a_row_group_is_not_read_for_another(written: Path, tmp_path: Path) -> None:
    """Rows are found again where groups are smaller than a shard."""
    table = pq.read_table(written / "parquet" / "00000.parquet")
    pq.write_table(table, tmp_path / "00000.parquet", row_group_size=5)
    for row in rows_of(tmp_path):
        if row["image_ref"]:
            image = Image.open(io.BytesIO(read_image(row["image_ref"])))
            assert image.size == made.size(number_of(row))


# --- damage


@pytest.mark.slow
def test_torn_tables(output: Path) -> None:
    path = output / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert has_all(fault_of(output), [f"{path}: cannot be read as Parquet", "torn"])
    path.write_bytes(b"")  # where img2dataset was stopped
    assert has_all(fault_of(output), [f"{path}: the file is empty"])


@pytest.mark.slow
def test_an_unfinished_tar(written: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(written / "webdataset", tmp_path / "out"))
    (output / "00001.parquet").unlink()
    message = fault_of(output)
    assert has_all(message, ["00001.tar: 00001.parquet is not beside it", "webdataset"])
    shutil.copy(written / "webdataset" / "00001.parquet", output)
    tar = output / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    assert has_all(fault_of(output), [f"{tar}: cannot be read as a tar", "fetch it again"])


@pytest.mark.slow
def test_missing_images_cost_their_rows(written: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(written / "files", tmp_path / "out"))
    gone = sorted((output / "00000").glob("*.jpg"))[0]
    gone.unlink()
    linked = sorted((output / "00000").glob("*.jpg"))[1]
    linked.unlink()
    linked.symlink_to("/etc/passwd")
    reasons = [row["input_error"] for row in rows_of(output) if row["input_error"]]
    assert "img2dataset's success, but 00000 has no such image" in reasons
    assert any(reason and "--follow-links" in reason for reason in reasons)
    assert len(reasons) == 8 + 2


@pytest.mark.slow
def test_tables_without_their_images(written: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(written / "files" / "00000.parquet", tmp_path))
    message = fault_of(tmp_path, kind="img2dataset")
    assert has_all(message, ["neither 00000.tar nor the folder 00000/", "--input-format parquet"])
    (tmp_path / "00000.tfrecord").touch()
    assert has_all(fault_of(path, kind="img2dataset"), ["tfrecord is not read", "webdataset"])
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), path)
    message = fault_of(path, kind="img2dataset")
    assert has_all(message, ["no column 'key'", "img2dataset did not write it"])


@pytest.mark.slow
def test_a_changed_table_is_not_read(written: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(written / "parquet", tmp_path / "out"))
    data = open_input(InputSpec((str(output),)))
    refs = [ref for batch in data.rows() for ref in batch.column("image_ref").to_pylist() if ref]
    shutil.copy(output / "00001.parquet", output / "00000.parquet")
    with pytest.raises(InputError, match=re.escape("00000.parquet: changed since")):
        read_image(refs[0])
    with pytest.raises(InputError, match=re.escape("00000.parquet: changed while")):
        next(data.rows())
