"""Readers of a user's own: the options of every table hold, and what fails is told."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from capfilt.errors import InputError
from capfilt.inputs import InputSpec, open_input
from capfilt.usercode import load_code

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_input.py"
IMAGE = "<image:image><image:loc>{}</image:loc><image:{}>{}</image:{}></image:image>"
SITEMAP = """<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"
 xmlns:image="http://www.google.com/schemas/sitemap-image/1.1">{}</urlset>"""
READER = """
from collections.abc import Iterator
from dataclasses import dataclass
import json
import pyarrow as pa
from capfilt import InputReader

@dataclass(frozen=True)
class Rows(InputReader):
    suffixes = (".rows",)

    def read(self, path):
        for line in path.read_text().splitlines():
            yield pa.RecordBatch.from_pylist(json.loads(line))
"""


def sitemap(folder: Path, count: int, name: str = "a.xml") -> Path:
    kinds = ("caption", "title")
    images = [
        IMAGE.format(f"https://h.example/{i}.jpg", kinds[i % 2], f"text &amp; {i}", kinds[i % 2])
        for i in range(count)
    ]
    (folder / name).write_text(SITEMAP.format("<url>" + "".join(images) + "</url>"))
    return folder / name


def written(folder: Path, *batches: list[dict[str, object]]) -> InputSpec:
    folder.mkdir(exist_ok=True)
    reader = folder / "reader.py"
    reader.write_text(READER)
    (folder / "in.rows").write_text("\n".join(map(json.dumps, batches)))
    (folder / "other.txt").write_text("not looked at")
    return InputSpec((str(folder),), f"{reader}:Rows")


def rows_of(spec: InputSpec) -> list[dict[str, object]]:
    return [row for batch in open_input(spec).rows(3) for row in batch.to_pylist()]


@pytest.mark.parametrize("count", [1, 999, 1000, 2001])
def test_the_example_reads_a_sitemap(tmp_path: Path, count: int) -> None:
    spec = InputSpec((str(sitemap(tmp_path, count)),), f"{EXAMPLE}:Sitemap")
    rows = rows_of(spec)
    assert [row["url"] for row in rows] == [f"https://h.example/{i}.jpg" for i in range(count)]
    assert rows[0]["caption"] == "text & 0"
    assert f"{count:,} row" in open_input(spec).describe()
    assert "rows by Sitemap" in open_input(spec).describe()


def test_files_of_a_folder_count_by_their_suffix(tmp_path: Path) -> None:
    for name in ("b.xml", "a.xml"):
        sitemap(tmp_path, 2, name)
    shutil.copy(EXAMPLE, tmp_path)
    assert len(rows_of(InputSpec((str(tmp_path),), f"{EXAMPLE}:Sitemap"))) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file of Sitemap in this folder"):
        open_input(InputSpec((str(tmp_path / "empty"),), f"{EXAMPLE}:Sitemap"))


def test_the_options_of_tables_hold(tmp_path: Path) -> None:
    row = {"where": "https://h.example/1", "what": "a", "licence": "CC0", "n": 3}
    spec = written(tmp_path / "a", [row, {**row, "n": None}])
    told = InputSpec(spec.paths, spec.kind, "where", "what", keep_columns=("licence", "n"))
    assert [r["kept"] for r in rows_of(told)] == [
        {"licence": "CC0", "n": 3},
        {"licence": "CC0", "n": None},
    ]
    with pytest.raises(InputError, match="column"):
        open_input(InputSpec(spec.paths, spec.kind, "where", "nothing"))


def test_a_reader_may_name_pictures(tmp_path: Path) -> None:
    spec = written(tmp_path, [{"image": "1.png", "text": ["a", "b"]}, {"image": "2.png"}])
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    rows = rows_of(InputSpec(spec.paths, spec.kind, images_dir=str(tmp_path)))
    assert [row["caption"] for row in rows] == ["a", "b", None]
    assert [row["input_error"] is None for row in rows] == [True, True, False]


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], "the file is empty"),
        ([[]], "column"),
        ([[{"url": 1, "text": "a"}]], "of type int64, not of strings"),
        ([[{"url": "https://h/1", "text": "a"}], [{"url": "https://h/2"}]], "other columns"),
    ],
)
def test_what_is_no_table_is_told(
    tmp_path: Path, batches: list[list[dict[str, object]]], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        open_input(written(tmp_path, *batches))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return iter(())", "Rows yields no rows of it"),
        ("yield 1 / 0", "in.rows: Rows fails: ZeroDivisionError"),
        ("yield [1]", "it yields a list, not a pyarrow.RecordBatch"),
        ("raise OSError('gone')", "Rows fails: OSError: gone"),
    ],
)
def test_a_reader_that_fails_is_told(tmp_path: Path, body: str, told: str) -> None:
    spec = written(tmp_path, [{"url": "https://h/1", "text": "a"}])
    head = READER[: READER.index("        for line")]
    (tmp_path / "reader.py").write_text(f"{head}        {body}\n")
    with pytest.raises(InputError, match=told):
        open_input(spec)


def test_a_format_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(InputError, match="no input format 'xml'; give auto, one of csv, tsv"):
        InputSpec(("a",), "xml")
    with pytest.raises(InputError, match="defines no Nothing that is a InputReader"):
        open_input(InputSpec((str(EXAMPLE),), f"{EXAMPLE}:Nothing"))
    assert load_code(str(EXAMPLE)).Sitemap().suffixes == (".xml",)
