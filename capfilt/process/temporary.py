"""A temporary folder of our own, for all that libraries leave in the system's.

Processes that are killed leave their temporary files. So they get a folder that their parent
removes. What a killed parent left is removed by the next one (see `lease`).
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from capfilt.process import lease


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a new folder below the system's temporary one; it is removed with all in it at the end.

    Raises:
        OSError: there is no temporary folder that can be written.
    """
    shared = _shared()
    if shared is None:
        with tempfile.TemporaryDirectory(prefix="capfilt-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    lease.sweep(shared)
    own = _made(shared)
    try:
        yield own
    finally:
        discard(own)


def discard(own: Path) -> None:
    """Remove a private folder, and the one that all lie in where it is the last."""
    shutil.rmtree(own, ignore_errors=True)
    if own.parent.name == _name():
        lease.leave(own.parent)
        with contextlib.suppress(OSError):  # other processes are still in it
            own.parent.rmdir()


def _made(shared: Path) -> Path:
    while True:
        own = lease.private_path(shared)
        try:
            own.mkdir(mode=0o700)
        except FileNotFoundError:  # it was empty, and another thread removed it
            continue
        return own


def use(folder: Path) -> None:
    """Make `folder` the temporary folder of this process, and of those that it starts."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    # torch makes this folder when it is imported, under a user's name that containers may not have.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))


@contextlib.contextmanager
def in_private_folder() -> Iterator[Path | None]:
    """Let this process, and those that it starts, put temporary files into a private folder.

    Yields None where there is no temporary folder at all: what needs one will say so.
    """
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with contextlib.ExitStack() as stack:
        folder = None
        with contextlib.suppress(OSError):
            folder = stack.enter_context(private_folder())
            use(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before[1]
            if folder is not None:
                os.environ.pop("TMPDIR")
            if before[0] is not None:
                os.environ["TMPDIR"] = before[0]


def _shared() -> Path | None:
    """Return the folder that all our private folders of this user lie in; None: use none.

    There is none within a private folder, and where another user has taken its name.
    """
    base = Path(tempfile.gettempdir())
    if base.parent.name == _name():
        return None
    folder = base / _name()
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if ours else None


def _name() -> str:
    return f"capfilt-{os.getuid()}"
