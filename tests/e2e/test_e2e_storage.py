"""Rounds on disks that are full or read-only, and `gc`: nothing is lost, and a run goes on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.ledger.ledger import Ledger
from tests.e2e.chaos import STAGES, Site, books, check_visible, finish, served, verified

pytestmark = pytest.mark.slow
ROWS = 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with served(tmp_path_factory.mktemp("storage"), ROWS, shard_rows=20, seed=4) as site:
        yield site


@pytest.fixture(scope="module")
def reference(site: Site) -> tuple[Path, str]:
    """A finished run, and its digest."""
    run = site.folder / "reference"
    return run, finish(site.start(run, workers=1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be made smaller than a run, and read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk to test with: mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def capfilt(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "capfilt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_loses_nothing(
    site: Site, reference: tuple[Path, str], small_disk: Path, workers: int
) -> None:
    run = small_disk / "run"
    stopped = site.start(run, workers)
    _, message = stopped.communicate()
    assert stopped.returncode == 4, message
    assert "No space left on device. Free some space and run the same command again" in message
    assert "Traceback" not in message
    assert check_visible(Ledger(run)) > 0
    assert Ledger(run).sweep() == []
    remount(small_disk, "size=100m")
    assert finish(site.start(run, workers)) == reference[1]
    assert books(Ledger(run), ROWS) + verified(run) == []


def test_a_read_only_folder_is_told_before_any_work(
    site: Site, reference: tuple[Path, str], small_disk: Path
) -> None:
    run = small_disk / "run"
    remount(small_disk, "size=100m,ro")
    hits = site.server.hits
    refused = site.start(run, 1)
    _, message = refused.communicate()
    assert refused.returncode == 4, message
    assert "Read-only file system. The run folder must be writable" in message
    assert site.server.hits == hits
    remount(small_disk, "size=100m,rw")
    assert finish(site.start(run, 1)) == reference[1]


def test_gc_removes_what_no_export_needs_any_more(site: Site, reference: tuple[Path, str]) -> None:
    run, digest = reference
    first = set(Ledger(run).stages())
    made = capfilt("export", run, "--threshold", "0.9", "--quiet", "--json")
    assert made.returncode == 0
    (select,) = set(Ledger(run).stages()) - first
    assert json.loads(capfilt("gc", run, "--json").stdout)["garbage"] == []

    shutil.rmtree(json.loads(made.stdout)["result"]["dataset"])
    assert capfilt("gc", run).returncode == 0
    assert select in Ledger(run).stages()  # without --yes it only lists
    listed = json.loads(capfilt("gc", run, "--yes", "--json").stdout)
    assert [Path(item["path"]).name for item in listed["garbage"]] == [select]
    assert set(Ledger(run).stages()) == first
    assert {name.rpartition("-")[0] for name in first} == set(STAGES)
    assert verified(run) == []

    hits = site.server.hits
    assert finish(site.start(run, 1)) == digest
    assert site.server.hits == hits
