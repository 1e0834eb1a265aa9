"""README's commands and code, the examples and the pipelines are run, not only written."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from capfilt.models.recipe import Nucleus
from capfilt.recipe.pipeline_file import load_pipeline
from pipelines.experiments.quality import MODELS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}


def python(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder of `make bootstrap`, with fewer rows, and what it printed."""
    run = tmp_path_factory.mktemp("boot") / "run"
    command = ["-m", "capfilt", "demo", "--run", str(run), "--rows", "150", "--port", "0"]
    return run, python(*command)


@pytest.mark.slow
def test_the_bootstrap_prints_a_funnel_that_adds_up(bootstrap: tuple[Path, str]) -> None:
    _, printed = bootstrap
    table = printed[: printed.index("web texts")]
    counts = [int(n.replace(",", "")) for n in re.findall(r"^\w+ +([\d,]+)", table, re.MULTILINE)]
    assert counts[0] == 150 == sum(counts[1:])
    assert "Known truth" in printed


@pytest.mark.slow
def test_the_code_of_the_readme_opens_the_dataset(bootstrap: tuple[Path, str]) -> None:
    (export,) = bootstrap[0].glob("export-*")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    latest = bootstrap[0] / "latest"
    assert latest.resolve() == export.resolve()
    code = code.replace("runs/mine/latest", str(latest))
    rows = json.loads((export / "manifest.json").read_text())["rows"]
    assert rows > 0
    printed = python("-c", code + "print(len(pairs), pairs[0]['image'].size, pairs.column_names)")
    assert printed.startswith(f"{rows} (")
    for column in re.findall(r"`(key url image[^`]*)`", README)[0].split():
        assert f"'{column}'" in printed


@pytest.mark.slow
def test_the_examples_run(bootstrap: tuple[Path, str]) -> None:
    (export,) = bootstrap[0].glob("export-*")
    assert " pairs\n" in python("examples/read_the_dataset.py", str(export))
    urls = bootstrap[0].parent / "run-web" / "urls.parquet"
    printed = python("examples/run_a_round.py", str(urls), str(bootstrap[0].parent / "again"))
    assert "pairs kept" in printed
    _losses("train_with_datasets.py", export, MODELS / "captioner", 3)
    tars = bootstrap[0].parent / "tars"
    made = ["export", str(bootstrap[0]), "--to", str(tars), "--format", "webdataset", "--quiet"]
    python("-m", "capfilt", *made)
    _losses("train_with_webdataset.py", tars, MODELS / "matcher", 3)
    for example in (ROOT / "examples").glob("*.py"):
        assert len(example.read_text().splitlines()) <= 60


def _losses(example: str, *arguments: object) -> None:
    """Run an example that trains; it prints a loss for each of its steps."""
    printed = python(f"examples/{example}", *map(str, arguments))
    losses = [
        float(loss) for loss in re.findall(r"^step \d+ loss ([\d.]+)$", printed, re.MULTILINE)
    ]
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", re.findall(r"^# make ([\w-]+) ", MAKEFILE, re.MULTILINE))
def test_a_make_target_does_what_its_line_says_it_is_for(target: str) -> None:
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    # By itself, also where `make test` called this: a make in a make is told of its parent.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ran = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    assert "warning" not in ran.stderr
    places = {
        "test": "pytest",
        "lint": "ruff",
        "bootstrap": "capfilt demo",
        "round1": "experiments.rounds",
        "models": "experiments.train",
        "bench": "benchmarks",
        "bench-models": "benchmarks.models",
        "chaos": "e2e.chaos",
        "wheel-test": "e2e.wheel",
    }
    last = ran.stdout.strip().splitlines()[-1]
    assert places.get(target, target) in last


def test_pages_are_short_and_their_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 120
    for page, text in {ROOT / "README.md": README, **PAGES}.items():
        assert len(text.splitlines()) <= 150, page
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page}: {link}"
        for module in re.findall(r"python -m ([\w.]+)", text):
            assert importlib.util.find_spec(module), f"{page}: {module}"


def test_the_picture_of_the_readme_is_one(bootstrap: tuple[Path, str], tmp_path: Path) -> None:
    made = tmp_path / "report.svg"
    python("-m", "pipelines.experiments.picture", str(bootstrap[0]), str(made))
    drawn = ElementTree.parse(made).getroot()
    assert len(drawn.findall(".//{*}image")) >= 1
    assert "What became of 150 rows" in "".join(drawn.itertext())
    shown = ElementTree.parse(ROOT / "docs" / "report.svg").getroot()
    assert len(shown.findall(".//{*}image")) == 4


def test_the_commands_of_the_readme_exist() -> None:
    lines = "\n".join([README, *PAGES.values()]).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("capfilt ")]
    assert commands
    for line in commands:
        words = shlex.split(line, comments=True)
        verbs = words[1:3] if words[1] == "train" else words[1:2]
        helped = python("-m", "capfilt", *verbs, "--help")
        for option in (word for word in words if word.startswith("--")):
            assert option in helped, line
    for verb in re.findall(r"^\| `capfilt (\w+)", README, re.MULTILINE):
        assert "Usage" in python("-m", "capfilt", verb, "--help")


def test_the_demo_pipeline_is_a_round() -> None:
    recipe = load_pipeline(str(ROOT / "pipelines" / "demo.py"))
    assert isinstance(recipe.caption.decoding, Nucleus)
    assert recipe.caption.decoding.top_p == 0.9
    assert recipe.stages()[0].name == "download"
