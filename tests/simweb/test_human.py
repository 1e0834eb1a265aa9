import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.errors import InputError
from capfilt.simweb import human
from capfilt.simweb.grammar import facts_true
from capfilt.simweb.human import HumanSet, main, write_human
from capfilt.simweb.scenes import sample_scene
from capfilt.simweb.web import web_row
from capfilt.train.data.mixture import Mixture, Stream
from capfilt.train.data.reader import Reader, ReaderOptions


def test_the_pairs_are_true_and_of_scenes_that_no_web_row_shows(tmp_path: Path) -> None:
    wanted = HumanSet(images=40, texts=3, seed=7)
    rows = pq.read_table(write_human(wanted, tmp_path)).to_pylist()
    assert len(rows) == 120
    assert [row["key"] for row in rows] == [rows[3 * (n // 3)]["key"] for n in range(120)]
    assert all(facts_true(row["text"], sample_scene(7, row["scene_index"])) for row in rows)
    assert {row["origin"] for row in rows} == {"human"}
    shown = {web_row(7, index).scene_index for index in range(200)}
    assert not shown & {row["scene_index"] for row in rows}


def test_hard_negatives_are_false(tmp_path: Path) -> None:
    wanted = HumanSet(images=30, texts=2, hard_negatives=True)
    rows = pq.read_table(write_human(wanted, tmp_path / "with")).to_pylist()
    assert not any(facts_true(r["hard_negative"], sample_scene(0, r["scene_index"])) for r in rows)
    without = pq.read_table(write_human(HumanSet(images=30, texts=2), tmp_path / "without"))
    assert without["hard_negative"].null_count == 60
    assert without["text"].to_pylist() == [row["text"] for row in rows]


def test_sets_that_start_apart_share_no_scene(tmp_path: Path) -> None:
    tables = [
        pq.read_table(write_human(HumanSet(20, start=start), tmp_path / str(start)))
        for start in (0, 20)
    ]
    first, second = ({*table["scene_index"].to_pylist()} for table in tables)
    assert len(first) == len(second) == 20
    assert not first & second


def test_a_set_may_be_of_one_thing_and_small(tmp_path: Path) -> None:
    file = write_human(HumanSet(12, items=1, side=32), tmp_path)
    for row in pq.read_table(file).to_pylist():
        assert len(sample_scene(0, row["scene_index"]).items) == 1
        assert min(Image.open(io.BytesIO(row["image"]["bytes"])).size) == 32


def test_worn_pictures_are_the_same_scenes_seen_worse(tmp_path: Path) -> None:
    tables = [
        pq.read_table(write_human(HumanSet(6, side=64, worn=worn), tmp_path / str(worn)))
        for worn in (False, True)
    ]
    assert tables[0].drop_columns(["image"]).equals(tables[1].drop_columns(["image"]))
    clean, worn = (
        [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
        for table in tables
    )
    for one, other in zip(clean, worn, strict=True):
        assert one.shape == other.shape
        assert 0 < np.abs(one.astype(int) - other.astype(int)).mean() < 8


def test_it_is_written_once_the_same_and_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pq.read_table(write_human(HumanSet(30), tmp_path / "whole"))
    monkeypatch.setattr(human, "_IMAGES_A_GROUP", 7)
    file = write_human(HumanSet(30), tmp_path / "pieces")
    assert pq.ParquetFile(file).num_row_groups == 5
    assert pq.read_table(file).equals(whole)
    before = file.stat().st_mtime_ns
    assert write_human(HumanSet(30), tmp_path / "pieces").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another set"):
        write_human(HumanSet(31), tmp_path / "pieces")


def test_the_trainer_reads_it(tmp_path: Path) -> None:
    write_human(HumanSet(10, texts=2, side=32), tmp_path)
    reader = Reader(Mixture((Stream(tmp_path),)), ReaderOptions(batch_size=5, side=16, workers=0))
    assert reader.epoch_samples == 20
    assert len(next(iter(reader)).texts) == 5


@pytest.mark.parametrize("given", [{"images": 0}, {"start": -1}, {"items": 4}, {"side": 2}])
def test_what_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        HumanSet(**{"images": 1, **given})


def test_the_command_says_where_the_pairs_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--rows", "3", "--out", str(tmp_path / "pairs")])
    assert "train-00000-of-00001.parquet" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--rows", "0", "--out", str(tmp_path / "none")])
    assert stopped.value.code == 2
