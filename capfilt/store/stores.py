"""What creates, moves and removes files below a place: a local folder's store or a bucket's.

Every file is created once, as a whole, by the first that has it, and never changes after.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from capfilt.store.local import LocalStore
from capfilt.store.location import Location


class Store(Protocol):
    """The verbs that change what lies below a place, its root."""

    def put_new(self, name: str, write: Callable[[BinaryIO], None]) -> bool:
        """Create a file with what `write` puts into the stream it is given.

        Returns False, and leaves the existing file alone, where the name was taken.

        Raises:
            StorageError: full, read-only, without hard links, or not to be reached.
        """

    def set_aside(self, path: Any) -> Location:  # of the root's own kind
        """Move a file or folder below `damaged`; returns where it lies now.

        Its place there is its place below the root and a number, so nothing is ever overwritten,
        and no reader takes it for what it was.
        """

    def remove(self, path: Any) -> None:  # of the root's own kind
        """Remove a file, or a folder with all in it."""

    def sync(self) -> None:
        """Make what was created in or removed from the root itself durable."""

    def point(self, name: str, target: str) -> bool:
        """Let `name` lead to `target`, whatever it led to before.

        Returns False where something else has the name, or links are not to be had.
        """

    def scratch_dir(self) -> AbstractContextManager[Path]:
        """Give a private folder of this machine; it is removed with all in it at the end."""

    def check(self) -> None:
        """Raise a StorageError, before any work, where files cannot be created as they must be."""

    def check_access(self) -> None:
        """Do so as far as that goes without writing."""

    def leftovers(self) -> list[Any]:  # of the root's own kind
        """Return the unfinished files and folders of processes that no longer run."""

    def sweep(self) -> None:
        """Remove them; nobody will ever finish them."""

    def notes(self) -> Path:
        """Return where this machine's processes leave notes for each other."""

    def beside(self, name: str) -> Path:
        """Return a folder of this machine for what belongs to the root and is no part of it."""


def store_of(root: Location) -> Store:
    """Return the store of a place."""
    if isinstance(root, Path):
        return LocalStore(root)
    from capfilt.store.bucket import BucketPath
    from capfilt.store.remote import BucketStore

    assert isinstance(root, BucketPath)  # there are two kinds
    return BucketStore(root)
