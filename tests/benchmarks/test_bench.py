"""Every case of the benchmark runs, at a tiny size. Speed is not tested."""

import json
import math
import subprocess
import sys

import pytest

from tests.benchmarks.cases import CASES
from tests.benchmarks.lines import Line, table

TINY = ["--rows=60", "--shards=30", "--selected=20000", "--small=40", "--large=80"]
TINY += ["--pictures=8", "--steps=1", "--batch=2", "--layers=1"]


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_a_case_says_figures(case: str) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--only", case, "--json", *TINY]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [Line(**plain) for plain in json.loads(ran.stdout)]
    assert lines
    assert all(math.isfinite(line.value) and line.value > 0 for line in lines)
    assert len({line.name for line in lines}) == len(lines)


def test_stages_are_all_there() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--only", "stages", *TINY]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("download", "phash", "caption", "match_web", "match_captions", "dedup", "select"):
        assert f"stage {name} " in ran.stdout
    assert "source: read and cut" in ran.stdout
    assert "export " in ran.stdout


def test_a_table_is_aligned() -> None:
    told = table([Line("a", 1234567.0, "rows/s", ">= 1", "x"), Line("longer", 0.01234, "s")])
    first, second = told.splitlines()
    assert first == "a       1,234,567  rows/s  >= 1  x"
    assert second == "longer     0.0123  s"
