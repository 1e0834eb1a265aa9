"""Whole rounds by the command line: real processes, a real server, real kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.commands import folder as commands
from capfilt.errors import DamageError
from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger
from capfilt.simweb.corruption import Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb, write_web
from tests.e2e import slurm
from tests.places import local

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "pipelines" / "cluster" / "slurm.sh"
ROWS = 120
SEED = 11
# Faults that answer alike at every request: what comes out may then depend on nothing else.
STEADY = Noise(faults=tuple(f for f in Noise().faults if f[0] is not Fault.FLAKY))


class Round:
    """One web, and the command line over it."""

    def __init__(self, folder: Path, server: WebServer) -> None:
        self.folder, self.server = folder, server
        self.urls = write_web(folder, ROWS, SEED, server.base_url, STEADY).urls

    def command(self, run: str, *options: str, urls: Path | None = None) -> list[str]:
        fixed = ["--run", str(self.folder / run), "--allow-private-hosts", "--json", "--quiet"]
        sizes = ["--shard-rows", "20", "--timeout", "3", "--total-timeout", "5"]
        given = ["--threshold", "0.3", *options]
        return [
            sys.executable,
            "-m",
            "capfilt",
            "run",
            str(urls or self.urls),
            *fixed,
            *sizes,
            *given,
        ]

    def run(self, run: str, *options: str, urls: Path | None = None) -> dict[str, object]:
        done = subprocess.run(
            self.command(run, *options, urls=urls), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        result: dict[str, object] = json.loads(done.stdout)["result"]
        return result

    def files(self, run: str) -> dict[str, set[str]]:
        ledger = Ledger(self.folder / run)
        found: dict[str, set[str]] = {}
        for stage in ledger.stages():
            found.setdefault(stage.split("-")[0], set()).update(
                f"{stage}/{shard}" for shard in ledger.shards(stage)
            )
        return found

    def new_files(self, run: str, before: dict[str, set[str]]) -> dict[str, int]:
        after = self.files(run)
        added = {name: len(files - before.get(name, set())) for name, files in after.items()}
        return {name: count for name, count in added.items() if count}


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    with WebServer(SimulatedWeb(seed=SEED, noise=STEADY)) as server:
        yield Round(tmp_path_factory.mktemp("e2e"), server)


@pytest.fixture(scope="module")
def undisturbed(rounds: Round) -> dict[str, object]:
    return rounds.run("undisturbed", "--workers", "1")


def test_the_funnel_adds_up_and_every_row_is_in_the_books(
    rounds: Round, undisturbed: dict[str, object]
) -> None:
    funnel = undisturbed["funnel"]
    assert isinstance(funnel, dict)
    assert sum(funnel["reasons"].values()) == funnel["rows"] == ROWS
    assert int(str(undisturbed["rows"])) > 0
    ledger = Ledger(rounds.folder / "undisturbed")
    for stage in ledger.stages():
        assert sum(ledger.check(stage, shard).rows for shard in ledger.shards(stage)) == ROWS


def test_failures_are_counted_by_kind_and_host(
    rounds: Round, undisturbed: dict[str, object]
) -> None:
    status = commands.status(rounds.folder / "undisturbed")
    assert status.funnel is not None
    told, by_reason = status.plain()["failures"], Counter[str]()
    for kind in told["kinds"]:
        by_reason[kind["reason"]] += kind["rows"]
    failing = {"failed_to_download", "failed_to_resize", "undecodable"}
    assert by_reason == {r: n for r, n in status.funnel.reasons.items() if r in failing and n}
    assert {"http_404", "refused"} & {kind["kind"] for kind in told["kinds"]}
    web = sum(host["rows"] for host in told["hosts"])
    assert web == by_reason["failed_to_download"] + by_reason["failed_to_resize"] > 0


def test_again_does_nothing(rounds: Round, undisturbed: dict[str, object]) -> None:
    before, hits = rounds.files("undisturbed"), rounds.server.hits
    assert rounds.run("undisturbed", "--workers", "2") == undisturbed
    assert rounds.new_files("undisturbed", before) == {}
    assert rounds.server.hits == hits


def test_a_new_threshold_runs_no_model_and_no_download(
    rounds: Round, undisturbed: dict[str, object]
) -> None:
    before, hits = rounds.files("undisturbed"), rounds.server.hits
    other = rounds.run("undisturbed", "--threshold", "0.9")
    assert rounds.new_files("undisturbed", before) == {"select": ROWS // 20}
    assert rounds.server.hits == hits
    assert other["dataset"] != undisturbed["dataset"]


def test_a_new_seed_redoes_what_depends_on_it(
    rounds: Round, undisturbed: dict[str, object]
) -> None:
    before, hits = rounds.files("undisturbed"), rounds.server.hits
    other = rounds.run("undisturbed", "--seed", "5")
    redone = dict.fromkeys(["caption", "match_captions", "dedup", "select"], ROWS // 20)
    assert rounds.new_files("undisturbed", before) == redone
    assert rounds.server.hits == hits
    assert other["digest"] != undisturbed["digest"]


def test_workers_shards_and_races_change_nothing(
    rounds: Round, undisturbed: dict[str, object]
) -> None:
    racers = [
        subprocess.Popen(
            rounds.command("race", "--workers", "1", "--shard-rows", size),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for size in ("20", "20", "20")
    ]
    for racer in racers:
        out, err = racer.communicate()
        assert racer.returncode == 0, err[-3000:]
        assert json.loads(out)["result"]["digest"] == undisturbed["digest"]
    cut = rounds.run("cut", "--workers", "2", "--shard-rows", "33")
    assert cut["digest"] == undisturbed["digest"]


def command_file(folder: Path) -> Path:
    """Write what the script calls instead of an installed `capfilt`."""
    capfilt = folder / "capfilt"
    capfilt.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m capfilt "$@"\n')
    capfilt.chmod(0o755)
    return capfilt


def test_jobs_of_an_array_need_nobody_in_between(
    rounds: Round, undisturbed: dict[str, object]
) -> None:
    """By the SLURM script that is ready to copy; one job is killed, and another never begins."""
    capfilt = command_file(rounds.folder)
    words = rounds.command("array", "--workers", "1")[4:]
    jobs = {}
    for number in ("1", "2", "4"):
        slurm = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "4"}
        jobs[number] = subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            env={**os.environ, **slurm, "SLURM_ARRAY_TASK_MIN": "1", "CAPFILT": str(capfilt)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    ledger = Ledger(rounds.folder / "array")
    while not any(name.startswith("download") for name in ledger.stages()):
        time.sleep(0.05)
    os.killpg(jobs["2"].pid, signal.SIGKILL)
    jobs.pop("2").communicate()
    for job in jobs.values():
        out, err = job.communicate()
        assert job.returncode == 0, err[-3000:]
        assert json.loads(out)["result"]["digest"] == undisturbed["digest"]
    assert rounds.run("array")["digest"] == undisturbed["digest"]


@pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))
def test_a_real_slurm_array_of_which_one_job_is_killed(
    rounds: Round, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    words = rounds.command("slurm", "--workers", "1")[4:]
    asked = ["--array=0-2", "--gpus-per-task=0", "--cpus-per-task=1", f"--chdir={tmp_path}"]
    capfilt, ledger = str(command_file(rounds.folder)), Ledger(rounds.folder / "slurm")
    with slurm.cluster(tmp_path) as environment:

        def called(*command: str) -> str:
            told = subprocess.run(
                command, env=environment | {"CAPFILT": capfilt}, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert told.returncode == 0, told.stderr
            return told.stdout.strip()

        job = called("sbatch", "--parsable", *asked, str(SCRIPT), *words)
        while not any(name.startswith("download") for name in ledger.stages()):
            assert called("squeue", "-h"), [f.read_text() for f in tmp_path.glob("capfilt-*.log")]
            time.sleep(0.1)
        called("scancel", "--signal=KILL", "--full", f"{job}_1")
        while called("squeue", "-h"):
            time.sleep(0.5)
    for number in (0, 2):
        told = (tmp_path / f"capfilt-{job}-{number}.log").read_text()
        result = json.loads(told[told.index("{\n") :])["result"]
        assert result["digest"] == undisturbed["digest"]


def test_appended_rows_alone_are_processed(rounds: Round, undisturbed: dict[str, object]) -> None:
    more = write_web(rounds.folder / "more", ROWS + 30, SEED, rounds.server.base_url, STEADY).urls
    before = rounds.files("undisturbed")
    rounds.run("undisturbed", urls=more)
    added = rounds.new_files("undisturbed", before)
    assert {added[name] for name in ("source", "download", "caption", "match_web")} == {2}


def test_kills_lose_and_double_nothing(rounds: Round, undisturbed: dict[str, object]) -> None:
    rng = random.Random(3)
    ledger = Ledger(rounds.folder / "killed")
    for number in range(6):
        workers = str(1 + number % 2)
        process = subprocess.Popen(
            rounds.command("killed", "--workers", workers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(2.0, 8.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stage in ledger.stages():
            for shard in ledger.shards(stage):
                ledger.check(stage, shard)  # raises where a torn file is visible
    assert rounds.run("killed")["digest"] == undisturbed["digest"]
    assert ledger.sweep() == []
    verify = [sys.executable, "-m", "capfilt", "verify", str(ledger.root), "--quiet"]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


def test_damage_is_told_and_repaired_by_running_again(
    rounds: Round, undisturbed: dict[str, object]
) -> None:
    rounds.run("damaged")
    ledger = Ledger(rounds.folder / "damaged")
    (stage,) = (name for name in ledger.stages() if name.startswith("match_web"))
    shard = sorted(ledger.shards(stage))[0]
    path = local(ledger.path(stage, shard))
    path.write_bytes(path.read_bytes()[:-9])
    verify = [sys.executable, "-m", "capfilt", "verify", str(ledger.root), "--json", "--quiet"]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["kind"], problem["path"]) == ("damaged", str(path))
    with pytest.raises(DamageError):
        ledger.read(stage, shard)
    (data,) = (rounds.folder / "damaged" / "latest" / "data").iterdir()
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    refused = subprocess.run(rounds.command("damaged"), capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert [str(path) in refused.stderr, "Traceback" in refused.stderr] == [True, False]
    repaired = subprocess.run([*verify, "--repair"], capture_output=True, text=True, check=False)
    assert {move["from"] for move in json.loads(repaired.stdout)["moved"]} == {
        str(path),
        str(data.resolve()),
    }
    assert rounds.run("damaged")["digest"] == undisturbed["digest"]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


def kinds_of(run: Path) -> dict[str, int]:
    """Return how many rows failed of each kind, as `status` says."""
    return {
        kind["kind"]: kind["rows"] for kind in commands.status(run).plain()["failures"]["kinds"]
    }


def test_retry_fetches_only_what_failed_in_passing(tmp_path: Path) -> None:
    calm = Noise().scaled(0.0)
    faults = {f"/img/{n:09d}.jpg": Fault.FLAKY for n in (3, 8)} | {
        "/img/000000005.jpg": Fault.NOT_FOUND
    }
    with WebServer(SimulatedWeb(seed=2, noise=calm), faults=faults) as server:
        urls = write_web(tmp_path, 20, 2, server.base_url, calm).urls
        base = [sys.executable, "-m", "capfilt"]
        run = [*base, "run", str(urls), "--run", str(tmp_path / "run"), "--allow-private-hosts"]
        subprocess.run([*run, "--dedup", "none"], check=True, capture_output=True)
        assert kinds_of(tmp_path / "run") == {"http_500": 2, "http_404": 1}
        hits = server.hits
        retry = [*base, "retry", str(tmp_path / "run"), "--json", "--quiet"]
        done = subprocess.run(retry, check=True, capture_output=True, text=True)
        fetched = server.hits - hits
        assert fetched == {"/img/000000003.jpg": 1, "/img/000000008.jpg": 1}
        funnel = json.loads(done.stdout)["result"]["funnel"]
        assert sum(funnel["reasons"].values()) == funnel["rows"] == 20
        assert funnel["reasons"]["failed_to_download"] == 1
        assert kinds_of(tmp_path / "run") == {"http_404": 1}
        hits = server.hits
        subprocess.run(retry, check=True, capture_output=True)
        assert server.hits == hits
    ledger = Ledger(tmp_path / "run")
    assert sorted(ledger.shards(source.STAGE))[-1].count("~") <= 1
