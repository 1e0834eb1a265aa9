"""One whole round on the simulated web, from addresses to a cleaned dataset, on this machine alone.

python -m capfilt.simweb.demo --run runs/bootstrap --rows 1000

The same command again resumes. At the end the simulated web's known truth, which the round never
saw, says how clean the data is.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from capfilt.commands import verbs as commands
from capfilt.errors import CapfiltError, InputError
from capfilt.inputs import InputSpec
from capfilt.recipe.options import RoundOptions
from capfilt.report.progress import progress
from capfilt.simweb.grammar import facts_true
from capfilt.simweb.scenes import sample_scene
from capfilt.simweb.server import WebServer
from capfilt.simweb.web import SimulatedWeb, write_web

# A port that stays the same, so that a second run finds the addresses of the first.
PORT: Final = 18_421


def main() -> int:
    """Serve the web, run the round, print what came out; returns the exit code."""
    parser = argparse.ArgumentParser(description="A whole round on the simulated web.")
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    web = SimulatedWeb(seed=given.seed)
    try:
        with served(web, given.port) as server:
            folder = given.run.with_name(f"{given.run.name}-web")
            files = write_web(folder, given.rows, given.seed, server.base_url)
            result = _round(str(files.urls), given.run, given.workers)
    except CapfiltError as error:
        print(f"capfilt: {error}", file=sys.stderr)
        return error.exit_code
    print(result.text())
    if result.finished is not None:
        print(truth_told(Path(result.finished.dataset), files.truth, given.seed))
    return 0


def served(web: SimulatedWeb, port: int) -> WebServer:
    """Return a server of the web on this port, or on another where it is taken."""
    try:
        return WebServer(web=web, port=port)
    except InputError:
        print(f"port {port} is taken; another one is used, and nothing is resumed", flush=True)
        return WebServer(web=web)


def _round(urls: str, run: Path, workers: int | None) -> commands.RunResult:
    options = RoundOptions(
        allow_private_hosts=True,  # the simulated web is on this machine
        shard_rows=250,
        timeout=3.0,
        total_timeout=6.0,
    )
    return commands.run(
        InputSpec((urls,)),
        options,
        run,
        commands.Hardware(workers=workers, device="cpu"),
        progress,
        lambda line: print(line, file=sys.stderr, flush=True),
    )


def truth_told(dataset: Path, truth: Path, seed: int) -> str:
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
        for row in pq.read_table(file, columns=["url", "text", "origin"]).to_pylist():
            scene = sample_scene(seed, scene_of[row["url"]])
            kept[row["origin"]] += 1
            true[row["origin"]] += facts_true(row["text"].rstrip("."), scene)
    lines = [f"\nKnown truth: {100 * before:.1f} % of the web's texts are true of their picture."]
    for origin in sorted(kept):
        share = 100 * true[origin] / kept[origin]
        lines.append(f"Of the kept {origin} texts {share:.1f} % are ({kept[origin]:,} texts).")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
