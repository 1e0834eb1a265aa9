"""A folder of a local file system, or of a network's with hard links: the store of a local path.

A file is written under a private name, flushed to the disk, and then given its public name by a
hard link, which fails where the name is taken.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from capfilt.errors import StorageError
from capfilt.process import lease
from capfilt.store.names import DAMAGED_DIR, TMP_DIR

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A `Store` below `root`. Unfinished files lie in `root/.tmp` until they are published."""

    root: Path

    def put_new(self, name: str, write: Callable[[BinaryIO], None]) -> bool:
        """Create a file; see `Store.put_new`."""
        target = self.root / name
        with explained(target), self._scratch_file() as scratch:
            with scratch.open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(scratch, target)
            except FileExistsError:
                _check_file(target)
                return False
            _sync_folder(target.parent)
        return True

    def set_aside(self, path: Path) -> Path:
        """Move a file or folder below `damaged`; see `Store.set_aside`."""
        base = self.root / DAMAGED_DIR / path.relative_to(self.root)
        with explained(base):
            base.parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while (target := base.with_name(f"{base.name}.{number}")).exists():
                number += 1
            path.rename(target)
            _sync_folder(path.parent)
        return target

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all in it."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Make what was created in or removed from `root` itself durable."""
        _sync_folder(self.root)

    def point(self, name: str, target: str) -> bool:
        """Let the link `root/name` lead to `root/target`; see `Store.point`."""
        link = self.root / name
        if link.is_symlink() and os.readlink(link) == target:
            return True
        if link.exists() and not link.is_symlink():
            return False
        with self._scratch_file() as scratch:
            try:
                scratch.symlink_to(target)
                scratch.replace(link)  # atomic: a reader finds the one or the other
            except OSError:
                return False
        return True

    @contextlib.contextmanager
    def scratch_dir(self) -> Iterator[Path]:
        """Yield a private folder below `root/.tmp`; it is removed with all in it at the end."""
        with explained(self.root / TMP_DIR):
            folder = lease.private_path(self.root / TMP_DIR)
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _scratch_file(self) -> Iterator[Path]:
        scratch = lease.private_path(self.root / TMP_DIR)
        try:
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)

    def check(self) -> None:
        """Write and remove a folder, so that what hinders is told before any work."""
        with self.scratch_dir():
            pass

    def check_access(self) -> None:
        """Check, without writing, that files can be created here, or the folder can be made."""
        folder = self.root
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with explained(folder):
            if not nearest.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if os.statvfs(nearest).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def leftovers(self) -> list[Path]:
        """Return the unfinished files and folders of processes that no longer run."""
        return lease.abandoned(self.root / TMP_DIR)

    def sweep(self) -> None:
        """Remove what processes left that no longer run; nobody will ever finish it."""
        lease.sweep(self.root / TMP_DIR)

    def notes(self) -> Path:
        """Return where this machine's processes leave notes for each other: here."""
        return self.root

    def beside(self, name: str) -> Path:
        """Return the folder `<root>-<name>`."""
        return self.root.with_name(f"{self.root.name}-{name}")


def _check_file(target: Path) -> None:
    """Raise StorageError where a link or a folder has the name of a file."""
    if not target.is_file():
        what = "a link to nothing" if target.is_symlink() else "no file"
        raise StorageError(
            f"{target} is {what} (of a tool that keeps files elsewhere?); remove it, or let "
            "`capfilt verify --repair` move it away, and run the same command again"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(target: object) -> Iterator[None]:
    """Turn an OSError of writing `target` into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {target}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return f"{reason}. Free some space and run the same command again: it goes on from here."
    if error.errno in _NO_LINKS and error.filename2 is not None:
        return f"{reason}. The run folder must lie on a file system with hard links."
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return f"{reason}. The run folder must be writable; finished shards are kept."
    return f"{reason}. Finished shards are kept; run the same command again to go on."
