"""The Ray engine on a cluster of two nodes on this machine: kills, errors, one answer."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from capfilt.engine.executors import DoShard
from capfilt.engine.ray_cluster import RayActors, RayCluster, connect
from capfilt.errors import InputError, WorkerError
from capfilt.progress import Advance
from tests.waiting import wait_for

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'capfilt[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of files that it leaves to its end


@dataclass(frozen=True)
class Note:
    """Notes which process did a shard; dies at some shards, until a file says that it has."""

    folder: str
    dies_at: tuple[str, ...] = ()
    deaths: int = 1
    waits: float = 0.0
    nodes: int = 1  # that must have begun before any shard is done
    shards_at_a_time: int = 1

    @contextlib.contextmanager
    def open(self, worker: int, advance: Advance) -> Iterator[DoShard]:
        def do(shard: str, following: str | None = None) -> None:
            place = Path(self.folder)
            times = len(list(place.glob(f"began-{shard}-*")))
            (place / f"began-{shard}-{os.getpid()}").touch()
            if shard in self.dies_at and times < self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            if shard == "bad":
                raise InputError("a bad shard: take it out")
            time.sleep(self.waits)
            node = ray.get_runtime_context().get_node_id()
            (place / f"node-{node}").touch()
            wait_for(lambda: len(list(place.glob("node-*"))) >= self.nodes)
            (place / f"done-{shard}").write_text(node)
            advance(10)

        yield do


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a cluster of two nodes of two cores, whose processes find these modules."""
    from ray.cluster_utils import Cluster

    root = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([root, *os.environ.get("PYTHONPATH", "").split()])
        )
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Cluster()
        made.add_node(num_cpus=2)
        made.add_node(num_cpus=2)
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


def run(job: Note, count: int, shards: list[str]) -> int:
    rows: list[int] = []
    RayActors(count).run(job, shards, rows.append)
    return sum(rows)


def done(folder: Path) -> set[str]:
    return {file.name.removeprefix("done-") for file in folder.glob("done-*")}


def test_the_cluster_is_found_and_its_devices_are_ray_s(cluster: Any) -> None:
    found = connect()
    assert found == RayCluster(nodes=2, cpus=4, gpus=0)
    assert found.devices("auto") == ("cpu",)
    assert (found.workers(None, ("cpu",)), found.workers(3, ("cpu",))) == (4, 3)
    with pytest.raises(InputError, match="has no GPU"):
        found.devices("cuda")
    with pytest.raises(InputError, match="Ray hands out devices"):
        found.devices("cuda:1")
    assert RayCluster(2, 32, 4).workers(None, ("cuda:0",)) == 4


def test_every_shard_is_done_on_both_nodes(cluster: Any, tmp_path: Path) -> None:
    connect()
    shards = [f"s{n}" for n in range(12)]
    assert run(Note(str(tmp_path), nodes=2), 4, shards) == 120
    assert done(tmp_path) == set(shards)
    assert len({file.read_text() for file in tmp_path.glob("done-*")}) == 2
    assert run(Note(str(tmp_path)), 4, []) == 0


def test_an_actor_that_dies_costs_its_shard_one_more_try(cluster: Any, tmp_path: Path) -> None:
    connect()
    shards = [f"s{n}" for n in range(8)]
    assert run(Note(str(tmp_path), ("s2", "s5"), waits=0.05), 3, shards) == 80
    assert done(tmp_path) == set(shards)
    assert len(list(tmp_path.glob("began-s2-*"))) >= 2


def test_a_shard_that_ends_three_actors_is_told_and_all_others_are_done(
    cluster: Any, tmp_path: Path
) -> None:
    connect()
    shards = [f"s{n}" for n in range(5)]
    with pytest.raises(WorkerError, match=r"1 shards lost their Ray actor 3 times each \(s1\)"):
        run(Note(str(tmp_path), ("s1",), deaths=99), 2, shards)
    assert done(tmp_path) == {"s0", "s2", "s3", "s4"}


def test_an_error_comes_back_as_it_was_raised(cluster: Any, tmp_path: Path) -> None:
    connect()
    with pytest.raises(InputError, match="a bad shard: take it out"):
        run(Note(str(tmp_path)), 2, ["s0", "bad"])


def test_a_node_that_is_lost_costs_what_it_was_at(cluster: Any, tmp_path: Path) -> None:
    connect()
    extra = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    assert connect().nodes == 3
    shards = [f"s{n}" for n in range(24)]
    script = subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(tmp_path), *shards], stderr=subprocess.PIPE, text=True
    )
    while len(done(tmp_path)) < 4:
        assert script.poll() is None, script.communicate()
        time.sleep(0.05)
    cluster.remove_node(extra, allow_graceful=False)
    _, told = script.communicate(timeout=90)
    assert script.returncode == 0, told
    assert done(tmp_path) == set(shards)


_OTHER = """
import sys
from capfilt.engine.ray_cluster import RayActors, connect
from tests.unit.test_ray import Note
connect()
rows = []
RayActors(6).run(Note(sys.argv[1], waits=0.4), sys.argv[2:], rows.append)
assert sum(rows) == 10 * len(sys.argv[2:]), rows
"""


def test_a_run_by_ray_is_that_of_one_process(cluster: Any, tmp_path: Path) -> None:
    """The whole command, in processes of its own, against the local engine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    digests = []
    for engine in ("local", "ray"):
        command = [sys.executable, "-m", "capfilt", "demo", "--rows", "48", "--json", "--quiet"]
        out = tmp_path / engine
        told = subprocess.run(
            [*command, "--run", str(out), "--engine", engine, "--workers", "2", "--port", port],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert told.returncode == 0, told.stderr
        digests.append((out / "latest" / "manifest.json").read_bytes())
    assert digests[0] == digests[1]
