"""A round from Python instead of the command line: python examples/run_a_round.py URLS RUN."""

import sys
from pathlib import Path

from capfilt.commands.hardware import Hardware
from capfilt.commands.run import run as run_round
from capfilt.inputs import InputSpec
from capfilt.progress import show_progress
from capfilt.recipe.options import RoundOptions


def main(urls: str, run: str) -> None:
    """Run with two captions an image, and print the funnel."""
    result = run_round(
        InputSpec((urls,)),
        RoundOptions(num_captions=2, seed=1, allow_private_hosts=True, timeout=3.0),
        Path(run),
        Hardware(workers=1, device="cpu"),
        show_progress,
        print,
    )
    print(result.text())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
