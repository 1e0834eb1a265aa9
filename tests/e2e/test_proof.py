"""The experiment of `make proof`: its arithmetic, its pool, and all of its tasks with few steps."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from capfilt.errors import CapfiltError, InputError
from capfilt.progress import show_progress
from pipelines.experiments.proof.__main__ import main
from pipelines.experiments.proof.design import ARMS, CLEANINGS, QUICK, Design
from pipelines.experiments.proof.picture import picture
from pipelines.experiments.proof.pool import run_all, this_program
from pipelines.experiments.proof.table import Interval, results_of, told
from pipelines.experiments.proof.tasks import Lab, Task, all_tasks

# img2dataset's, imported by the first task that downloads.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

WRITES = (
    "import pathlib, sys; folder, name = sys.argv[1:]; pathlib.Path(folder, name).write_text(name)"
)


def test_an_interval_is_students() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 * 1.0 / 3**0.5)
    assert Interval.of([0.5] * 40) == Interval(0.5, 0.0)
    assert Interval(2.0, 0.4).above(Interval(1.0, 0.5))
    assert not Interval(2.0, 0.6).above(Interval(1.0, 0.5))
    assert Interval(0.123, 0.004).text() == "12.3 ± 0.4"


def test_every_task_comes_after_what_it_needs_and_every_arm_is_judged() -> None:
    tasks = all_tasks(Design(seeds=3))
    seen: set[str] = set()
    for task in tasks:
        assert set(task.needs) <= seen
        seen.add(task.name)
    assert len(seen) == len(tasks)
    assert sum(name.startswith("judge-") for name in seen) == 3 * len(ARMS)
    assert sum(name.startswith("clean-") for name in seen) == len(CLEANINGS)


def test_an_experiment_of_one_seed_has_no_intervals() -> None:
    with pytest.raises(InputError, match="intervals"):
        Design(seeds=1)


def a_task(name: str, *needs: str) -> Task:
    return Task(name, needs, lambda _: {})


def test_the_pool_runs_each_missing_task_once_and_after_its_needs(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    said: list[str] = []
    tasks = [a_task("a"), a_task("b", "a"), a_task("c", "b"), a_task("d")]
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    run_all(tasks, lambda name: (tmp_path / name).exists(), command, 2, said.append)
    assert (tmp_path / "a").read_text() == "before"
    order = [line.partition(":")[0] for line in said]
    assert sorted(order) == ["b", "c", "d"]
    assert order.index("b") < order.index("c")


def test_a_task_that_fails_stops_the_others(tmp_path: Path) -> None:
    code = "import sys, time; time.sleep(60 if sys.argv[1] == 'slow' else 0); sys.exit(3)"
    command = [sys.executable, "-c", code]
    began = time.monotonic()
    with pytest.raises(CapfiltError, match="bad failed with exit code 3"):
        run_all([a_task("slow"), a_task("bad")], lambda _: False, command, 2, lambda _: None)
    assert time.monotonic() - began < 50


def test_a_folder_of_another_design_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "design.json").write_text("{}")
    assert main(["--run", str(tmp_path), "--quick"]) == 2
    assert "another design" in capsys.readouterr().err


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment of few steps, all of its tasks done in this process."""
    root = tmp_path_factory.mktemp("proof")
    lab = Lab(root, QUICK, partial(show_progress, quiet=True))
    for task in all_tasks(QUICK):
        task.run(lab)
    return root


@pytest.mark.slow
def test_all_arms_are_told_of(quick: Path) -> None:
    results = results_of(quick, QUICK)
    text = told(results)
    for arm in ARMS:
        assert f"| {arm.name}" in text
        assert 0.0 <= results.measured[arm.name]["tr1"].mean <= 1.0
    assert results.cleaned["raw web"].kept.web >= results.cleaned["F"].kept.web > 0
    assert results.cleaned["F"].kept.synthetic == results.cleaned["raw web"].kept.synthetic == 0
    assert results.cleaned["C"].kept.synthetic >= results.cleaned["C+F"].kept.synthetic > 0
    drawn = ElementTree.fromstring(picture(results))  # our own picture
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == 5 * len(ARMS)


@pytest.mark.slow
def test_a_finished_experiment_prints_its_tables_and_does_nothing(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (quick / "tasks").iterdir()}
    assert main(["--run", str(quick), "--quick", "--seeds", str(QUICK.seeds)]) == 0
    assert "raw web < C+F" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (quick / "tasks").iterdir()} == before
    assert (quick / "proof.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_a_killed_task_goes_on(quick: Path, tmp_path: Path) -> None:
    root = tmp_path / "again"
    command = [*this_program(root, "--quick", "--seeds", "2"), "pairs"]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (root / "design.json").exists():
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert subprocess.run(command, check=False).returncode == 0
    name = "human/data/train-00000-of-00001.parquet"
    assert (root / name).read_bytes() == (quick / name).read_bytes()
