"""Rounds over local pictures, over img2dataset's own output, and over real photographs."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from capfilt import schema
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger
from capfilt.simweb.server import WebServer
from tests.inputs import run_img2dataset as made

pytestmark = pytest.mark.slow


class Round:
    """A finished round of random models: its status counts and its funnel."""

    def __init__(self, run: Path, models: tuple[Path, Path], *inputs: str | Path) -> None:
        given = ["--captioner", models[0], "--matcher", models[1], "--threshold", "0"]
        fixed = ["--run", run, "--workers", "1", "--dedup", "none", "--json", "--quiet"]
        command = [sys.executable, "-m", "capfilt", "run", *inputs, *given, *fixed]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        self.result = json.loads(done.stdout)["result"]
        self.funnel = self.result["funnel"]
        self.ledger = Ledger(run)
        assert sum(self.funnel["reasons"].values()) == self.funnel["rows"]
        assert self.result["rows"] == self.funnel["web_kept"] + self.funnel["synthetic_kept"]

    def column(self, stage: str, name: str) -> list[object]:
        """Return a column of a stage over all shards, which come in the same order each time."""
        (folder,) = (n for n in self.ledger.stages() if n.rpartition("-")[0] == stage)
        shards = sorted(self.ledger.shards(source.STAGE))
        return [
            value
            for shard in shards
            for value in self.ledger.read(folder, shard, [name])[name].to_pylist()
        ]


def captions_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_pictures_and_a_table(tmp_path: Path, tiny_pair: tuple[Path, Path]) -> None:
    for number in range(4):
        Image.new("RGB", (60 + number, 50), (50 * number, 90, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"no picture")
    lines = ["image,caption", *(f"{n}.png,a dog" for n in range(6))]  # 5.png is missing
    table = tmp_path / "captions.csv"
    table.write_text("\n".join(lines) + "\n")
    done = Round(tmp_path / "run", tiny_pair, table, "--images-dir", tmp_path)
    statuses = done.column("download", "status")
    assert statuses[:4] == [schema.SUCCESS] * 4
    assert schema.SUCCESS not in statuses[4:]
    assert done.column("download", "original_width")[:4] == [60, 61, 62, 63]
    assert done.funnel["web_judged"] == 4


def test_the_output_of_img2dataset_is_not_fetched_again(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.inputs.run_img2dataset", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    done = Round(tmp_path / "run", tiny_pair, tmp_path / "parquet", "--input-format", "img2dataset")
    fetched = [n for n in range(made.ROWS) if made.status(n) == "success"] * made.SHARDS
    statuses = done.column("download", "status")
    assert len(statuses) == made.ROWS * made.SHARDS
    assert statuses.count(schema.SUCCESS) == len(fetched)
    texts = sum(made.caption(0, number) is not None for number in fetched)
    assert done.funnel["web_judged"] == texts
    assert done.funnel["synthetic_judged"] == len(fetched)


@pytest.mark.parametrize("name", ["smoke_cc0", "smoke_ccby48"])
def test_real_pictures_come_through_a_round(
    test_data: Path, tmp_path: Path, tiny_pair: tuple[Path, Path], name: str
) -> None:
    rows = captions_of(test_data / name)
    urls = tmp_path / "urls.csv"
    with WebServer(folder=test_data / name / "images") as server:
        with urls.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["url", "caption"])
            writer.writerows([server.url(row["image"]), row["caption"]] for row in rows)
        done = Round(tmp_path / "run", tiny_pair, urls, "--allow-private-hosts")
        assert set(server.hits.values()) == {1}  # one picture stands beside several texts
    # The texts of a picture follow one another: all are judged, and it is captioned once.
    assert done.column("download", "status") == [schema.SUCCESS] * len(rows)
    pictures = len({row["image"] for row in rows})
    assert len(pictures_of := set(done.column("source", "url"))) == pictures
    assert done.funnel["web_judged"] == len(rows)
    assert done.funnel["synthetic_judged"] == len(pictures_of)
