"""The error tree. Every message says what is wrong, where, and what to do.

    CapfiltError                exit code 1
    ├── InputError              exit code 2   a file, column, option or folder given by the user
    │   ├── ModelError          exit code 2   a checkpoint that cannot do what it is asked
    │   └── CodeNeededError     exit code 2   code of a user's that a run folder only names
    ├── PlanError               exit code 2   stages that do not fit together
    ├── DamageError             exit code 3   a file of the run is torn, missing or foreign
    ├── NothingUsableError      exit code 3   every row of the input failed
    └── StorageError            exit code 4   disk full, read-only, no hard links
        ├── WorkerError         exit code 4   a worker process died
        └── MachineError        exit code 4   no network, open files, memory or threads to work with

A row that fails raises nothing: it stays in its shard with a status and a reason.
"""

import contextlib
import signal
from typing import Final

EXIT_CODES: Final = {
    0: "done",
    1: "a bug or an unexpected failure",
    2: "the input, an option or a model is unusable, nothing was run",
    3: "files of the run are torn, missing or foreign, or every row failed",
    4: "the run folder cannot be written or a worker died: run again to go on",
    129: "hung up: run again to go on",
    130: "interrupted: run again to go on",
    141: "the reader of the output has gone",
    143: "terminated (SIGTERM): run again to go on",
}


def exit_codes_told() -> str:
    """Return what every exit code means, in a sentence: the help's and README's."""
    return "Exit codes: " + "; ".join(f"{code} {told}" for code, told in EXIT_CODES.items()) + "."


class CapfiltError(Exception):
    """Base of all errors that capfilt raises on purpose."""

    exit_code = 1


class InputError(CapfiltError):
    """The user's input, option or file is not usable; nothing was run."""

    exit_code = 2


class ModelError(InputError):
    """A checkpoint is incomplete, of the wrong kind, or cannot be read."""


class CodeNeededError(InputError):
    """A run folder names code of a user's, which runs only where the user names it again."""


class PlanError(CapfiltError):
    """A stage needs a column that nothing upstream adds, or two stages add the same one."""

    exit_code = 2


class DamageError(CapfiltError):
    """A published file of the run is torn, missing or foreign; `capfilt verify` lists them."""

    exit_code = 3


class NothingUsableError(CapfiltError):
    """Every row of a run failed; the message says of what most did, and what helps."""

    exit_code = 3


class StorageError(CapfiltError):
    """The run folder cannot be written: full, read-only, or without hard links."""

    exit_code = 4


class WorkerError(StorageError):
    """A worker process ended by itself (often: out of memory). Finished shards are kept."""


class MachineError(StorageError):
    """This machine cannot fetch: it lacks network, open files, memory or threads. Nothing of the
    shard was written, so that no page is blamed; run again when it can."""


def ended(code: int | None) -> str:
    """Say how a process ended, by its exit code (negative: the signal)."""
    if code is None or code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
