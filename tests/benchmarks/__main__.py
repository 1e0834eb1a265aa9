"""What the pipeline costs beside its models: rates, overhead, memory.

    python -m tests.benchmarks [--only NAME …] [--rows N] [--json]

Every case runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields

from tests.benchmarks.cases import CASES, Sizes
from tests.benchmarks.lines import Line, table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases and print one table."""
    given = _parsed(arguments)
    sizes = Sizes(**{field.name: getattr(given, field.name) for field in fields(Sizes)})
    if given.case:
        [case] = [case for case in CASES if case.__name__ == given.case]
        print(json.dumps([line.plain() for line in case(sizes)]))
        return
    lines: list[Line] = []
    for name in given.only or [case.__name__ for case in CASES]:
        print(f"{name} …", file=sys.stderr, flush=True)
        lines += _in_its_own_process(name, sizes)
    if given.json:
        print(json.dumps([line.plain() for line in lines], indent=1))
    else:
        print(table(lines))


def _in_its_own_process(name: str, sizes: Sizes) -> list[Line]:
    options = [f"--{field.name}={getattr(sizes, field.name)}" for field in fields(Sizes)]
    command = [sys.executable, "-m", "tests.benchmarks", "--case", name, *options]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Line(**plain) for plain in json.loads(ran.stdout.splitlines()[-1])]


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = [case.__name__ for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, help="these cases alone")
    parser.add_argument("--case", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=getattr(Sizes(), field.name))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
