"""`capfilt push` by the real hub client, against a hub on loopback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from capfilt.export import verify_export
from tests.models import hub as loopback
from tests.models.hub import Hub, Repository, serving
from tests.unit.test_export import exported
from tests.unit.test_formats import ROWS, config_of, files_in

TOKEN = "hf_secretOfTheUser"
# The client retries without waiting.
FETCH = (
    "import sys; from huggingface_hub import snapshot_download as fetch; "
    "fetch('org/data', repo_type='dataset', local_dir=sys.argv[1])"
)
PUSH = "import time; time.sleep = lambda _: None; from capfilt.cli.app import main; main()"


@dataclass
class World:
    """A hub, and a user who is logged in to it."""

    hub: Hub
    home: Path

    def push(self, *words: object, code: int = 0) -> str:
        """Push; returns what was said, in which the token never is."""
        return self.run(PUSH, "push", *words, code=code)

    def run(self, script: str, *words: object, code: int = 0) -> str:
        """Run a script that knows the hub and the token."""
        own = {"HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.home), "HF_TOKEN": TOKEN}
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            # Xet is a protocol of its own, for which there is no server to be had.
            env={**os.environ, **own, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert TOKEN not in said
        return said

    @property
    def repository(self) -> Repository:
        return self.hub.repositories["datasets/org/data"]

    def files(self) -> dict[str, bytes]:
        """Return what the hub's main branch has, but what the hub puts there itself."""
        own = self.repository.commits[self.repository.refs["main"]]
        return {name: data for name, data in own.items() if name != ".gitattributes"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(loopback, "LARGE", 800)  # most files lie in LFS
    with serving() as hub:
        yield World(hub, tmp_path / "home")


@pytest.mark.parametrize("label", ["parquet", "llava"])
def test_what_is_pushed_is_the_export(label: str, world: World, tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", ROWS, config_of(label))
    assert "http://" in world.push("org/data", folder)
    assert world.files() == files_in(folder)
    assert world.repository.private
    back = tmp_path / "back"
    world.run(FETCH, back)
    shutil.rmtree(back / ".cache")  # the client's own
    (back / ".gitattributes").unlink()
    assert verify_export(back) == []
    sent, commits = len(world.hub.sent), len(world.repository.commits)
    world.push("org/data", folder, "--json")
    assert (len(world.hub.sent), len(world.repository.commits)) == (sent, commits)


def test_a_push_that_is_cut_off_goes_on(world: World, tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", ROWS, config_of("parquet"))
    world.hub.fails_after = 2
    assert "give the same command again" in world.push("org/data", folder, code=4)
    assert "manifest.json" not in world.files()
    world.hub.fails_after = None
    world.push("org/data", folder)
    assert world.files() == files_in(folder)
    assert len(world.hub.sent) == len(set(world.hub.sent)) > 4  # nothing twice


def test_another_export_is_replaced_as_a_whole_and_on_request(world: World, tmp_path: Path) -> None:
    old = exported(tmp_path / "old", ROWS, config_of("parquet"))
    new = exported(tmp_path / "new", ROWS[:9], config_of("webdataset"))
    world.push("org/data", old, "--public")
    assert not world.repository.private
    assert "holds another export" in world.push("org/data", new, code=2)
    assert world.files() == files_in(old)
    world.push("org/data", new, "--replace")
    assert world.files() == files_in(new)
    for files in world.repository.commits.values():  # no moment has a mixture with a manifest
        if "manifest.json" in files:
            own = {name: data for name, data in files.items() if name != ".gitattributes"}
            assert own in (files_in(old), files_in(new))


def test_a_damaged_export_is_not_uploaded(world: World, tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", ROWS, config_of("parquet"))
    (folder / "README.md").write_text("other")
    assert "README.md: its SHA-256" in world.push("org/data", folder, code=3)
    (folder / "manifest.json").unlink()
    assert "not uploaded" in world.push("org/data", folder, code=3)
    assert world.hub.asked == []


def test_refusals_say_what_to_do(world: World, tmp_path: Path) -> None:
    folder = exported(tmp_path / "e", ROWS, config_of("parquet"))
    world.hub.repository("datasets/org/data", refusal=(403, ""))
    assert "log in" in world.push("org/data", folder, code=2)
    assert "give org/name" in world.push("org/da/ta", folder, code=2)
    assert "is no export" in world.push("org/data", tmp_path, code=2)
    world.hub.endpoint = "http://127.0.0.1:9"  # nobody listens there
    assert "check the network" in world.push("org/data", folder, code=4)
