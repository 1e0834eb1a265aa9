"""Which shards a process has begun and not ended: where one died twice, the third is careful.

A process that works alone takes the run with it when a row ends it. So each leaves a note while it
is at a shard; notes of processes that are gone say how often that shard has ended one. A kill from
outside leaves one too, which is why one death alone says nothing.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capfilt.ledger.publish import explained
from capfilt.process import lease

_FOLDER: Final = ".attempts"
_DEATHS: Final = 2


@dataclass(frozen=True, slots=True)
class Attempts:
    """The notes of a run's folder; `work` names what is done: a pass and a shard."""

    root: Path

    def is_deadly(self, work: str) -> bool:
        """Say whether processes of this machine have died at this work more than once."""
        return sum(map(lease.is_abandoned, self._notes(work))) >= _DEATHS

    @contextlib.contextmanager
    def noted(self, work: str) -> Iterator[None]:
        """Leave a note until the context is left; an exception is no death."""
        note = self.root / _FOLDER / f"{work}@{uuid.uuid4().hex[:12]}"
        with explained(note):
            descriptor = lease.take(note)
        try:
            yield
        finally:
            note.unlink(missing_ok=True)
            os.close(descriptor)

    def forget(self, work: str) -> None:
        """Remove what the dead have left of this work, which is done now."""
        for note in self._notes(work):
            if lease.is_abandoned(note):
                note.unlink(missing_ok=True)

    def _notes(self, work: str) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.root / _FOLDER)
            return [self.root / _FOLDER / n for n in names if n.startswith(f"{work}@")]
        return []
