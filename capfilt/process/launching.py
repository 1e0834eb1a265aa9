"""Starting worker processes from whatever started this one.

A spawned process imports its parent's `__main__` again. A script without a main guard then begins
anew in each worker, and standard input cannot be read twice. A worker needs that import only where
the job holds something that is defined there; otherwise it is left out, and all of these work.
"""

import contextlib
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any

from capfilt.errors import PlanError
from capfilt.process import signals
from capfilt.usercode import UserFile, restore_code, user_files


@dataclass(frozen=True, slots=True)
class Packed:
    """A job as it is sent to workers: pickled once for all of them."""

    content: bytes
    files: tuple[UserFile, ...] = ()  # the user's code that it refers to

    @property
    def needs_main(self) -> bool:
        """Say whether it holds something that is defined in `__main__`."""
        return b"__main__" in self.content

    def unpack(self) -> Any:  # the job
        """Return the job."""
        restore_code(self.files)
        return pickle.loads(self.content)


def pack(job: object) -> Packed:
    """Pickle a job.

    Raises:
        PlanError: it cannot be sent to another process.
    """
    try:
        content = pickle.dumps(job)
        return Packed(content, user_files(content))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PlanError(
            f"this cannot be sent to worker processes: {error}. Define stages at the top of a "
            "module that can be imported, or give 1 worker"
        ) from error


@contextlib.contextmanager
def launching(packed: Packed) -> Iterator[None]:
    """Start processes for a job within this; see the module's text, and `signals.held`."""
    with signals.held():
        main = sys.modules["__main__"]
        if not packed.needs_main:
            sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def start_tracker() -> None:
    """Start the process that removes killed workers' semaphores, and let it do that in silence."""
    quiet = f"ignore::UserWarning:{resource_tracker.__name__}"
    sys.warnoptions.append(quiet)  # it is started with this process's options
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def why_not_begun(packed: Packed) -> str:
    """Return why workers ended before they had their job, and what to do."""
    if not packed.needs_main:
        return (
            "worker processes ended before they began; what they said stands above. Where that is "
            "nothing, they were killed (out of memory is the usual reason: try fewer --workers)"
        )
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or file.startswith("<"):
        return (
            "worker processes cannot import what is defined on standard input or in a notebook; "
            "put your stages and policies into a module, or give 1 worker"
        )
    return (
        f"worker processes ended before they began: they import {file}, which defines a stage or a "
        'policy. Guard what it does: if __name__ == "__main__": … (what they said stands above)'
    )
