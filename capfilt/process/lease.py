"""Leases: whether the process that writes a file still lives.

Every process that writes into a folder holds a file there, its lease, under an exclusive lock
(flock) for as long as it lives. The lock dies with the process, however that ends. A process id
would not do: two containers can have one host name, and ids are given out again.

Who finds the lock free knows that the writer is gone only where it would see the lock: under the
same kernel, through the same mount. A lease says what it was taken under. For all others (other
machines, whose locks a mount can keep to itself; file systems without locks) a lease is touched
once in a while, and is abandoned after a day of silence.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import util
from pathlib import Path
from typing import Final

SUFFIX: Final = ".lease"
_STALE_SECONDS: Final = 24 * 3600.0
_BEAT_SECONDS: Final = 3600.0
_MOST_IDLE: Final = 16  # each holds a file open
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this process holds in `folder`; `writer` is its name there."""

    folder: Path
    writer: str
    descriptor: int
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def is_there(self) -> bool:
        """Say whether the folder still has it: somebody can have removed the whole folder."""
        return _is_at(self.folder / f"{self.writer}{SUFFIX}", self.descriptor)

    def is_idle(self) -> bool:
        """Say whether its writer has nothing unfinished, or the folder is gone."""
        return not any(self.folder.glob(f"{self.writer}~*"))

    def beat(self) -> None:
        """Tell those who cannot see the lock that the writer lives."""
        with contextlib.suppress(OSError):
            os.utime(self.descriptor)

    def end(self) -> None:
        """Remove the lease, and what its writer has not finished."""
        remove([*self.folder.glob(f"{self.writer}~*"), self.folder / f"{self.writer}{SUFFIX}"])
        os.close(self.descriptor)


class _Held:
    """The leases of this process. A forked child begins with none: it is another writer."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.leases: dict[Path, Lease] = {}
        self.beating = False

    def begin(self) -> None:
        """See to the leases' heartbeat, and to their end with this process."""
        if self.beating:
            return
        self.beating = True
        threading.Thread(target=self._beat, name="capfilt-leases", daemon=True).start()
        # Unlike atexit this also runs at the end of processes of `multiprocessing`.
        util.Finalize(None, self.end, exitpriority=0)

    def make_room(self) -> None:
        """End idle leases where there are many: this process has gone on to other folders."""
        if len(self.leases) >= _MOST_IDLE:
            for folder, lease in list(self.leases.items()):
                if lease.is_idle():
                    del self.leases[folder]
                    lease.end()

    def end(self) -> None:
        """End all leases; also remove what others left that died, such as killed workers."""
        with self.lock:
            leases = list(self.leases.values())
            self.leases.clear()
        for lease in leases:
            lease.end()
            with contextlib.suppress(OSError):
                sweep(lease.folder)

    def _beat(self) -> None:
        while True:
            time.sleep(_BEAT_SECONDS)
            with self.lock:
                leases = list(self.leases.values())
            for lease in leases:
                lease.beat()


_held = _Held()


def _forget() -> None:
    """Begin anew in a forked child, and let go of the parent's locks: they end with the parent."""
    global _held  # noqa: PLW0603  # the one state of this module
    for lease in _held.leases.values():
        os.close(lease.descriptor)
    _held = _Held()


os.register_at_fork(after_in_child=_forget)


def private_path(folder: Path) -> Path:
    """Return a new name in `folder` that is ours for as long as this process lives.

    Makes the folder and takes a lease there where that is missing.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = folder.absolute()
    with _held.lock:
        lease = _held.leases.get(folder)
        if lease is None or not lease.is_there():
            if lease is not None:
                os.close(_held.leases.pop(folder).descriptor)
            _held.make_room()
            lease = _held.leases[folder] = _taken(folder)
            _held.begin()
        return folder / f"{lease.writer}~{next(lease.numbers)}"


def end_all() -> None:
    """End this process's leases now; for a process that ends in an uncommon way."""
    _held.end()


def leave(folder: Path) -> None:
    """End this process's lease in `folder` where nothing of ours is left there."""
    with _held.lock:
        lease = _held.leases.get(folder.absolute())
        if lease is not None and lease.is_idle():
            del _held.leases[folder.absolute()]
            lease.end()


def abandoned(folder: Path) -> list[Path]:
    """Return the private files and folders in `folder` whose writers are gone.

    Raises:
        OSError: the folder cannot be read; a folder that is missing holds nothing.
    """
    gone: dict[str, bool] = {}
    found = []
    for entry in _entries(folder):
        writer = entry.name.rpartition("~")[0]
        if not writer or entry.suffix == SUFFIX:
            continue
        lease = folder / f"{writer}{SUFFIX}"
        if writer not in gone and lease.exists():
            gone[writer] = is_abandoned(lease)
        if gone[writer] if writer in gone else _is_silent(entry):
            found.append(entry)
    return found


def sweep(folder: Path) -> None:
    """Remove what writers left that are gone, and their leases.

    Raises:
        OSError: the folder cannot be read.
    """
    remove(abandoned(folder))
    remove(path for path in _entries(folder) if path.suffix == SUFFIX and is_abandoned(path))


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders as far as that goes; others may be removing them as well."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def lock(descriptor: int, how: int) -> bool | None:
    """Lock a file as `how` says, without waiting; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _taken(folder: Path) -> Lease:
    # Host and process are for people. The name is short, since sockets lie in such folders.
    writer = f"{socket.gethostname()[:16]}~{os.getpid()}~{uuid.uuid4().hex[:12]}"
    return Lease(folder, writer, take(folder / f"{writer}{SUFFIX}"))


def take(path: Path) -> int:
    """Create a file that is locked while this process lives; returns its descriptor.

    `is_abandoned` tells others of the process's end. Makes the folder where that is missing.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        except FileNotFoundError:  # the folder was empty, and its last user removed it
            continue
        locked = lock(descriptor, fcntl.LOCK_EX)
        # Another process may have judged, and removed, the file before it was locked.
        if locked is not False and _is_at(path, descriptor):
            break
        os.close(descriptor)
    if locked:
        with contextlib.suppress(OSError):  # a full disk; what is written next tells of it
            os.write(descriptor, _seen_from(descriptor))
    return descriptor


def is_abandoned(lease: Path) -> bool:
    """Say whether the process is gone that took this file."""
    try:
        descriptor = os.open(lease, os.O_RDONLY)
    except OSError:  # ended meanwhile, or another user's
        return _is_silent(lease)
    try:
        free = lock(descriptor, fcntl.LOCK_SH)  # shared: judges do not take each other for writers
        if free is False:
            return False
        would_see = free is True and os.read(descriptor, 1000) == _seen_from(descriptor)
        return would_see or _is_silent(lease)
    finally:
        os.close(descriptor)


def _is_silent(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    return False


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _seen_from(descriptor: int) -> bytes:
    """Return whose locks on this file are seen: this kernel's, and among them this mount's."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # no Linux
        kernel = f"{socket.gethostname()} {uuid.getnode():x}"
    return f"{kernel} {os.fstat(descriptor).st_dev}".encode()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
