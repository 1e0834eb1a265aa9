"""One whole round on the simulated web, from addresses to a cleaned dataset, on this machine alone.

    capfilt demo --run runs/demo --rows 1000

The same command again resumes. At the end the simulated web's known truth, which the round never
saw, says how clean the data is.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow.parquet as pq

from capfilt.commands import Hardware
from capfilt.commands.advance import RunResult
from capfilt.commands.run import run as run_round
from capfilt.errors import CapfiltError, InputError
from capfilt.inputs import InputSpec
from capfilt.option import check_options, option
from capfilt.progress import Progress, Say
from capfilt.recipe.options import RoundOptions
from capfilt.simweb.grammar import facts_true
from capfilt.simweb.scenes import sample_scene
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb, write_web
from capfilt.store.location import Location, location
from capfilt.store.reading import arrow_file
from capfilt.store.stores import store_of

# A port that stays the same, so that a second run finds the addresses of the first.
PORT: Final = 18_421
_DEMO_ROUND: Final = RoundOptions(
    allow_private_hosts=True,  # the simulated web is on this machine
    shard_rows=250,
    timeout=3.0,
    total_timeout=6.0,
)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of `capfilt demo`."""

    rows: int = option(1000, "Addresses of the simulated web", at_least=1)
    seed: int = option(7, "Seed of the simulated web")
    port: int = option(PORT, "Port of its server on loopback; 0 takes a free one", at_least=0)
    workers: int | None = option(None, "Processes", shown="as many as cores", at_least=1)
    engine: Literal["local", "ray"] = option("local", "local: processes; ray: actors of Ray")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the round came to, and how much of it is true."""

    run: RunResult
    truth: str

    @property
    def error(self) -> CapfiltError | None:
        """Why the round is no success, though nothing broke."""
        return self.run.error

    def text(self) -> str:
        """Return what a person reads at the end."""
        return f"{self.run.text()}\n{self.truth}"

    def plain(self) -> dict[str, Any]:  # JSON
        """Return the result for machines."""
        return {**self.run.plain(), "truth": self.truth.strip().splitlines()}


def run_demo(run: Location, options: DemoOptions, progress: Progress, say: Say) -> DemoResult:
    """Serve the web, run the round, and compare what came out with the truth.

    Raises:
        CapfiltError: whatever a run raises.
    """
    web = SimulatedWeb(seed=options.seed)
    with served(web, options.port) as server:
        folder = store_of(run).beside("web")
        files = write_web(folder, options.rows, options.seed, server.base_url)
        spec, hardware = (
            InputSpec((str(files.urls),)),
            Hardware(options.workers, device="cpu", engine=options.engine),
        )
        result = run_round(spec, _DEMO_ROUND, run, hardware, progress, say)
    if result.finished is None:
        return DemoResult(result, "")
    truth = truth_told(location(result.finished.dataset), files.truth, options.seed)
    return DemoResult(result, truth)


def served(web: SimulatedWeb, port: int) -> WebServer:
    """Return a server of the web on this port, or on another where it is taken."""
    try:
        return WebServer(web=web, port=port)
    except InputError:
        print(f"port {port} is taken; another one is used, and nothing is resumed", flush=True)
        return WebServer(web=web)


def truth_told(dataset: Location, truth: Path, seed: int) -> str:
    """Compare the kept texts with what the pictures really show; returns lines for a person.

    A text counts as true where every statement in it is (`grammar.facts_true`); a true caption in
    another language counts as false, since the embedded filter never learnt one.
    """
    columns = ["url", "scene_index", "caption_true"]
    rows = pq.read_table(truth, columns=columns).to_pylist()
    scene_of = {row["url"]: row["scene_index"] for row in rows}
    before = sum(row["caption_true"] for row in rows) / max(len(rows), 1)
    kept: Counter[str] = Counter()
    true: Counter[str] = Counter()
    for file in sorted((dataset / "data").glob("*.parquet")):
        columns = ["url", "text", "origin"]
        with arrow_file(file) as opened:
            table = pq.read_table(opened, columns=columns, page_checksum_verification=True)
        for row in table.to_pylist():
            scene = sample_scene(seed, scene_of[row["url"]])
            kept[row["origin"]] += 1
            true[row["origin"]] += facts_true(row["text"].rstrip("."), scene)
    lines = [f"\nKnown truth: {100 * before:.1f} % of the web's texts are true of their picture."]
    for origin in sorted(kept):
        share = 100 * true[origin] / kept[origin]
        lines.append(f"Of the kept {origin} texts {share:.1f} % are ({kept[origin]:,} texts).")
    return "\n".join(lines)
