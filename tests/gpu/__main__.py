"""Ask a machine with a GPU: is it right, is it the same, how fast is it, what happens at its ends.

    python -m tests.gpu [--only card equality …] [--json FILE]

At most ten minutes on an H100 or H200. Models have BLIP-large's sizes and random weights, so
nothing is fetched. The exit code is 1 where something does not hold that must.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.benchmarks.checkpoints import LARGE, Architecture
from tests.gpu import card, decisions, determinism, equality, memory, pipeline, speed
from tests.gpu.bench import Bench, Findings

_Question = Callable[[Bench, Findings], None]
QUESTIONS: Final[dict[str, _Question]] = {
    "card": card.ask,
    "equality": equality.ask,
    "determinism": determinism.ask,
    "speed": speed.ask,
    "memory": memory.ask,
    "decisions": decisions.ask,
    "pipeline": pipeline.ask,
}
# For the script's own test: everything as it is, but small.
TINY: Final = Architecture("tiny", 64, 2, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask the questions; returns 1 where something does not hold."""
    given = _parsed(arguments)
    told: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            given.device,
            TINY if given.tiny else LARGE,
            Path(folder),
            given.images,
            given.rows,
        )
        bench.prepare()
        for name in given.only or QUESTIONS:
            told[name] = _asked(name, bench)
            if given.json is not None:
                given.json.write_text(json.dumps(_plain(told), indent=1), encoding="utf-8")
    faults = [fault for found in told.values() for fault in found.faults]
    print("\n".join(["", f"{len(faults)} things do not hold", *faults]) if faults else "all holds")
    return 1 if faults else 0


def _asked(name: str, bench: Bench) -> Findings:
    """Ask one question; an error is a fault, and the others are asked all the same."""
    found, began = Findings(), time.perf_counter()
    print(name, flush=True)
    try:
        QUESTIONS[name](bench, found)
    except Exception as error:  # noqa: BLE001  # whatever it is, the other answers are wanted too
        traceback.print_exc(limit=-6)
        found.expect(False, f"{name}: {type(error).__name__}: {str(error)[:300]}")
    found.figures["seconds"] = round(time.perf_counter() - began, 1)
    return found


def _plain(told: dict[str, Findings]) -> dict[str, object]:
    return {
        name: {"figures": found.figures, "faults": found.faults, "lines": found.lines}
        for name, found in told.items()
    }


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", nargs="+", choices=list(QUESTIONS))
    parser.add_argument("--images", type=int, default=544, help="of a call of the models")
    parser.add_argument("--rows", type=int, default=8000, help="of a whole run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--tiny", action="store_true", help="a tiny architecture")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
