"""The model benchmark: its contestants work, its figures add up. Speed is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.experiments.quality import MODELS
from tests.benchmarks.checkpoints import BASE, LARGE, Architecture
from tests.benchmarks.contestants import product_count, product_flops
from tests.benchmarks.models import Contestant, Setting, measure

# The embedded models stand for checkpoints of a published size.
SMALL = Architecture("embedded", 128, 4, 4)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("bench")
    for role in ("captioner", "matcher"):
        (folder / role).symlink_to(MODELS / role)
    images = [str(folder / f"{n}.jpg") for n in range(4)]
    for n, name in enumerate(images):
        Image.new("RGB", (90, 70), (60 * n, 30, 99)).save(name)
    texts = [["a red star", "a blue ring", "a star"]] * 4
    (folder / "work.json").write_text(json.dumps({"images": images, "texts": texts}))
    return Setting(SMALL, folder, "cpu", 2, 2, 2, 3, 2, None)


@pytest.mark.parametrize("kind", ["ours", "transformers", "decode", "products"])
def test_every_contestant_works(setting: Setting, kind: str) -> None:
    timing = measure(Contestant(kind, kind, "fp32", 2, 1, 2, 2), setting)
    assert np.isfinite(timing.seconds)
    assert timing.seconds > 0
    assert timing.peak_mb > 50


def test_a_contestant_that_fails_is_told(setting: Setting, tmp_path: Path) -> None:
    broken = Setting(SMALL, tmp_path, "cpu", 2, 2, 2, 3, 2, None)
    (tmp_path / "work.json").write_text((setting.folder / "work.json").read_text())
    with pytest.raises(RuntimeError, match="before it said 'ready'"):
        measure(Contestant("ours", "ours", "fp32", 1, 1, 2, 2), broken)


def test_operations_are_those_of_the_architecture() -> None:
    # ViT-B/16 at 384 px: 12 layers of 12 D^2 + 2 N D multiplications and additions a token.
    assert BASE.tokens == 577
    assert pytest.approx(111.0e9, rel=0.01) == BASE.vision_flops
    assert pytest.approx(382.1e9, rel=0.01) == LARGE.vision_flops
    assert product_count(BASE, 5 * product_flops(BASE)) == 5


def test_the_command_line_explains_itself() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.models", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--data-juicer" in told.stdout
