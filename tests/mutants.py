"""One-line changes of the code that a test must notice, each tried in a copy: `make mutants`.

A change that no test notices is a promise that nothing holds. Prints a line a change, and ends with
exit code 1 where one survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

ROOT: Final = Path(__file__).parents[1]
_COPIED: Final = (
    "capfilt",
    "tests",
    "pipelines",
    "examples",
    "pyproject.toml",
    "README.md",
    "docs",
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change: in `file` (below capfilt/) `old`, which stands there once, becomes `new`."""

    what: str
    file: str
    old: str
    new: str
    tests: str  # below tests/; separated by spaces


MUTANTS: Final = (
    Mutant(
        "a stage's id without its upstream",
        "engine/plan.py",
        "identity_fields(stage), upstream]",
        "identity_fields(stage)]",
        "unit/test_plan.py",
    ),
    Mutant(
        "a barrier's id without its shards",
        "engine/plan.py",
        "parts.append(tuple(shards))",
        "pass",
        "unit/test_plan.py",
    ),
    Mutant(
        "a lost race taken for a won one",
        "store/local.py",
        "                _check_file(target)\n                return False",
        "                _check_file(target)\n                return True",
        "unit/test_ledger.py",
    ),
    Mutant(
        "rename in place of link",
        "store/local.py",
        "os.link(scratch, target)",
        "os.rename(scratch, target)",
        "unit/test_ledger.py",
    ),
    Mutant(
        "fsync of a file left out",
        "store/local.py",
        "os.fsync(stream.fileno())",
        "pass",
        "unit/test_ledger.py",
    ),
    Mutant(
        "fsync of a folder left out",
        "store/local.py",
        "        os.fsync(descriptor)",
        "        pass",
        "unit/test_ledger.py",
    ),
    Mutant(
        "above the threshold in place of at least",
        "stages/policies/blip.py",
        "_numbers(scores, np.nan) >= np",
        "_numbers(scores, np.nan) > np",
        "stages/test_select.py stages/test_policies.py",
    ),
    Mutant(
        "the bottom share for the top one",
        "stages/policies/texts.py",
        "np.partition(there, len(there) - wanted)[len(there) - wanted]",
        "np.partition(there, wanted - 1)[wanted - 1]",
        "stages/test_policies.py",
    ),
    Mutant(
        "the worst copy kept",
        "stages/dedup/barrier.py",
        "np.lexsort((keys, -_joined",
        "np.lexsort((keys, _joined",
        "stages/test_dedup.py",
    ),
    Mutant(
        "multicast addresses allowed",
        "stages/download/guard.py",
        '    "224.0.0.0/4": "multicast, RFC 5771",\n',
        "",
        "stages/test_guard.py",
    ),
    Mutant(
        "404 fetched again",
        "stages/failures.py",
        "_PASSING_CODES: Final = frozenset({408,",
        "_PASSING_CODES: Final = frozenset({404, 408,",
        "unit/test_attempts.py",
    ),
    Mutant(
        "the minimum side ignored",
        "pixels/errors.py",
        "min(width, height) < max(1, self.least_side)",
        "min(width, height) < 1",
        "stages/test_pixels.py stages/test_resizer.py",
    ),
    Mutant(
        "the other class of the ITM head",
        "models/blip.py",
        "dim=-1)[:, 1]",
        "dim=-1)[:, 0]",
        "models/test_blip.py",
    ),
    Mutant(
        "an image's slots left when its first caption ends",
        "models/compute/slots.py",
        "self._ended.all(1)",
        "self._ended.any(1)",
        "models",
    ),
    Mutant(
        "image states kept for one image only",
        "models/compute/buckets.py",
        "        self._states[place] = (alive, states)",
        "        self._states = {place: (alive, states)}",
        "stages/test_slices.py",
    ),
    Mutant(
        "nothing decoded ahead",
        "engine/ahead.py",
        "if self._pool is None or ",
        "if True or ",
        "unit/test_worker.py",
    ),
    Mutant(
        "workers without a bound of memory",
        "engine/machine.py",
        "max(1, min(cores(), by_memory))",
        "cores()",
        "unit/test_engine.py",
    ),
    Mutant(
        "bf16 recommended without its condition",
        "engine/precision.py",
        'if "fp32" not in precisions or max(',
        "if max(",
        "unit/test_engine.py",
    ),
    Mutant(
        "one bit of a band fewer turned",
        "stages/dedup/bands.py",
        "_flips(band.bits, radius // len(_BANDS))",
        "_flips(band.bits, radius // len(_BANDS) - 1)",
        "stages/test_bands.py",
    ),
    Mutant(
        "others' shards left undone",
        "engine/ranks.py",
        "return own + sorted(others,",
        "return own + sorted(others - others,",
        "unit/test_ranks.py",
    ),
    Mutant(
        "a whole number taken for another than the float",
        "fingerprint.py",
        "return float(value) if type(value) is int else value",
        "return value",
        "unit/test_identities.py",
    ),
    Mutant(
        "a changed file taken for the one that was cut",
        "inputs/checked.py",
        "stamp.size, stamp.mtime_ns)",
        "0, 0)",
        "unit/test_memory.py",
    ),
    Mutant(
        "a rank's shards shifted",
        "engine/ranks.py",
        "shards[rank::world_size]",
        "shards[rank + 1 :: world_size]",
        "unit/test_ranks.py",
    ),
    Mutant(
        "rows that were fetched again counted twice",
        "report/funnel.py",
        "    funnel.reasons[FAILED_TO_DOWNLOAD] -= again\n",
        "",
        "unit/test_export.py",
    ),
    Mutant(
        "a user's code left out of the identity",
        "fingerprint.py",
        '{"code": [kind.__qualname__, *sorted(set(digests))]} if digests else {}',
        "{}",
        "unit/test_fingerprint.py",
    ),
    Mutant(
        "what a file was computed from not compared",
        "engine/verify.py",
        "of.data_sha256 != sha256",
        "False",
        "unit/test_verify.py e2e/test_damage.py",
    ),
)


def survives(mutant: Mutant, folder: Path) -> bool:
    """Say whether no test notices a change, in a copy below `folder`.

    Raises:
        ValueError: the code has changed, and the change cannot be made any more.
    """
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in _COPIED:
        of = ROOT / name
        skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(of, copy / name, ignore=skipped) if of.is_dir() else shutil.copy(of, copy)
    file = copy / "capfilt" / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    tests = [str(copy / "tests" / name) for name in mutant.tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    known = {**os.environ, "PYTHONPATH": str(copy)}
    ran = subprocess.run(command, cwd=copy, env=known, capture_output=True, check=False)
    if ran.returncode not in {0, 1}:
        raise ValueError(f"pytest cannot run: {ran.stdout.decode()[-2000:]}")
    return ran.returncode == 0


def main() -> None:
    """Try those changes whose text has the word that is given, or all."""
    wanted = [one for one in MUTANTS if not sys.argv[1:] or sys.argv[1] in one.what]
    surviving = []
    with tempfile.TemporaryDirectory(prefix="capfilt-mutants-") as folder:
        for mutant in tqdm(wanted, desc="mutants", disable=None):
            began = time.monotonic()
            lives = survives(mutant, Path(folder))
            surviving += [mutant.what] if lives else []
            told = "SURVIVES" if lives else "noticed"
            tqdm.write(f"{told:<10}{time.monotonic() - began:>6.1f} s  {mutant.what}")
    print(f"{len(wanted) - len(surviving)} of {len(wanted)} changes noticed")
    sys.exit(1 if surviving else 0)


if __name__ == "__main__":
    main()
