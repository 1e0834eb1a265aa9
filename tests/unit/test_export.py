"""The export: files that load, that do not depend on the shards, and that can be checked."""

import hashlib
import html
import io
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from capfilt import schema
from capfilt.errors import DamageError, InputError
from capfilt.export import (
    COLUMNS,
    ExportConfig,
    Manifest,
    Provenance,
    export_dataset,
    load_manifest,
    verify_export,
)
from capfilt.export.card import dataset_card
from capfilt.ledger.publish import Publisher
from capfilt.ledger.sealed import unsealed
from capfilt.ledger.tally import Tally
from capfilt.report.funnel import Funnel, count_funnel
from capfilt.report.page import render_page, write_page
from capfilt.report.samples import draw_samples
from capfilt.wording import inert, one_line
from tests.e2e.killing import at_every_step
from tests.places import local

Row = dict[str, Any]
ALL = pa.schema(
    [
        *schema.SOURCE,
        *schema.DOWNLOAD,
        *schema.CAPTION,
        *schema.MATCH_WEB,
        *schema.MATCH_CAPTIONS,
        *schema.SELECT,
    ]
)
MODEL = {"model": {"name": "embedded", "digest": "d1"}}
RECIPE = {"caption": MODEL, "matching": MODEL, "select": {"threshold": 0.5}}
HERE = Provenance("0.1", "2 rows, urls.parquet", RECIPE, ("download-1",), (("input", 2),))


@dataclass(frozen=True)
class Tables:
    """A run in memory."""

    tables: dict[str, pa.Table]

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(self.tables)

    def read(self, shard: str, columns: Sequence[str]) -> pa.Table:
        return self.tables[shard].select(list(columns))


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8 + shade % 5, 8), (shade % 256, 90, 30)).save(out, "JPEG")
    return out.getvalue()


def a_row(number: int, web: bool, own: Sequence[bool], text: str = "a dog") -> Row:
    """Return a row whose web text and synthetic texts are kept as told."""
    image = jpeg(number)
    synthetic = [f"{text} {number} {k}" for k in range(len(own))]
    kept = {(True, True): "kept_both", (True, False): "kept_web", (False, True): "kept_synthetic"}
    return {
        **dict.fromkeys(ALL.names),
        "key": hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(),
        "url": f"http://example.org/{number}.jpg",
        "caption": f"{text} {number}",
        "source_status": schema.SOURCE_OK,
        "attempt": 0,
        "status": schema.SUCCESS,
        "image": image,
        "image_bytes": len(image),
        "width": 8 + number % 5,
        "height": 8,
        "original_width": 80,
        "original_height": 80,
        "sha256": hashlib.sha256(image).hexdigest(),
        "captions": synthetic,
        "itm_score": 0.75,
        "itc_score": 0.25,
        "caption_itm_scores": [0.5 + k / 64 for k in range(len(own))],
        "caption_itc_scores": [k / 64 for k in range(len(own))],
        "keep_web": web,
        "keep_captions": list(own),
        "reason": kept.get((web, any(own)), "no_text_kept"),
    }


def a_failure(number: int, error: str = "HTTP Error 404") -> Row:
    blank = a_row(number, False, [])
    for name in (*schema.DOWNLOAD.names, "captions", "itm_score", "itc_score"):
        blank[name] = None
    blank |= {"caption_itm_scores": None, "caption_itc_scores": None}
    reason = schema.FAILED_TO_DOWNLOAD
    return {**blank, "status": reason, "error_message": error, "reason": reason}


def run_of(rows: list[Row], cuts: Sequence[int] = ()) -> Tables:
    """Return a run of these rows, cut into shards before the rows `cuts`."""
    ends = [0, *sorted(cuts), len(rows)]
    parts = [rows[start:stop] for start, stop in itertools.pairwise(ends)]
    names = [f"shard{number}" for number in range(len(parts))]
    tables = [pa.Table.from_pylist(part, schema=ALL) for part in parts]
    return Tables(dict(zip(names, tables, strict=True)))


def exported(folder: Path, rows: list[Row], config: ExportConfig, cuts: Sequence[int] = ()) -> Path:
    export_dataset(run_of(rows, cuts), Publisher(folder), config, HERE)
    return folder


def pairs_of(rows: list[Row]) -> list[tuple[str, str, str, int | None, float]]:
    """Return (key, text, origin, index, itm_score) of every kept text, as plainly as can be."""
    pairs: list[tuple[str, str, str, int | None, float]] = []
    for row in rows:
        if row["keep_web"]:
            pairs.append((row["key"], row["caption"], "web", None, row["itm_score"]))
        for k, keep in enumerate(row["keep_captions"]):
            if keep:
                score = row["caption_itm_scores"][k]
                pairs.append((row["key"], row["captions"][k], "synthetic", k, score))
    return pairs


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for number in range(draw(st.integers(0, 14))):
        if draw(st.integers(0, 3)) == 0:
            rows.append(a_failure(number))
        else:
            own = draw(st.lists(st.booleans(), max_size=3))
            text = draw(st.sampled_from(["", "a dog", "ein Hund – 犬", "x" * 400]))
            rows.append(a_row(number, draw(st.booleans()), own, text))
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted((folder / "data").iterdir())}


def test_instruction_samples_are_the_pairs_with_an_instruction_each(tmp_path: Path) -> None:
    rows = [a_row(number, True, [True, True], "a dog") for number in range(30)]
    config = ExportConfig(row_group_rows=7, instructions=("Say:", "Tell:", "Write:"))
    folder = exported(tmp_path / "one", rows, config)
    assert verify_export(folder) == []
    (file,) = (folder / "data").iterdir()
    table = pq.read_table(file)
    assert table["text_output"].to_pylist() == table["text"].to_pylist()
    told = Counter(table["text_input"].to_pylist())
    assert set(told) == set(config.instructions)
    assert min(told.values()) > 15  # of 90, drawn evenly
    again = exported(tmp_path / "cut", rows, config, [4, 11])
    assert contents(again) == contents(folder)
    (other,) = (exported(tmp_path / "plain", rows, ExportConfig()) / "data").iterdir()
    plain = pq.read_table(other)
    assert table.select(plain.column_names).to_pylist() == plain.to_pylist()
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=cache)
    assert loaded.features["text_input"].dtype == "string"


@settings(max_examples=30, deadline=None)
@given(some_rows(), st.data())
def test_files_are_the_same_however_the_rows_are_cut(rows: list[Row], data: st.DataObject) -> None:
    config = ExportConfig(
        target_bytes=data.draw(st.sampled_from([1, 900, 2500, 10**9])),
        row_group_rows=data.draw(st.integers(1, 5)),
    )
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=5))
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        one = contents(exported(Path(whole), rows, config))
        assert contents(exported(Path(cut), rows, config, cuts)) == one
        assert verify_export(Path(cut)) == []
    tables = [pq.read_table(io.BytesIO(one[name])) for name in sorted(one)]
    names = ["key", "text", "origin", "caption_index", "itm_score"]
    found = [tuple(r.values()) for t in tables for r in t.select(names).to_pylist()]
    assert found == pairs_of(rows)
    images = {row["key"]: row["image"] for row in rows}
    for row in (row for table in tables for row in table.to_pylist()):
        assert row["image"] == {"bytes": images[row["key"]], "path": f"{row['key']}.jpg"}
        assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["sha256"]


def test_files_are_about_as_large_as_asked(tmp_path: Path) -> None:
    rows = [a_row(number, True, [True]) for number in range(40)]
    sizes = [row["image_bytes"] + len(text) for row in rows for text in _kept_texts(row)]
    target = 5 * max(sizes)
    folder = exported(tmp_path, rows, ExportConfig(target_bytes=target, row_group_rows=3))
    filled = []
    for name in sorted(contents(folder)):
        table = pq.read_table(folder / name)
        own = table["image"].to_pylist()
        text = sum(len(t.encode()) for t in table["text"].to_pylist())
        filled.append(sum(len(i["bytes"]) for i in own) + text)
        groups = pq.ParquetFile(folder / name).metadata
        counts = [groups.row_group(g).num_rows for g in range(groups.num_row_groups)]
        assert set(counts[:-1]) <= {3}
    assert len(filled) > 5
    assert all(target <= size < target + max(sizes) for size in filled[:-1])
    assert 0 < filled[-1] < target + max(sizes)
    assert sum(filled) == sum(sizes)


def _kept_texts(row: Row) -> list[str]:
    return [text for _, text, *_ in pairs_of([row])]


def test_the_folder_loads_as_pictures_and_texts(tmp_path: Path) -> None:
    rows = [a_row(1, True, [True, False]), a_failure(2), a_row(3, False, [False, True])]
    folder = exported(tmp_path / "out", rows, ExportConfig(target_bytes=700))
    assert len(contents(folder)) > 1
    data = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == COLUMNS.names
    assert list(data["text"]) == [text for _, text, *_ in pairs_of(rows)]
    assert [picture.size for picture in data["image"]] == [(9, 8), (9, 8), (11, 8)]
    assert all(isinstance(picture, Image.Image) for picture in data["image"])


def test_an_empty_export_opens_without_rows(tmp_path: Path) -> None:
    folder = exported(tmp_path / "out", [a_failure(1), a_row(2, False, [False])], ExportConfig())
    (file,) = contents(folder)
    assert pq.read_schema(folder / file).remove_metadata() == COLUMNS
    assert pq.read_table(folder / file).num_rows == 0
    data = datasets.load_dataset(
        str(folder), split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    assert list(data) == []
    assert verify_export(folder) == []


def test_the_manifest_tells_what_lies_there(tmp_path: Path) -> None:
    rows = [a_row(number, True, [True]) for number in range(5)]
    config = ExportConfig(target_bytes=1500, split="validation")
    written = export_dataset(run_of(rows), Publisher(tmp_path), config, HERE)
    plain = load_manifest(tmp_path)
    assert plain == unsealed(written.text())
    assert plain["provenance"]["recipe"] == RECIPE  # JSON, not a string of it
    assert plain["rows"] == written.rows == 10
    for entry in plain["files"]:
        content = (tmp_path / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"]
    assert plain["files"][0]["path"].startswith("data/validation-00000-of-")
    assert "split: validation" in (tmp_path / "README.md").read_text()
    assert digest_of(tmp_path / "again", rows[:4]) != written.digest


def digest_of(folder: Path, rows: list[Row]) -> str:
    written: Manifest = export_dataset(run_of(rows), Publisher(folder), ExportConfig(), HERE)
    return written.digest


def test_a_second_export_writes_nothing(tmp_path: Path) -> None:
    rows = [a_row(number, True, [True]) for number in range(4)]
    folder = exported(tmp_path, rows, ExportConfig(target_bytes=1500))
    before = {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files_of(folder)}
    exported(tmp_path, rows, ExportConfig(target_bytes=1500))
    assert {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files_of(folder)} == before
    assert len(before) > 3


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_a_killed_export_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    rows = [a_row(number, True, [True]) for number in range(6)]
    config = ExportConfig(target_bytes=1500)
    whole = contents(exported(tmp_path / "whole", rows, config))
    assert len(whole) > 3
    folder, kept = tmp_path / "killed", dict[Path, int]()

    def look() -> None:
        assert not (folder / "manifest.json").exists() or verify_export(folder) == []
        there = sorted((folder / "data").glob("*.parquet"))
        assert all(
            file.stat().st_ino == kept.setdefault(file, file.stat().st_ino) for file in there
        )

    kills = at_every_step(lambda: exported(folder, rows, config), look)
    assert kills > 2 * len(whole)
    assert contents(folder) == whole
    assert verify_export(folder) == []
    assert [path for path in folder.iterdir() if path.name.startswith(".unfinished")] == []


def test_a_file_that_an_unfinished_export_did_not_write_is_damage(tmp_path: Path) -> None:
    rows = [a_row(number, True, [True]) for number in range(6)]
    config = ExportConfig(target_bytes=1500)
    folder = exported(tmp_path, rows, config)
    (folder / "manifest.json").unlink()
    with pytest.raises(
        DamageError, match=r"(train-0000\d-of-.*|scores.parquet) is damaged; .*--repair"
    ):
        exported(folder, rows, config)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    rows = [a_row(number, True, [True]) for number in range(8)]
    folder = exported(tmp_path, rows, ExportConfig(target_bytes=1500))
    torn, altered, missing, *_ = sorted((folder / "data").iterdir())
    torn.write_bytes(torn.read_bytes()[:-7])
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    missing.unlink()
    foreign = folder / "data" / "train-99999-of-99999.parquet"
    foreign.write_bytes(b"not ours")
    (folder / "README.md").write_text("something else")
    found = {(problem.kind, Path(problem.path)) for problem in verify_export(folder)}
    assert found == {
        ("damaged", torn),
        ("damaged", altered),
        ("missing", missing),
        ("foreign", foreign),
        ("damaged", folder / "README.md"),
    }


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"files": 3}', '{"files": [{"path": "x"}]}'])
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, text: str) -> None:
    exported(tmp_path, [a_row(1, True, [])], ExportConfig())
    (tmp_path / "manifest.json").write_text(text)
    problems = verify_export(tmp_path)
    assert [p.kind for p in problems] == ["damaged"]
    assert problems[0].path.endswith("manifest.json")


def test_without_a_manifest_there_is_advice(tmp_path: Path) -> None:
    with pytest.raises(DamageError, match="capfilt export"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"target_bytes": 0}, {"row_group_rows": 0}, {"split": "a/b"}, {"split": ""}]
)
def test_sizes_and_names_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ExportConfig(**wrong)


# --- texts of strangers in the card and in the report

HOSTILE = [
    "<script>alert(1)</script>",
    "</p><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "&lt;b&gt; &#60;script&#62;",
    "</style><script src=//x.invalid></script>",
    "<!-- ",
    "]]> --> <?php",
    "<iframe src=javascript:alert(1)>",
    "[click](javascript:alert(1)) ![x](http://x.invalid/y.png)",
    "<http://x.invalid> | `code` | **bold** # head",
    "line\nbreak\r\n\n<b>next</b>\u2028\u202e gnirts",
    "\x1b[2J\x1b]0;title\x07 a\x00 cat\x9b31m",
    "\u202egpj.tac\u202c \u2067left\u2069 \u200fright",
]


class Seen(HTMLParser):
    """Collects the elements, attributes and texts of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.others: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def handle_pi(self, data: str) -> None:
        self.others.append(data)


def parsed(page: str) -> Seen:
    seen = Seen()
    seen.feed(page)
    seen.close()
    return seen


PAGE_TAGS = set(
    "html head meta title style body h1 h2 table tr td th span p svg rect line text div figure img "
    "small i bdi".split()
)


def hostile_rows() -> Iterator[Row]:
    for number, text in enumerate(HOSTILE):
        kept = a_row(number, number % 2 == 0, [number % 3 == 0])
        yield kept | {"caption": text, "captions": [text], "url": f"http://x/{text}"}
        yield a_failure(100 + number, error=text) | {"url": text, "caption": text}
        yield kept | {"key": f"{number:032x}", "image": text.encode(), "caption": text}


def test_the_report_shows_hostile_texts_and_runs_none(tmp_path: Path) -> None:
    rows = list(hostile_rows())
    run = run_of(rows, [7])
    failed = {text: {text: 1} for text in HOSTILE}
    funnel = count_funnel(run, len(rows), Tally({"failed_to_download": failed[HOSTILE[0]]}, failed))
    seen = parsed(render_page(funnel, draw_samples(run, len(rows)), 0.5))
    assert seen.tags <= PAGE_TAGS
    assert not seen.others
    for name, value in seen.attributes:
        assert not name.startswith("on"), (name, value)
        assert name not in {"href", "action", "srcdoc", "data", "xlink:href"}
        assert name != "src" or value.startswith("data:image/jpeg;base64,")
    shown = "".join(seen.texts)
    for text in HOSTILE:
        assert one_line(text) in shown, text
    assert inert(shown) == shown
    path = local(write_page(run, Publisher(tmp_path), "x", funnel, 0.5))
    before = path.stat()
    assert write_page(run, Publisher(tmp_path), "x", funnel, 0.5) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_samples_are_few_and_the_same_however_the_rows_are_cut() -> None:
    rows = [a_row(number, True, []) for number in range(30)]
    whole, cut = draw_samples(run_of(rows), 4), draw_samples(run_of(rows, [3, 11, 25]), 4)
    assert whole == cut
    drawn = [sample.key for sample in whole["kept_web"]]
    assert drawn == sorted(row["key"] for row in rows)[:4]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_card_shows_hostile_texts_and_runs_none(text: str) -> None:
    model = {"model": {"name": text, "digest": "d1"}}
    recipe = {"caption": model, "matching": model, "select": {"threshold": 0.5}}
    card = dataset_card(3, ExportConfig(), Provenance("0.1", text, recipe, (), ((text, 3),)))
    _, front, body = card.split("---\n", 2)
    assert "default" in front
    seen = parsed(MarkdownIt("commonmark").enable("table").render(body))
    plain = "h1 h2 p ul li table thead tbody tr th td code pre".split()
    assert seen.tags <= set(plain)
    assert not seen.others
    assert all(name in {"style", "class"} for name, _ in seen.attributes)
    shown = " ".join("".join(seen.texts).split())
    assert shown.count(one_line(text)) == 4, html.escape(shown)
    assert inert(card) == card


def test_the_report_fits_a_narrow_screen() -> None:
    """Nothing has a width of its own above that of a telephone, and long words break."""
    failed = Tally({"failed_to_download": {"timeout": 9}}, {"x" * 250: {"timeout": 9}})
    funnel = Funnel(9, Counter(failed_to_download=9), failed=failed)
    page = render_page(funnel, {}, 0.5)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "width=device-width" in page
    widths = [int(px) for px in re.findall(r"(?<!max-)width:(\d+)px", page)]
    assert all(px <= 400 for px in widths), widths
    assert "svg{display:block;max-width:100%" in style
    assert "minmax(min(200px,100%),1fr)" in style  # one column where two have no room
    broken = re.search(r"([^{}\n]*)\{overflow-wrap:anywhere\}", style)
    assert broken is not None
    assert {"td", "th", "h1"} <= set(broken[1].split(","))


def test_the_report_tells_failures_by_kind_and_by_host() -> None:
    kinds = {"private_address": 263, "timeout": 12, "http_404": 1}
    hosts = {f"h{n}.example": {"timeout": 20 - n} for n in range(12)}
    funnel = Funnel(300, failed=Tally({"failed_to_download": kinds}, hosts))
    told = parsed(render_page(funnel, {}, 0.5)).texts
    for word in (
        "private_address",
        "the host is no public address; capfilt retry --allow-private-hosts",
        "263",
    ):
        assert word in told
    assert told[told.index("timeout") + 2] == "no answer in time; capfilt retry"
    assert told[told.index("http_404") + 2] == "not found"
    assert "h9.example" in told
    assert "h10.example" not in told
    assert told[told.index("other hosts") + 1] == "19"


def test_a_funnel_of_nothing_has_a_page() -> None:
    assert "What became of 0 rows" in "".join(parsed(render_page(Funnel(0), {}, 0.5)).texts)


def test_a_row_that_was_fetched_again_counts_once() -> None:
    failed = a_failure(1)
    came = {**a_row(1, True, [True]), "attempt": 1}
    run = run_of([a_row(0, True, [False]), failed, came], cuts=[2])
    funnel = count_funnel(run, 2)
    assert {reason: rows for reason, rows in funnel.reasons.items() if rows} == {
        "kept_web": 1,
        "kept_both": 1,
    }
