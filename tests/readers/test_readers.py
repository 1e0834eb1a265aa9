"""Every format is opened by the readers that it is made for, and they find the same pairs."""

import io
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from capfilt.export.formats.asking import without_placeholders
from tests.readers.__main__ import READERS, pixels_of
from tests.unit.test_export import exported
from tests.unit.test_formats import HOSTILE, PAIRS, ROWS, config_of

# `make readers` makes it, for readers that do not fit beside capfilt.
ENVIRONMENT = Path(os.environ.get("CAPFILT_READERS", Path(__file__).parents[2] / ".readers"))
PICTURES = {
    row["key"]: pixels_of(Image.open(io.BytesIO(row["image"]))) for row in ROWS if row["image"]
}
EXPECTED = Counter((PICTURES[key], text) for key, text, *_ in PAIRS)

HERE = [
    ("webdataset", "webdataset"),
    ("webdataset", "energon"),
    ("datasets", "parquet"),
    ("datasets", "webdataset"),
    ("datasets", "messages"),
    ("mlcroissant", "parquet"),
]
ELSEWHERE = [
    *HERE,
    ("open_clip", "webdataset"),
    ("open_clip_json", "webdataset"),
    ("energon", "energon"),
    ("trl", "messages"),
]
warnings = pytest.mark.filterwarnings("ignore")  # readers' own


def check(found: Counter[tuple[str, str]], label: str) -> None:
    """Compare what was read with the pairs: all of them, or one for each image."""
    if label == "messages":
        said = {(p, without_placeholders(t)): n for (p, t), n in EXPECTED.items()}
        assert found == Counter(said)
    elif label == "parquet":
        assert found == EXPECTED
    else:
        assert Counter(picture for picture, _ in found) == Counter(
            set(PICTURES[k] for k, *_ in PAIRS)
        )
        stripped = {(picture, text.strip()) for picture, text in EXPECTED}
        assert {(picture, text.strip()) for picture, text in found} <= stripped


@pytest.mark.parametrize(("reader", "label"), HERE)
@warnings
def test_a_reader_beside_capfilt_opens_it(reader: str, label: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", ROWS, config_of(label))
    check(Counter(READERS[reader][1](folder)), label)


@warnings
@pytest.mark.parametrize("label", ["llava", "datacomp-uids", "webdataset", "messages"])
def test_croissant_describes_every_format(label: str, tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", ROWS, config_of(label))
    assert list(READERS["mlcroissant"][1](folder)) == []  # it reads the scores, and no error


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "label"), ELSEWHERE)
def test_a_reader_of_an_environment_of_its_own_opens_it(
    reader: str, label: str, tmp_path: Path
) -> None:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{ENVIRONMENT} has no readers; `make readers` installs them")
    folder = exported(tmp_path / "e", ROWS, config_of(label))
    older = [str(ENVIRONMENT / "open_clip")] if reader.startswith("open_clip") else []
    paths = [*older, str(Path(__file__).parents[2])]
    done = subprocess.run(
        [python, "-m", "tests.readers", reader, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
    )
    if "has no --json-text-key" in done.stderr:
        pytest.skip("released open_clip has no --json-text-key yet")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)["samples"]
    check(Counter((picture, text) for picture, text in found), label)


def test_texts_here_are_such_as_break_readers() -> None:
    assert any(text.startswith(HOSTILE) for _, text in EXPECTED)
    assert any(not text.strip(" 0123456789") for _, text in EXPECTED)
