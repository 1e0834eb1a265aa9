"""A folder of a bucket as a store: every file is one object, created by one conditional PUT.

Nothing unfinished is ever visible there: a file is written to this machine's memory or temporary
folder, and sent as a whole. So there is nothing to sweep, and nobody holds a lease.
"""

import contextlib
import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from capfilt.process.temporary import private_folder
from capfilt.store.bucket import BucketPath
from capfilt.store.names import DAMAGED_DIR
from capfilt.store.probe import probe

_IN_MEMORY: Final = 32 << 20  # bytes; larger files are written to a temporary one first
_CACHE: Final = "capfilt"


@dataclass(frozen=True, slots=True)
class BucketStore:
    """A `Store` below `root`."""

    root: BucketPath

    def put_new(self, name: str, write: Callable[[BinaryIO], None]) -> bool:
        """Create an object; see `Store.put_new`."""
        path = self.root / name
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
            write(cast(BinaryIO, file))
            size = file.tell()
            if size <= _IN_MEMORY:
                file.seek(0)
                return path.objects.put_new(path.key, file.read())
            file.flush()
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
                return path.objects.put_new(path.key, content)

    def set_aside(self, path: BucketPath) -> BucketPath:
        """Move an object, or all below a folder; see `Store.set_aside`."""
        base = self.root / DAMAGED_DIR / str(path.relative_to(self.root))
        number = 1
        while (target := base.with_name(f"{base.name}.{number}")).exists() or target.is_dir():
            number += 1
        for key in self._all(path):
            path.objects.copy(key, target.key + key.removeprefix(path.key))
            path.objects.delete(key)
        return target

    def remove(self, path: BucketPath) -> None:
        """Remove an object, or all below a folder."""
        for key in self._all(path):
            path.objects.delete(key)

    def sync(self) -> None:
        """Do nothing: what a bucket has said to have is durable."""

    def point(self, name: str, target: str) -> bool:
        """Let the object `name` hold the name of another; a bucket has no links."""
        path, text = self.root / name, f"{target}\n".encode()
        if not path.exists() or path.read_bytes() != text:
            path.objects.put(path.key, text)
        return True

    @contextlib.contextmanager
    def scratch_dir(self) -> Iterator[Path]:
        """Yield a private folder of this machine; it is removed with all in it at the end."""
        with private_folder() as folder:
            yield folder

    def check(self) -> None:
        """Probe the store; see `probe`."""
        probe(self.root)

    def check_access(self) -> None:
        """Check, without writing, that the bucket is there and may be listed."""
        self.root.is_dir()
        next(self.root.objects.keys(self.root.key), None)

    def leftovers(self) -> list[BucketPath]:
        """Return nothing: no unfinished file lies in a bucket."""
        return []

    def sweep(self) -> None:
        """Do nothing; see `leftovers`."""

    def notes(self) -> Path:
        """Return a folder of this machine for notes between its processes."""
        name = hashlib.blake2b(str(self.root).encode(), digest_size=8).hexdigest()
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return Path(cache) / _CACHE / "runs" / name

    def beside(self, name: str) -> Path:
        """Return a folder below the notes."""
        return self.notes() / name

    def _all(self, path: BucketPath) -> list[str]:
        below = list(path.objects.keys(path.key))
        return [path.key, *below] if path.exists() else below
