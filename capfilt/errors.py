"""The error tree. Every message says what is wrong, where, and what to do.

    CapfiltError                exit code 1
    ├── InputError              exit code 2   a file, column, option or folder given by the user
    │   └── ModelError          exit code 2   a checkpoint that cannot do what it is asked
    ├── PlanError               exit code 2   stages that do not fit together
    ├── DamageError             exit code 3   a file of the run is torn, missing or foreign
    └── StorageError            exit code 4   disk full, read-only, no hard links
        └── WorkerError         exit code 4   a worker process died

A row that fails raises nothing: it stays in its shard with a status and a reason.
"""


class CapfiltError(Exception):
    """Base of all errors that capfilt raises on purpose."""

    exit_code = 1


class InputError(CapfiltError):
    """The user's input, option or file is not usable; nothing was run."""

    exit_code = 2


class ModelError(InputError):
    """A checkpoint is incomplete, of the wrong kind, or cannot be read."""


class PlanError(CapfiltError):
    """A stage needs a column that nothing upstream adds, or two stages add the same one."""

    exit_code = 2


class DamageError(CapfiltError):
    """A published file of the run is torn, missing or foreign; `capfilt verify` lists them."""

    exit_code = 3


class StorageError(CapfiltError):
    """The run folder cannot be written: full, read-only, or without hard links."""

    exit_code = 4


class WorkerError(StorageError):
    """A worker process ended by itself (often: out of memory). Finished shards are kept."""
