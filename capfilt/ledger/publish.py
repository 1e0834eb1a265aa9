"""The one place that creates files: atomically, durably, and never twice.

A reader sees a whole file or none, the first writer wins, and nothing published ever changes
(replacing a file would let a slow worker change a shard that others have already built upon). How a
store does that is its own: hard links on a local disk, a conditional PUT in a bucket.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from capfilt.store.local import explained
from capfilt.store.location import Location
from capfilt.store.names import DAMAGED_DIR, TMP_DIR
from capfilt.store.stores import Store, store_of

__all__ = ["DAMAGED_DIR", "TMP_DIR", "Publisher", "check_writable", "explained"]


@dataclass(frozen=True, slots=True)
class Publisher:
    """Creates files below `root`."""

    root: Location

    @property
    def store(self) -> Store:
        """What creates them."""
        return store_of(self.root)

    def publish(self, relative: str, write: Callable[[BinaryIO], None]) -> bool:
        """Create `root/relative` with what `write` puts into the stream it is given.

        Returns False, and leaves the existing file alone, where the name was taken.

        Raises:
            StorageError: disk full, read-only folder, a file system without hard links, or a
                bucket that does not answer.
        """
        return self.store.put_new(relative, write)

    def publish_bytes(self, relative: str, content: bytes) -> bool:
        """Create `root/relative` with `content`; see `publish`."""

        def write(out: BinaryIO) -> None:
            out.write(content)

        return self.publish(relative, write)

    def set_aside(self, path: Location) -> Location:
        """Move a file or folder below `root` to `root/damaged`; returns where it lies now."""
        return self.store.set_aside(path)

    def sync(self) -> None:
        """Make what was created in or removed from `root` itself durable."""
        self.store.sync()

    def point(self, name: str, target: str) -> bool:
        """Let `root/name` lead to `root/target`, whatever it led to before.

        Returns False where something that is no link has the name, or links are not to be had.
        """
        return self.store.point(name, target)

    def scratch_dir(self) -> AbstractContextManager[Path]:
        """Give a private folder of this machine; it is removed with all in it at the end."""
        return self.store.scratch_dir()

    def check(self) -> None:
        """Raise a StorageError, before any work, where files cannot be created as they must be."""
        self.store.check()

    def leftovers(self) -> list[Location]:
        """Return the unfinished files and folders of processes that no longer run."""
        return self.store.leftovers()

    def sweep(self) -> None:
        """Remove what processes left that no longer run; nobody will ever finish it."""
        self.store.sweep()


def check_writable(folder: Location) -> None:
    """Check, without writing, that files can be created below a folder, or that it can be made.

    Raises:
        StorageError: it cannot be written, or stands below a file.
    """
    store_of(folder).check_access()
