"""Does CapFilt help on the simulated web as it does in the paper? (BLIP, Tables 1, 2, 4 and 12)

    python -m pipelines.experiments.proof --run DIR [--seeds 3] [--workers 2]

The same command goes on where a killed one was. DIR/proof.md and DIR/proof.svg are the result.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from capfilt.errors import CapfiltError, InputError
from capfilt.ledger.publish import Publisher
from pipelines.experiments.proof.design import QUICK, Design


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and tell; returns the exit code."""
    given = _parsed(arguments)
    design = dataclasses.replace(QUICK if given.quick else Design(), seeds=given.seeds)
    try:
        _same_design(given.run, design)
        if given.task:
            return _one(given.run, design, given.task)
        return _all(given, design)
    except CapfiltError as error:
        print(f"capfilt: {error}", file=sys.stderr)
        return error.exit_code


def _one(root: Path, design: Design, name: str) -> int:
    from capfilt.progress import show_progress
    from pipelines.experiments.proof.tasks import Lab, all_tasks

    lab = Lab(root, design, partial(show_progress, quiet=True))
    next(task for task in all_tasks(design) if task.name == name).run(lab)
    return 0


def _all(given: argparse.Namespace, design: Design) -> int:
    from pipelines.experiments.proof.picture import picture
    from pipelines.experiments.proof.pool import run_all, this_program
    from pipelines.experiments.proof.table import results_of, told
    from pipelines.experiments.proof.tasks import all_tasks

    root, began = given.run, time.monotonic()
    options = ["--seeds", str(given.seeds), *(["--quick"] if given.quick else [])]

    def done(task: str) -> bool:
        return Path(root, "tasks", f"{task}.json").exists()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    run_all(all_tasks(design), done, this_program(root, *options), given.workers, say)
    results = results_of(root, design)
    (root / "proof.md").write_text(told(results), encoding="utf-8")
    (root / "proof.svg").write_text(picture(results), encoding="utf-8")
    print(told(results))
    return 0


def _same_design(root: Path, design: Design) -> None:
    """Refuse a folder of another experiment; more seeds than before are the same one."""
    plain = {name: value for name, value in dataclasses.asdict(design).items() if name != "seeds"}
    text = json.dumps(plain, indent=1).encode()
    Publisher(root).publish_bytes("design.json", text)
    if (root / "design.json").read_bytes() != text:
        raise InputError(f"{root} holds an experiment of another design; give another --run")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.experiments.proof", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", type=Path, required=True, help="folder of the experiment")
    parser.add_argument("--seeds", type=int, default=Design().seeds, help="trainings of each arm")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="tasks at a time")
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the machinery")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
