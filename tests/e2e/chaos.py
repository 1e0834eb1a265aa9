"""A campaign of SIGKILL against `capfilt run`: nothing may be lost, done twice or torn.

    python -m tests.e2e.chaos --kills 60

A web is run once undisturbed. Then runs over the same web are killed with all their workers, some
while they start, most a few published files after it, and run again, until one is through; then a
new run folder is begun, until enough kills have happened. After each kill every visible file is
read and checked against its receipt; each finished run must have the reference's export digest.
Then the same with the run folders in a bucket, whose server fails, is killed and comes back.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from capfilt.ledger import source
from capfilt.ledger.ledger import Ledger
from capfilt.models.checkpoints import EMBEDDED_FOLDER
from capfilt.simweb.corruption import Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.replies import MOVED
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb, write_web
from capfilt.store.location import Location, location
from capfilt.store.reading import arrow_file
from tests.stores.server import outages, serving

# Faults that answer alike at every request: what comes out may then depend on nothing else.
STEADY = Noise(faults=tuple(f for f in Noise().faults if f[0] is not Fault.FLAKY))
STAGES = (
    "source",
    "download",
    "phash",
    "caption",
    "match_web",
    "match_captions",
    "dedup",
    "select",
)
MODELS = EMBEDDED_FOLDER
_POLL_S = 0.005
_POLL_BUCKET_S = 0.2  # each time is a dozen requests


@dataclass(frozen=True, slots=True)
class Site:
    """A web that is served, and where its runs lie."""

    folder: Path
    server: WebServer
    urls: Path
    rows: int
    shard_rows: int
    runs: Location

    @property
    def shards(self) -> int:
        """How many shards the web is cut into."""
        return -(-self.rows // self.shard_rows)

    def start(self, run: Location, workers: int, machine: str = "") -> "subprocess.Popen[str]":
        """Start `capfilt run` in a process group of its own, so that it dies with its workers.

        `machine`: as another machine, with folders (and, for root, a name) of its own.
        """
        options = ["--allow-private-hosts", "--shard-rows", str(self.shard_rows), "--json"]
        for role in ("captioner", "matcher"):
            options += [f"--{role}", str(self.folder / "models" / role)]
        options += ["--quiet", "--dedup", "phash", "--workers", str(workers), "--run", str(run)]
        command = [sys.executable, "-m", "capfilt", "run", str(self.urls), *options]
        environment = dict(os.environ)
        if machine:
            (own := self.folder / machine).mkdir(exist_ok=True)
            environment |= {"XDG_CACHE_HOME": str(own), "TMPDIR": str(own)}
            if os.geteuid() == 0 and shutil.which("unshare"):
                named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', machine]
                command = [*named, *command]
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@dataclass(slots=True)
class Outcome:
    """What a campaign came to; `faults` is empty where nothing was lost, doubled or torn."""

    kills: Counter[str] = field(default_factory=Counter)  # stage in progress -> kills
    resumes: int = 0
    folders: int = 0
    files_checked: int = 0
    refetched: int = 0
    server_kills: int = 0  # of a bucket's
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the table that the program prints."""
        lines = [f"{stage:<16}{self.kills[stage]:>6}" for stage in ("start-up", *STAGES, "export")]
        return "\n".join(
            [
                f"{'killed in':<16}{'kills':>6}",
                *lines,
                f"{'together':<16}{self.kills.total():>6}",
                f"{self.folders} runs finished, {self.resumes} resumes, "
                f"{self.files_checked:,} checks of a visible file, "
                f"{self.refetched} requests repeated, {self.server_kills} kills of a bucket's "
                f"server, {self.seconds:.0f} s",
                *(f"FAULT: {fault}" for fault in self.faults),
            ]
        )


@contextmanager
def served(folder: Path, rows: int, shard_rows: int, seed: int = 1) -> Iterator[Site]:
    """Serve a web of steady faults; write its address list, and a copy of the embedded models."""
    for role in ("captioner", "matcher"):  # so that training new ones disturbs no campaign
        shutil.copytree(MODELS / role, folder / "models" / role)
    with WebServer(SimulatedWeb(seed=seed, noise=STEADY)) as server:
        urls = write_web(folder, rows, seed, server.base_url, STEADY).urls
        yield Site(folder, server, urls, rows, shard_rows, folder)


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a run that nobody kills; returns its export digest.

    Raises:
        RuntimeError: it failed.
    """
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"capfilt run ended with {process.returncode}: {err[-2000:]}")
    return str(json.loads(out)["result"]["digest"])


def campaign(site: Site, kills: int, seed: int = 0) -> Outcome:
    """Kill runs until `kills` kills have happened, then finish the last one."""
    began = time.monotonic()
    rng = random.Random(seed)
    reference, usual = _reference(site)
    outcome = Outcome()
    while outcome.kills.total() < kills:
        run = site.runs / f"killed-{outcome.folders}"
        before = site.server.hits
        digest, unfinished = _one_folder(site, run, kills, rng, outcome)
        if digest != reference:
            outcome.faults.append(f"{run.name} has the digest {digest}, not {reference}")
        outcome.faults += books(Ledger(run), site.rows) + verified(run)
        fetched = site.server.hits - before
        outcome.faults += _too_often(Ledger(run), fetched, usual, unfinished)
        outcome.refetched += (fetched - usual).total()
        outcome.folders += 1
    outcome.seconds = time.monotonic() - began
    return outcome


def race(site: Site, processes: int) -> list[str]:
    """Run machines on one empty folder at the same time; returns the digest of each."""
    run = site.runs / "race"
    racers = [site.start(run, 1 + n % 2, f"machine-{n}") for n in range(processes)]
    digests = [finish(racer) for racer in racers]
    return digests + books(Ledger(run), site.rows) + verified(run)


def _reference(site: Site) -> tuple[str, Counter[str]]:
    """Run undisturbed; returns the digest and the requests by path."""
    before = site.server.hits
    digest = finish(site.start(site.folder / "reference", workers=1))
    return digest, site.server.hits - before


def _one_folder(
    site: Site, run: Location, kills: int, rng: random.Random, outcome: Outcome
) -> tuple[str, Counter[str]]:
    """Kill runs on one folder until one gets through.

    Returns its digest, and how many kills found each shard cut and not yet downloaded.
    """
    ledger = Ledger(run)
    unfinished: Counter[str] = Counter()
    while outcome.kills.total() < kills:
        process = site.start(run, workers=1 + outcome.kills.total() % 2)
        try:
            stage = _killed_in(process, ledger, site.shards, rng)
        except BaseException:  # also Ctrl-C: a run in its own group would outlive this program
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if not stage:
            return finish(process), unfinished
        outcome.kills[stage] += 1
        outcome.resumes += 1
        print(f"kill {outcome.kills.total()}: {stage}", file=sys.stderr, flush=True)
        outcome.files_checked += check_visible(ledger)
        unfinished.update(ledger.shards(source.STAGE) - _downloaded(ledger))
    return finish(site.start(run, workers=2)), unfinished


def _killed_in(
    process: "subprocess.Popen[str]", ledger: Ledger, shards: int, rng: random.Random
) -> str | None:
    """Kill a process group at a random moment; returns the stage, or None where it was through.

    A quarter of the kills comes by the clock, while the process starts or little later; the
    others come some published files after the start, so that fast stages get their share.
    """
    there = _published(ledger)
    by_clock = rng.random() < 0.25
    deadline = time.monotonic() + (rng.uniform(0.5, 6.0) if by_clock else 600.0)
    files = 1 + rng.randrange(2 * shards)
    while process.poll() is None and time.monotonic() < deadline:
        if not by_clock and _published(ledger) - there >= files:
            time.sleep(rng.choice((0.0, 0.02, 0.3)) * rng.random())  # some stages take milliseconds
            break
        time.sleep(_POLL_S if isinstance(ledger.root, Path) else _POLL_BUCKET_S)
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    moved = _published(ledger) > there
    return stage_in_progress(ledger, shards) if moved else "start-up"


def stage_in_progress(ledger: Ledger, shards: int) -> str:
    """Return the first stage that has not done every shard, or `export`."""
    done = {name.rpartition("-")[0]: len(ledger.shards(name)) for name in ledger.stages()}
    return next((name for name in STAGES if done.get(name, 0) < shards), "export")


def check_visible(ledger: Ledger) -> int:
    """Read every file that a reader can see; returns how many there are.

    Raises:
        DamageError: one is torn or altered.
        pyarrow.ArrowInvalid: a file of an export is torn.
    """
    visible = [(stage, shard) for stage in ledger.stages() for shard in ledger.shards(stage)]
    for stage, shard in visible:
        ledger.check(stage, shard)
    exported = sorted(ledger.root.glob("export-*/data/*.parquet"))
    for file in exported:
        with arrow_file(file) as opened:
            pq.read_table(opened)
    return len(visible) + len(exported)


def books(ledger: Ledger, rows: int) -> list[str]:
    """Return what is wrong with the count of rows: every key once, every stage with all rows."""
    shards = sorted(ledger.shards(source.STAGE))
    keys = [k for s in shards for k in ledger.read(source.STAGE, s, ["key"])["key"].to_pylist()]
    wrong = []
    if len(keys) != rows or len(set(keys)) != rows:
        wrong.append(f"{len(keys)} rows with {len(set(keys))} keys were cut from {rows}")
    for stage in ledger.stages():
        by_shard = {shard: ledger.check(stage, shard).rows for shard in ledger.shards(stage)}
        if by_shard != {shard: int(shard.split("-")[1]) for shard in shards}:
            wrong.append(f"{stage} has {sum(by_shard.values())} rows in {len(by_shard)} shards")
    return wrong


def verified(run: Location) -> list[str]:
    """Return what `capfilt verify` finds."""
    command = [sys.executable, "-m", "capfilt", "verify", str(run), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [f"verify: {done.stdout}{done.stderr}"]


def _published(ledger: Ledger) -> int:
    exported = sum(1 for _ in ledger.root.glob("export-*/data/*.parquet"))
    return exported + sum(len(ledger.shards(stage)) for stage in ledger.stages())


def _downloaded(ledger: Ledger) -> set[str]:
    stages = [name for name in ledger.stages() if name.startswith("download-")]
    return set().union(*(ledger.shards(name) for name in stages))


def _too_often(
    ledger: Ledger, fetched: Counter[str], usual: Counter[str], unfinished: Counter[str]
) -> list[str]:
    """Return the paths that were asked for more than once a kill that hit their shard."""
    allowed: Counter[str] = Counter()
    for shard in ledger.shards(source.STAGE):
        for url in ledger.read(source.STAGE, shard, ["url"])["url"].to_pylist():
            path = urlsplit(url or "").path
            allowed[path] = max(allowed[path], 1 + unfinished[shard])
    return [
        f"{path} was asked for {count} times, at most {most} were due"
        for path, count in sorted(fetched.items())
        if count > (most := usual[path] * allowed[path.removeprefix(MOVED)])
    ]


def in_a_bucket(site: Site, faults: float, kills: int, seed: int = 0) -> Outcome:
    """Run a campaign and a race in a bucket whose server fails, is killed and comes back."""
    with serving(site.folder / "bucket", faults) as bucket:
        os.environ.update(bucket.environment)
        away = dataclasses.replace(site, runs=location(bucket.place("chaos")))
        with outages(bucket, seed):
            outcome = campaign(away, kills, seed)
            outcome.faults += raced(away)
        outcome.server_kills = bucket.kills
    return outcome


def raced(site: Site) -> list[str]:
    """Let three machines race; returns what is wrong with what they came to."""
    came, reference = set(race(site, 3)), _reference(site)[0]
    if came == {reference}:
        return []
    return [f"three machines on one folder came to {sorted(came)}, not {reference}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the campaigns and races; ends with 1 where something was lost, doubled or torn."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--bucket-kills", type=int, default=15)
    parser.add_argument("--bucket-faults", type=float, default=0.03, help="share of the requests")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--shard-rows", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="capfilt-chaos-") as folder,
        served(Path(folder), options.rows, options.shard_rows) as site,
    ):
        outcome = campaign(site, options.kills, options.seed)
        outcome.faults += raced(site)
        print(outcome.text())
        bucket = in_a_bucket(site, options.bucket_faults, options.bucket_kills, options.seed)
        print(f"\nin a bucket\n{bucket.text()}")
    sys.exit(1 if outcome.faults or bucket.faults else 0)


if __name__ == "__main__":
    main()
