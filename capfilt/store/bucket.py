"""Files in a bucket: the verbs of a path over its objects.

A folder of a bucket is no thing of its own: it is there where an object lies below it. Reading goes
by ranges, so that a Parquet file costs its footer and the columns that are asked for.
"""

import fnmatch
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Literal, cast

from capfilt.store.objects import Info, Objects, objects_of

_SEQUENTIAL: Final = 8 << 20  # bytes of a request where a file is read from end to end


@dataclass(frozen=True, slots=True)
class Found:
    """What a bucket says of an object, as `os.stat` says it of a file."""

    st_size: int
    st_mtime_ns: int
    etag: str


@dataclass(frozen=True, slots=True, order=True)
class BucketPath:
    """A place in a bucket: `root` is `scheme://bucket`, `key` the object's or folder's name."""

    root: str
    key: str

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    @property
    def objects(self) -> Objects:
        """The objects of its bucket."""
        return objects_of(self.root)

    @property
    def name(self) -> str:
        """The last part."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last suffix."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes."""
        return self._pure.suffixes

    @property
    def parent(self) -> "BucketPath":
        """The folder that it lies in; the bucket's is itself."""
        return BucketPath(self.root, self.key.rpartition("/")[0])

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the key."""
        return self._pure.parts

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(self.root, f"{self.key}/{name}" if self.key else name)

    def with_name(self, name: str) -> "BucketPath":
        """Return the place beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "BucketPath":
        """Return the place with another suffix."""
        return self.parent / self._pure.with_suffix(suffix).name

    def resolve(self) -> "BucketPath":
        """Return the place itself: a bucket has no links."""
        return self

    def is_relative_to(self, other: object) -> bool:
        """Say whether it lies in a folder, or is it."""
        same = isinstance(other, BucketPath) and other.root == self.root
        return same and self._pure.is_relative_to(cast(BucketPath, other).key)

    def relative_to(self, other: object) -> PurePosixPath:
        """Return the place below a folder."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}")
        return self._pure.relative_to(cast(BucketPath, other).key)

    def exists(self) -> bool:
        """Say whether there is such an object."""
        return self.objects.head(self.key) is not None if self.key else False

    is_file = exists

    def is_dir(self) -> bool:
        """Say whether anything lies below; a bucket always is a folder."""
        return not self.key or next(self.objects.keys(self.key), None) is not None

    def is_symlink(self) -> bool:
        """Say no."""
        return False

    def stat(self) -> Found:
        """Return size, time and ETag of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        info = self.objects.head(self.key)
        if info is None:
            raise FileNotFoundError(2, "no such object", str(self))
        return Found(info.size, info.mtime_ns, info.etag)

    def open(self, mode: Literal["rb"] = "rb", buffering: int = -1) -> io.BufferedReader:
        """Open an object for reading from end to end; see `ranged` for columns."""
        return io.BufferedReader(self.ranged(), _SEQUENTIAL)

    def ranged(self) -> "RangedFile":
        """Open an object for reading here and there: every read is a request of its own.

        Raises:
            FileNotFoundError: there is none.
        """
        return RangedFile(self)

    def read_bytes(self) -> bytes:
        """Return what an object holds."""
        return self.objects.get(self.key)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the text that an object holds."""
        return self.read_bytes().decode(encoding)

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yield objects and folders directly below: one listing."""
        names = self.objects.folder(self.key)
        return (BucketPath(self.root, key) for key in names)

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yield what has such a name; a part without wildcards is no listing."""
        first, _, rest = pattern.partition("/")
        for path in self._matching(first):
            if rest:
                yield from path.glob(rest)
            else:
                yield path

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yield all objects below that have such a name."""
        for key in self.objects.keys(self.key):
            if fnmatch.fnmatchcase(key.rpartition("/")[2], pattern):
                yield BucketPath(self.root, key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object; one that is gone is no error, as the service has it."""
        self.objects.delete(self.key)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.key)

    def _matching(self, part: str) -> Iterator["BucketPath"]:
        if not any(letter in part for letter in "*?["):
            path = self / part
            return iter([path] if path.exists() or path.is_dir() else [])
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, part))


class RangedFile(io.RawIOBase):
    """An object as a file: its last bytes come with its size in the first request."""

    def __init__(self, path: BucketPath) -> None:
        super().__init__()
        self._path, self._place = path, 0
        self._tail, self._info = path.objects.tail(path.key)

    @property
    def info(self) -> Info:
        """What the bucket said of the object."""
        return self._info

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read anywhere."""
        return True

    def size(self) -> int:
        """Return its bytes."""
        return self._info.size

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._info.size}[whence]
        if start + offset < 0:
            raise OSError(22, "no place before the beginning", str(self._path))
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes (-1: all that is left), in one request at the most."""
        if self.closed:
            raise ValueError("this file is closed")
        whole = self._info.size
        stop = whole if size is None or size < 0 else min(whole, self._place + size)
        if stop <= self._place:
            return b""
        found = self._between(self._place, stop)
        self._place = stop
        return found

    def readall(self) -> bytes:
        """Return all that is left, in one request."""
        return self.read()

    def readinto(self, buffer: Any) -> int:  # any writable buffer
        """Fill a buffer; returns how many bytes there were."""
        found = self.read(len(memoryview(buffer)))
        buffer[: len(found)] = found
        return len(found)

    def _between(self, start: int, stop: int) -> bytes:
        tail = self._info.size - len(self._tail)
        if start >= tail:
            return self._tail[start - tail : stop - tail]
        path = self._path
        found = path.objects.get(path.key, start, min(stop, tail), self._info.etag)
        if len(found) != min(stop, tail) - start:
            raise OSError(f"{path}: {len(found)} bytes came where {min(stop, tail) - start} are")
        return found + self._tail[: max(0, stop - tail)]
