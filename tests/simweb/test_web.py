"""The simulated web: determinism, shares, truth, files."""

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt.errors import InputError
from capfilt.simweb import alttext
from capfilt.simweb import web as web_module
from capfilt.simweb.corruption import AltText, Copy, Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.grammar import facts_true
from capfilt.simweb.languages import translate
from capfilt.simweb.scenes import Item, Scene, sample_scene
from capfilt.simweb.web import (
    REFUSED_URL,
    SimulatedWeb,
    WebRow,
    truth_of,
    web_row,
    write_web,
)

ROWS = 4000
WEB = SimulatedWeb(seed=11, rows=ROWS)
BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def rows() -> list[WebRow]:
    return [WEB.row(index) for index in range(ROWS)]


@given(st.integers(0, 10**12), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_row_depends_on_seed_and_index_alone(index: int, seed: int) -> None:
    assert web_row(seed, index) == web_row(seed, index)
    assert web_row(seed, index) != web_row(seed, index + 1)
    assert web_row(seed, index).index == index


def test_rows_are_the_same_in_another_process() -> None:
    program = "from capfilt.simweb.web import *; print([repr(web_row(3, i)) for i in range(40)])"
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert there.strip() == str([repr(web_row(3, index)) for index in range(40)])


def test_a_longer_web_begins_with_the_shorter_one() -> None:
    longer = SimulatedWeb(seed=11)
    assert [longer.row(index) for index in range(50)] == [WEB.row(index) for index in range(50)]


def test_another_seed_is_another_web() -> None:
    assert not {web_row(1, index).caption for index in range(20)} & {
        web_row(2, index).caption
        for index in range(20)
        if web_row(2, index).kind in (AltText.TRUE, AltText.MISMATCHED)
    }


def assert_shares(outcomes: list[str], shares: Mapping[str, float]) -> None:
    """Five standard deviations: a defect shows, an unlucky seed does not."""
    counts, total = Counter(outcomes), len(outcomes)
    for outcome, share in shares.items():
        deviation = (share * (1 - share) * total) ** 0.5
        assert abs(counts[outcome] - share * total) <= 5 * deviation + 1, outcome


def test_texts_copies_and_faults_have_their_shares(rows: list[WebRow]) -> None:
    originals = [row for row in rows if row.picture.copy is Copy.ORIGINAL]
    assert_shares([row.kind for row in rows], dict(WEB.noise.texts))
    assert_shares([row.picture.copy for row in rows], dict(WEB.noise.copies))
    assert_shares([row.fault for row in originals], dict(WEB.noise.faults))


def test_kinds_agree_with_the_truth(rows: list[WebRow]) -> None:
    never = {
        AltText.MISMATCHED,
        AltText.WRONG_ATTRIBUTE,
        AltText.OTHER_LANGUAGE,
        AltText.BOILERPLATE,
        AltText.FILE_NAME,
        AltText.EMPTY,
    }
    for row in rows:
        scene = sample_scene(WEB.seed, row.scene_index)
        assert row.caption_true == facts_true(row.caption, scene)
        assert facts_true(row.true_caption, scene)
        if row.kind is AltText.TRUE:
            assert row.caption == row.true_caption
        assert not (row.kind in never and row.caption_true), row
        if row.kind is AltText.TRUNCATED:
            assert (
                row.caption.rstrip(" .…[]") == row.true_caption[: len(row.caption.rstrip(" .…[]"))]
            )


def test_texts_are_varied_and_can_be_stored(rows: list[WebRow]) -> None:
    for row in rows:
        row.caption.encode("utf-8")
        assert len(row.caption) <= 50_000
    foreign = {row.caption for row in rows if row.kind is AltText.OTHER_LANGUAGE}
    assert len(foreign) > 100
    assert len({row.caption for row in rows if row.kind is AltText.FILE_NAME}) > 150
    assert len({row.caption for row in rows if row.kind is AltText.BOILERPLATE}) > 60


@pytest.mark.parametrize(
    "sign",
    [
        "<script>",
        "=HYPERLINK",
        "\x00",
        "\x1b[2J",
        "\u202e",
        "\u200d\U0001f466",
        "\r\n",
        "[ENC]",
        "{{7*7}}",
        "a" * 20_000,
    ],
)
def test_hostile_texts_try_what_the_web_tries(sign: str) -> None:
    assert any(sign in alttext.hostile("a red ring", Random(seed)) for seed in range(300))


def test_other_languages_state_the_facts_of_the_scene() -> None:
    star = Item("star", "green", "large", 0.2, 0.5)
    circle = Item("circle", "white", "small", 0.8, 0.5)
    texts = {translate(Scene((star, circle), "grey"), Random(seed)) for seed in range(2000)}
    assert {
        "ein großer grüner Stern links von einem kleinen weißen Kreis",
        "ein weißer Kreis rechts von einem grünen Stern auf grauem Hintergrund",
        "une grande étoile verte à gauche d'un petit cercle blanc sur fond gris",
        "un cercle blanc à droite d'une étoile verte",
        "una estrella verde grande a la izquierda de un círculo blanco pequeño",
        "un círculo blanco a la derecha de una estrella verde sobre fondo gris",
        "一个绿色的大星星在一个白色的小圆形的左边",
        "一个白色的圆形在一个绿色的星星的右边，灰色背景",
    } <= texts
    # 4 languages, 2 orders, with or without each size and the background: and nothing else.
    assert len(texts) == 4 * 2 * 4 * 2
    assert translate(Scene((circle,), "pink"), Random(1)) in {
        "ein weißer Kreis",
        "un cercle blanc",
        "un círculo blanco",
        "一个白色的圆形",
        "ein kleiner weißer Kreis",
        "un petit cercle blanc",
        "un círculo blanco pequeño",
        "一个白色的小圆形",
    }


def test_every_word_of_a_scene_has_its_translations() -> None:
    for number in range(400):
        translate(sample_scene(0, number), Random(number))


def test_copies_name_an_earlier_original(rows: list[WebRow]) -> None:
    for row in rows:
        assert (row.duplicate_of is None) == (row.picture.copy is Copy.ORIGINAL)
        if row.duplicate_of is None:
            assert row.scene_index == row.index
            continue
        original = rows[row.duplicate_of]
        assert original.index < row.index
        assert original.picture.copy is Copy.ORIGINAL
        assert original.scene_index == row.scene_index
        assert (row.path == original.path) == (row.picture.copy is Copy.SAME_URL)
        assert row.fault is original.fault


def test_only_rows_that_share_an_address_have_the_same(rows: list[WebRow]) -> None:
    paths = Counter(row.path for row in rows if row.picture.copy is not Copy.SAME_URL)
    assert set(paths.values()) == {1}


def pixels(
    web: SimulatedWeb, row: WebRow, size: tuple[int, int]
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    image = Image.open(io.BytesIO(web.image_bytes(row.picture))).convert("RGB")
    return np.asarray(image.resize(size), dtype=np.float64)


def test_copies_have_the_same_bytes_and_near_copies_nearly_the_same_pixels(
    rows: list[WebRow],
) -> None:
    exact = [row for row in rows if row.picture.copy is Copy.SAME_BYTES][:5]
    for row in exact:
        original = rows[row.scene_index]
        assert WEB.image_bytes(row.picture) == WEB.image_bytes(original.picture)
    near = [row for row in rows if row.picture.copy is Copy.NEAR and row.picture.width > 95][:10]
    others = rows[:10]
    for row, other in zip(near, others, strict=True):
        original = rows[row.scene_index]
        assert WEB.image_bytes(row.picture) != WEB.image_bytes(original.picture)
        here = pixels(WEB, row, (32, 32))
        distance = np.abs(here - pixels(WEB, original, (32, 32))).mean()
        stranger = np.abs(here - pixels(WEB, other, (32, 32))).mean()
        assert distance < 20
        assert distance < stranger


def test_pictures_are_jpegs_of_the_stated_size(rows: list[WebRow]) -> None:
    for row in rows[:40]:
        body = WEB.image_bytes(row.picture)
        image = Image.open(io.BytesIO(body))
        image.load()
        picture = row.picture
        assert image.format == "JPEG"
        assert image.size == (
            round(picture.width * picture.scale),
            round(picture.height * picture.scale),
        )
        assert body == WEB.image_bytes(picture)
    sides = [(row.picture.width, row.picture.height) for row in rows]
    assert any(max(side) <= 60 for side in sides)
    assert any(width >= 3 * height for width, height in sides)
    assert all(min(side) >= 12 and max(side) <= 600 for side in sides)


def test_the_truth_is_found_by_the_address_alone(rows: list[WebRow]) -> None:
    for row in rows[:300]:
        found = truth_of(WEB.seed, row.path)
        assert found.path == row.path
        assert found == (rows[found.index])
        if row.picture.copy is not Copy.SAME_URL:
            assert found == row
        assert WEB.picture_at(row.path) == found.picture


@pytest.mark.parametrize("path", ["/", "/img/1.jpg", "/img/00000000٣.jpg", "/cdn/000000000.jpg"])
def test_other_addresses_are_refused(path: str) -> None:
    assert WEB.picture_at(path) is None
    with pytest.raises(InputError, match="no address"):
        truth_of(WEB.seed, path)


def test_a_row_in_the_far_end_of_a_large_web_needs_no_other() -> None:
    web = SimulatedWeb(seed=0, rows=10**9)
    row = web.row(10**9 - 1)
    assert web.picture_at(row.path) is not None
    for outside in (-1, 10**9):
        with pytest.raises(InputError, match="rows 0 to"):
            web.row(outside)
    assert web.picture_at("/img/1000000000.jpg") is None


def test_a_clean_web_has_only_true_pairs() -> None:
    clean = SimulatedWeb(seed=2, noise=Noise().scaled(0))
    for index in range(100):
        row = clean.row(index)
        assert (row.kind, row.fault, row.caption_true) == (AltText.TRUE, Fault.NONE, True)
        assert row.duplicate_of is None


def test_impossible_shares_are_refused() -> None:
    impossible: list[Callable[[], Noise]] = [
        lambda: Noise(near=-0.1),
        lambda: Noise(empty=0.6),
        lambda: Noise(faults=((Fault.SLOW, 1.1),)),
        lambda: Noise(tiny=0.6, banner=0.6),
    ]
    for make in impossible:
        with pytest.raises(InputError, match="at most 1"):
            make()


def test_refused_rows_point_at_a_dead_port() -> None:
    noise = Noise(faults=((Fault.REFUSED, 1.0),))
    assert web_row(0, 0, noise).url(BASE) == REFUSED_URL + "/img/000000000.jpg"
    assert web_row(0, 0, Noise().scaled(0)).url(BASE + "/") == BASE + "/img/000000000.jpg"


def test_written_files_hold_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "_ROWS_A_GROUP", 64)
    files = write_web(tmp_path / "new", 150, WEB.seed, BASE)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "truth.parquet",
        "urls.parquet",
    ]
    urls, truth = pq.read_table(files.urls), pq.read_table(files.truth)
    assert urls.column_names == ["url", "caption"]
    assert pq.ParquetFile(files.urls).num_row_groups == 3
    assert truth.select(["url", "caption"]).equals(urls)
    for index, told in enumerate(truth.to_pylist()):
        row = WEB.row(index)
        assert told == {
            "row": index,
            "url": row.url(BASE),
            "path": row.path,
            "kind": row.kind,
            "caption": row.caption,
            "caption_true": row.caption_true,
            "true_caption": row.true_caption,
            "scene_index": row.scene_index,
            "copy": row.picture.copy,
            "duplicate_of": row.duplicate_of,
            "fault": row.fault,
        }
    recipe = json.loads(truth.schema.metadata[b"capfilt.simulated_web"])
    assert (recipe["seed"], recipe["rows"]) == (WEB.seed, 150)


def test_the_pipelines_file_holds_no_truth(tmp_path: Path) -> None:
    files = write_web(tmp_path, 5, 0, BASE)
    assert pq.read_schema(files.urls).names == ["url", "caption"]
    assert b"simulated" not in files.urls.read_bytes()


def test_writing_twice_gives_the_same_bytes_and_no_rows_are_allowed(tmp_path: Path) -> None:
    first = write_web(tmp_path / "a", 30, 1, BASE)
    second = write_web(tmp_path / "b", 30, 1, BASE)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert pq.read_table(write_web(tmp_path / "a", 0, 1, BASE).urls).num_rows == 0
    with pytest.raises(InputError, match="0 rows or more"):
        write_web(tmp_path, -1, 1, BASE)


def test_a_failed_write_leaves_the_old_files_and_nothing_else(tmp_path: Path) -> None:
    files = write_web(tmp_path, 10, 1, BASE)
    before = [file.read_bytes() for file in files]
    with pytest.raises(UnicodeEncodeError):
        write_web(tmp_path, 10, 1, "http://\ud800")
    assert [file.read_bytes() for file in files] == before
    assert len(list(tmp_path.iterdir())) == 2


def test_command_writes_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web_module.main(["--rows", "12", "--out", str(tmp_path), "--base-url", BASE, "--seed", "4"])
    told = json.loads(capsys.readouterr().out)
    assert pq.read_table(told["urls"]).num_rows == 12
    assert pq.read_table(told["truth"])["caption"][3].as_py() == web_row(4, 3).caption
