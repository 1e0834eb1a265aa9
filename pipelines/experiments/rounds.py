"""Bootstrap rounds on the simulated web, on this machine alone.

    python -m pipelines.experiments.rounds --out runs/rounds --rounds 2

The same command again resumes. At the end the simulated web's known truth, which the rounds never
saw, says how clean each round's pairs are. The models are small and see few steps, so that a round
takes minutes; all begin with one that knows single things (`pipelines.experiments.start`).
"""

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from capfilt.errors import CapfiltError
from capfilt.inputs import InputSpec
from capfilt.progress import hear_metrics, show_progress
from capfilt.recipe.options import RoundOptions
from capfilt.rounds import verbs
from capfilt.rounds.checks import RoundsRequest
from capfilt.rounds.options import RoundsOptions
from capfilt.rounds.result import RoundsResult
from capfilt.simweb.demo import served, truth_told
from capfilt.simweb.human import HumanSet, write_human
from capfilt.simweb.web import SimulatedWeb, WebFiles, write_web
from pipelines.experiments.start import WORLD, Beginning, small_start

PORT = 18_422  # stays the same, so that a second call finds the addresses of the first
_HELD_OUT_FROM = 1_000_000  # number of the first held-out scene
_SIDE = 64  # pixels, of the embedded models' images


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; the defaults take minutes a round on two cores."""

    rows: int = 2000
    human: int = 1500
    held_out: int = 200
    start_steps: int = Beginning().steps
    steps: int = 300
    fine_tune_steps: int = 200


def main() -> int:
    """Serve the web, run the rounds, print what came out; returns the exit code."""
    given = _arguments()
    size = Size(**{field.name: getattr(given, field.name) for field in fields(Size)})
    out: Path = given.out
    web = SimulatedWeb(seed=given.seed)
    try:
        with served(web, given.port) as server:
            data = out.with_name(f"{out.name}-data")
            files = write_web(data / "web", size.rows, given.seed, server.base_url)
            human = _human(data, size, given.seed)
            start = _start(data / "start", size, given.seed)
            result = _rounds(files, human, start, out, given.rounds, size)
    except CapfiltError as error:
        print(f"capfilt: {error}", file=sys.stderr)
        return error.exit_code
    print(result.text())
    for each in result.rounds:
        print(f"\nRound {each.number}:", end="")
        print(truth_told(out / each.cleaned.dataset, files.truth, given.seed))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bootstrap rounds on the simulated web.")
    default = Size()
    parser.add_argument("--out", type=Path, required=True, help="the folder of all rounds")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=default.rows, help="of the web")
    parser.add_argument("--human", type=int, default=default.human, help="human pairs")
    parser.add_argument("--held-out", type=int, default=default.held_out, help="images")
    parser.add_argument("--start-steps", type=int, default=default.start_steps)
    parser.add_argument("--steps", type=int, default=default.steps, help="of a pre-training")
    parser.add_argument("--fine-tune-steps", type=int, default=default.fine_tune_steps)
    parser.add_argument("--seed", type=int, default=WORLD)
    parser.add_argument("--port", type=int, default=PORT)
    return parser.parse_args()


def _human(folder: Path, size: Size, seed: int) -> tuple[Path, Path]:
    """Write the human pairs to train on, and those that are held out."""
    human, held_out = folder / "human", folder / "held-out"
    write_human(HumanSet(size.human, seed=seed, side=_SIDE), human)
    write_human(HumanSet(size.held_out, 2, seed, start=_HELD_OUT_FROM, side=_SIDE), held_out)
    return human, held_out


def _start(folder: Path, size: Size, seed: int) -> Path:
    """Train what all models begin with, or find it."""
    how = Beginning(steps=size.start_steps, seed=seed)
    with show_progress("start", how.steps, unit="step") as told:
        return small_start(how, folder, hear_metrics(told))


def _rounds(
    files: WebFiles, pairs: tuple[Path, Path], start: Path, out: Path, count: int, size: Size
) -> RoundsResult:
    human, held_out = pairs
    cleaning = RoundOptions(
        allow_private_hosts=True,  # the simulated web is on this machine
        image_size=_SIDE,
        shard_rows=200,
        timeout=3.0,
        total_timeout=6.0,
    )
    options = RoundsOptions(
        cleaning=cleaning,
        count=count,
        human=(str(human),),
        init=str(start),
        steps=size.steps,
        batch_size=64,
        peak_lr=1e-3,
        queue_size=1024,
        max_tokens=Beginning().max_tokens,
        fine_tune_steps=size.fine_tune_steps,
        fine_tune_lr=5e-4,
        precision="bf16",
        every=100,
    )
    return verbs.rounds(
        options,
        RoundsRequest(InputSpec((str(files.urls),)), out, str(held_out), device="cpu"),
        show_progress,
        lambda line: print(line, file=sys.stderr, flush=True),
    )


if __name__ == "__main__":
    raise SystemExit(main())
