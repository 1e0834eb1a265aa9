"""Hundreds of hostile pictures through download, captioning and matching: each costs itself only.

They come from Pillow's own test suite: torn, bombs, of every format, with lengths that lie.
"""

from pathlib import Path

import pyarrow as pa
import pytest

from capfilt import schema
from capfilt.models.checkpoints import resolve_model
from capfilt.models.recipe import Lengths
from capfilt.simweb.corruption import Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb
from capfilt.stage import Stage
from capfilt.stages.caption import Caption
from capfilt.stages.dedup.phash import Phash
from capfilt.stages.download import Download
from capfilt.stages.match import MatchCaptions, MatchWeb

pytestmark = [
    # img2dataset imports a module that Python has announced to remove.
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),
    # Pillow warns of what it reads all the same; the rows below say what came of it.
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

GOOD = SimulatedWeb(seed=7, noise=Noise().scaled(0.0))
EVERY = 50  # one good picture after so many hostile ones


@pytest.fixture(scope="module")
def hostile(test_data: Path) -> list[Path]:
    folder = test_data / "nasty_pillow"
    if not folder.is_dir():
        pytest.skip("CAPFILT_TEST_DATA has no folder nasty_pillow")
    files = sorted(file for file in folder.iterdir() if file.is_file())
    assert len(files) > 100
    return files


def mixed(hostile: list[Path]) -> list[Path | None]:
    """Return the hostile files with a place for a good picture now and then."""
    rows: list[Path | None] = []
    for number, file in enumerate(hostile):
        rows += [None, file] if number % EVERY == 0 else [file]
    return rows


def source_rows(urls: list[str]) -> pa.RecordBatch:
    count = len(urls)
    rows = {
        "key": [f"{number:032x}" for number in range(count)],
        "url": urls,
        "caption": ["a red circle left of a blue square"] * count,
        "image_ref": [None] * count,
        "source_status": [schema.SOURCE_OK] * count,
        "source_error": [None] * count,
        "attempt": [0] * count,
    }
    return pa.record_batch([rows[name] for name in schema.SOURCE.names], schema=schema.SOURCE)


def added(stage: Stage, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Run a stage as a round does, in slices; returns the rows with the new columns."""
    with stage.open() as transform:
        wanted = rows.select(list(stage.needs))
        step = stage.rows_per_call or rows.num_rows
        parts = [transform(wanted.slice(at, step)) for at in range(0, rows.num_rows, step)]
    new = pa.Table.from_batches(parts, stage.adds).combine_chunks().to_batches()[0]
    columns = [*rows.columns, *new.columns]
    return pa.record_batch(columns, schema=pa.schema([*rows.schema, *new.schema]))


def seen_by_models(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Run every stage that decodes pictures."""
    captioner = resolve_model("embedded", "captioner")
    matcher = resolve_model("embedded", "matcher")
    short = Lengths(min_length=1, max_length=6)  # what is said does not matter here
    for stage in (
        Phash(),
        Caption(captioner, lengths=short),
        MatchWeb(matcher),
        MatchCaptions(matcher),
    ):
        rows = added(stage, rows)
    return rows


def test_hostile_pictures_cost_their_own_rows_only(hostile: list[Path]) -> None:
    wanted = mixed(hostile)
    stage = Download(allow_private_hosts=True, threads=8)
    with WebServer(GOOD, folder=hostile[0].parent) as server:
        urls = [
            server.url(file.name if file else f"/img/{number:09d}.jpg")
            for number, file in enumerate(wanted)
        ]
        rows = added(stage, source_rows(urls))
        clean = [url for url, file in zip(urls, wanted, strict=True) if file is None]
        alone = added(stage, source_rows(clean))
    for row in rows.select(schema.DOWNLOAD.names).to_pylist():
        succeeded = row["status"] == schema.SUCCESS
        assert row["status"] in {schema.SUCCESS, schema.FAILED_TO_RESIZE}, row
        assert succeeded != bool(row["error_message"])
        assert succeeded == (row["image"] is not None)
    good = pa.array([file is None for file in wanted])
    assert rows.filter(good).column("image").equals(alone.column("image"))
    judged = seen_by_models(rows)
    for row in judged.to_pylist():
        assert (row["status"] == schema.SUCCESS) == (row["itm_score"] is not None), row["url"]
        assert len(row["captions"] or []) == len(row["caption_itm_scores"] or [])
        assert (row["captions"] is None) == (row["image_embedding"] is None)
    expected = seen_by_models(alone)
    assert judged.filter(good).column("phash").equals(expected.column("phash"))
    close = judged.filter(good).column("itm_score").to_pylist()
    assert close == pytest.approx(expected.column("itm_score").to_pylist(), abs=1e-4)


def test_pictures_as_they_are_given_cost_their_own_rows_only(hostile: list[Path]) -> None:
    """`skip_reencode` and local files can bring a model bytes that no resizer has seen."""
    picture = GOOD.row(0).picture
    assert picture.fault is Fault.NONE
    good = GOOD.image_bytes(picture)
    images = [file.read_bytes() if file else good for file in mixed(hostile)]
    rows = source_rows(["http://127.0.0.1:1/x"] * len(images))
    judged = seen_by_models(rows.append_column("image", pa.array(images, pa.binary())))
    errors = 0
    for data, row in zip(images, judged.to_pylist(), strict=True):
        decoded = row["captions"] is not None
        errors += not decoded
        assert decoded == (row["itm_score"] is not None)
        assert decoded == (row["image_embedding"] is not None)
        assert decoded != bool(row["caption_error"])
        kinds = {str(row[name]).partition(":")[0] for name in ("caption_error", "match_error")}
        assert len(kinds) == 1, kinds
        assert decoded or data != good
    assert 20 < errors < len(hostile)
