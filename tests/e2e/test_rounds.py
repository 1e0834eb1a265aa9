"""Whole bootstrap loops by the command line: real trainings, a real server, real kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from capfilt.ledger.ledger import Ledger
from capfilt.simweb.corruption import Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.human import HumanSet, write_human
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb, write_web

pytestmark = pytest.mark.slow
ROWS, SEED = 24, 5
# Faults that answer alike at every request: what comes out may then depend on nothing else.
STEADY = Noise(faults=tuple(f for f in Noise().faults if f[0] is not Fault.FLAKY)).scaled(0.3)
SIZES = (
    *("--steps", "4", "--fine-tune-steps", "2", "--batch-size", "8", "--queue-size", "16"),
    *("--peak-lr", "1e-4", "--every", "1", "--device", "cpu", "--workers", "1"),
    *("--shard-rows", "8", "--image-size", "96", "--timeout", "3", "--total-timeout", "5"),
    # Models of a few steps know nothing: every text is kept, so that there is something to learn.
    *("--threshold", "0", "--allow-private-hosts"),
)
FRESH = ("--like", "embedded")
GIVEN = ("--captioner", "embedded", "--matcher", "embedded")


class Loops:
    """One web with human pairs, and the command line over them."""

    def __init__(self, folder: Path, server: WebServer) -> None:
        self.folder, self.server = folder, server
        self.urls = write_web(folder / "web", ROWS, SEED, server.base_url, STEADY).urls
        write_human(HumanSet(16, seed=SEED, side=64), folder / "human")
        write_human(HumanSet(4, texts=2, seed=SEED, start=9999, side=64), folder / "held-out")

    def command(self, out: str, count: int, *options: str) -> list[str]:
        fixed = [str(count), str(self.urls), "--out", str(self.folder / out)]
        human = ["--human", str(self.folder / "human")]
        return [sys.executable, "-m", "capfilt", "rounds", *fixed, *human, *SIZES, *options]

    def run(self, out: str, count: int, *options: str) -> dict[str, Any]:
        command = [*self.command(out, count, *options), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        told: dict[str, Any] = json.loads(done.stdout)
        told["said"] = done.stderr
        return told

    def files(self, out: str) -> dict[str, tuple[int, str]]:
        """Return when each file was written, and its digest."""
        found = sorted(p for p in (self.folder / out).rglob("*") if p.is_file())
        return {str(p): (p.stat().st_mtime_ns, digest(p)) for p in found}

    def models(self, out: str, number: int) -> list[str]:
        """Return the digests of the models of a round."""
        folders = [self.folder / out / f"{number}-{kind}" for kind in ("captioner", "filter")]
        files = [file for folder in folders for file in folder.glob("model/*/*.safetensors")]
        assert len(files) == 2
        return [digest(file) for file in sorted(files)]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loops]:
    with WebServer(SimulatedWeb(seed=SEED, noise=STEADY)) as server:
        yield Loops(tmp_path_factory.mktemp("rounds"), server)


@pytest.fixture(scope="module")
def twice(loops: Loops) -> dict[str, Any]:
    """Two rounds from the raw web."""
    return loops.run("twice", 2, *FRESH, *held_out(loops))


def held_out(loops: Loops) -> tuple[str, str]:
    return "--held-out", str(loops.folder / "held-out")


@pytest.fixture(scope="module")
def undisturbed(loops: Loops) -> dict[str, Any]:
    """One round from given models."""
    return loops.run("undisturbed", 1, *GIVEN)


def test_every_round_has_an_export_losses_models_and_scores(
    loops: Loops, twice: dict[str, Any]
) -> None:
    out = loops.folder / "twice"
    rounds = twice["rounds"]
    assert [each["round"] for each in rounds] == [0, 1, 2]
    assert json.loads((out / "rounds.json").read_text()) == {"rounds": rounds}
    raw, first, second = rounds
    assert raw["synthetic_share"] == 0
    assert raw["noise_rejected"]["web"] is None
    assert first["synthetic_share"] > 0.3
    assert first["pairs"] > raw["pairs"] > 0
    assert len({each["digest"] for each in rounds}) == 3
    for each in rounds:
        manifest = json.loads((out / each["dataset"] / "manifest.json").read_text())
        assert (manifest["rows"], manifest["digest"]) == (each["pairs"], each["digest"])
        assert set(each["losses"]["pretrain"]) >= {"itc", "itm", "lm"}
        assert 0 <= each["held_out"]["TR@1"] <= 1
        assert all((out / folder / "config.json").exists() for folder in each["models"].values())
    assert loops.models("twice", 1) != loops.models("twice", 2)
    assert second["losses"] != first["losses"]


def test_the_web_is_downloaded_once(loops: Loops, twice: dict[str, Any]) -> None:
    stages = Ledger(loops.folder / "twice" / "run").stages()
    assert sum(stage.startswith("download") for stage in stages) == 1
    assert sum(stage.startswith("caption") for stage in stages) == 2


def test_a_second_call_does_nothing(loops: Loops, twice: dict[str, Any]) -> None:
    before, hits = loops.files("twice"), loops.server.hits
    again = loops.run("twice", 2, *FRESH, *held_out(loops))
    assert again["rounds"] == twice["rounds"]
    assert again["said"].count("done before") == 15
    assert loops.files("twice") == before
    assert loops.server.hits == hits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peak-lr", "2e-4"), "of step 0-pretrain, training options differs"),
        (("--num-captions", "2"), "of step 1-clean, cleaning options differs"),
        (("--init", "embedded"), "of step 0-pretrain, start (--like, --init) differs"),
    ],
)
def test_other_rounds_in_the_same_folder_are_refused_before_any_work(
    loops: Loops, twice: dict[str, Any], options: tuple[str, ...], message: str
) -> None:
    before = loops.files("twice")
    like = () if "--init" in options else FRESH
    command = loops.command("twice", 2, *like, *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds other rounds" in done.stderr
    assert message in done.stderr
    assert loops.files("twice") == before


def test_given_models_clean_the_first_round(loops: Loops, undisturbed: dict[str, Any]) -> None:
    (only,) = undisturbed["rounds"]
    assert only["round"] == 1
    assert only["held_out"] is None
    assert not (loops.folder / "undisturbed" / "0-pretrain").exists()


def _killed(command: list[str], there: Callable[[], bool]) -> None:
    """Run a command, and kill it alone as soon as something is there."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not there():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_in_a_cleaning_and_in_a_training_it_comes_to_the_same_models(
    loops: Loops, undisturbed: dict[str, Any]
) -> None:
    out = loops.folder / "killed"
    command = loops.command("killed", 1, *GIVEN)
    _killed(command, lambda: any((out / "run" / "stages").glob("download-*/*")))
    assert not (out / "outcomes").exists()
    _killed(command, lambda: any((out / "1-pretrain" / "checkpoints").glob("*.pt")))
    assert [path.stem for path in (out / "outcomes").iterdir()] == ["1-clean"]
    told = loops.run("killed", 1, *GIVEN)
    assert told["rounds"] == undisturbed["rounds"]
    assert loops.models("killed", 1) == loops.models("undisturbed", 1)


def test_a_plan_says_what_is_left_and_writes_nothing(
    loops: Loops, undisturbed: dict[str, Any]
) -> None:
    before = loops.files("undisturbed")
    told = loops.run("undisturbed", 2, *GIVEN, "--plan")
    states = {step["name"]: step["state"] for step in told["steps"]}
    assert [name for name, state in states.items() if state == "missing"] == [
        *("2-pretrain", "2-captioner", "2-filter"),
    ]
    assert states["2-clean"] == "begun"  # its download is there
    costs = {step["name"]: step for step in told["steps"]}
    assert costs["2-pretrain"]["left"] == 4
    assert costs["2-pretrain"]["measured"]
    assert costs["2-pretrain"]["seconds"] > 0
    assert loops.files("undisturbed") == before
    loops.run("nothing", 1, *FRESH, "--plan")
    assert not (loops.folder / "nothing").exists()


def test_an_export_that_was_removed_is_written_again(
    loops: Loops, undisturbed: dict[str, Any]
) -> None:
    out = loops.folder / "undisturbed"
    (only,) = undisturbed["rounds"]
    manifest = out / only["dataset"] / "manifest.json"
    manifest.unlink()
    for kind in ("outcomes", "steps"):
        (out / kind / "1-pretrain.json").unlink()
    again = loops.run("undisturbed", 1, *GIVEN)
    assert "was removed; it is written again" in again["said"]
    assert again["rounds"] == undisturbed["rounds"]
    assert manifest.exists()


def test_a_web_of_which_nothing_is_left_stops_the_rounds(loops: Loops) -> None:
    dead = loops.folder / "dead.csv"
    dead.write_text("url,caption\nhttp://127.0.0.1:9/1.jpg,a red circle\n")
    command = loops.command("dead", 1, *FRESH)
    command[command.index(str(loops.urls))] = str(dead)
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        told = done.stderr.splitlines()[-1]
        assert "round 0: raw: every row failed" in told
        assert "1 of 1 row by refused" in told
    assert not (loops.folder / "dead" / "outcomes").exists()


def test_processes_of_a_training_end_with_the_command(loops: Loops) -> None:
    out = loops.folder / "orphans"
    command = loops.command("orphans", 1, *GIVEN, "--steps", "5000", "--processes", "2")
    env = {**os.environ, "CAPFILT_TEST_MARK": str(out)}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    while process.poll() is None and not any((out / "1-pretrain" / "checkpoints").glob("*.pt")):
        time.sleep(0.01)
    assert len(_marked(out)) >= 4  # the command, torchrun, two of the training
    process.send_signal(signal.SIGKILL)
    process.wait()
    while left := _marked(out):  # pytest's own time limit is that of the whole run
        time.sleep(0.05)
    assert not left


def _marked(out: Path) -> list[str]:
    """Return the processes that a command with this mark began."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended, or is another user's
            if f"CAPFILT_TEST_MARK={out}".encode() in environment:
                found.append(entry.name)
    return found
