"""References to local images: a short text that says exactly which bytes are meant.

A reference is a JSON list in ASCII, `[form, path, file size, mtime_ns, …where in it]`, so any
path survives, even one that is not UTF-8. Size and time of the file belong to it: a file that
was changed is another image, and reading by an old reference fails rather than lies.
"""

import functools
import io
import json
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capfilt.errors import InputError

# No photograph is larger; a hostile file of terabytes must not take the worker's memory.
MAX_IMAGE_BYTES: Final = 256 * 1024 * 1024

_ARROW_FILE: Final = b"ARROW1"

# O_NOFOLLOW and O_NONBLOCK: what was a file when it was listed may be a link or a pipe by now.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def file_ref(path: str, status: os.stat_result) -> str:
    """Refer to a whole file."""
    return _encode("file", path, status.st_size, status.st_mtime_ns)


def tar_ref(path: str, status: os.stat_result, offset: int, length: int) -> str:
    """Refer to `length` bytes at `offset` of an uncompressed tar."""
    return _encode("tar", path, status.st_size, status.st_mtime_ns, offset, length)


def parquet_ref(path: str, status: os.stat_result, group: int, row: int, column: str) -> str:
    """Refer to the cell in `row` of row group `group` of a binary column.

    A column within a struct is named with a dot: `image.bytes`.
    """
    return _encode("parquet", path, status.st_size, status.st_mtime_ns, group, row, column)


def arrow_ref(path: str, status: os.stat_result, batch: int, row: int, column: str) -> str:
    """Refer to the cell in `row` of record batch `batch` of an Arrow file; see `parquet_ref`."""
    return _encode("arrow", path, status.st_size, status.st_mtime_ns, batch, row, column)


def _encode(*parts: str | int) -> str:
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=True)


class ChangedFile(InputError):
    """The file of a local image is not the one that the input named."""


def read_image(ref: str) -> bytes:
    """Return the encoded image that `ref` (an `image_ref` of an input) means.

    Raises:
        InputError: its file is gone, was changed, or cannot be read. It costs that row only; the
            message is the row's reason.
    """
    form, path, size, mtime_ns, *where = json.loads(ref)
    with _reported(path), _open_unchanged(path, size, mtime_ns) as file:
        if form == "file":
            return _read_range(file, 0, size)
        if form == "tar":
            offset, length = where
            return _read_range(file, offset, length)
    part, row, column = where
    with _LOCK, _reported(path):
        image = _part(form, path, size, mtime_ns, part, column).cell(row)
    if not isinstance(image, bytes):
        raise InputError(f"{path}: no image in row {row} of part {part}")
    if len(image) > MAX_IMAGE_BYTES:
        raise InputError(f"image of {len(image)} bytes, which is more than {MAX_IMAGE_BYTES}")
    return image


@contextmanager
def _reported(path: str) -> Iterator[None]:
    """Turn the operating system's and Arrow's errors about `path` into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise InputError(f"{path}: damaged ({error})") from error


@contextmanager
def _open_unchanged(path: str, size: int, mtime_ns: int) -> Iterator[BinaryIO]:
    with open(os.open(path, _OPEN_FLAGS), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file any more")
        if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
            raise ChangedFile(f"{path}: changed since the input was read; run with the input again")
        yield file


def _read_range(file: BinaryIO, offset: int, length: int) -> bytes:
    if length > MAX_IMAGE_BYTES:
        raise InputError(f"image of {length} bytes, which is more than {MAX_IMAGE_BYTES}")
    data = os.pread(file.fileno(), length, offset)
    while len(data) < length:  # pread may give less than was asked for
        more = os.pread(file.fileno(), length - len(data), offset + len(data))
        if not more:
            raise InputError(f"image ends after {len(data)} of {length} bytes")
        data += more
    return data


_LOCK: Final = threading.Lock()
# Rows of a column of images that are decoded at a time. Arrow decodes whole pages, so what is in
# memory is a page and a window; a row group, which may have hundreds of megabytes, never is.
_WINDOW_ROWS: Final = 16
_BUFFER: Final = 1 << 20  # bytes that are read of a column chunk at a time


class _Positioned(io.RawIOBase):
    """A file with a position of its own: a process that is forked does not move it."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__()
        self._descriptor, self._size, self._place = descriptor, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:  # any writable buffer
        count = os.preadv(self._descriptor, [buffer], self._place)
        self._place += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


@dataclass(slots=True)
class _Group:
    """One column of a Parquet row group, read forwards in windows as rows are asked for."""

    parquet: pq.ParquetFile
    group: int
    column: str
    first: int = 0  # the row with which the window begins
    window: pa.Array = field(default_factory=lambda: pa.array([], pa.binary()))
    batches: Iterator[pa.RecordBatch] | None = None

    def cell(self, row: int) -> object:
        """Return a cell. Rows in order are read once; one before the window begins anew."""
        if self.batches is None or row < self.first:
            self.first, self.window = 0, self.window[:0]
            self.batches = self.parquet.iter_batches(
                _WINDOW_ROWS, row_groups=[self.group], columns=[self.column]
            )
        while row >= self.first + len(self.window):
            batch = next(self.batches, None)
            if batch is None:
                return None
            self.first += len(self.window)
            self.window = _leaf(batch.column(0), self.column)
        return self.window[row - self.first].as_py()


@dataclass(frozen=True, slots=True)
class _Batch:
    """One column of a record batch of a mapped Arrow file."""

    values: pa.Array

    def cell(self, row: int) -> object:
        """Return a cell."""
        return self.values[row].as_py() if row < len(self.values) else None


# Two, because a shard's end and the next one's beginning interleave.
@functools.lru_cache(maxsize=2)
def _parquet_group(path: str, size: int, mtime_ns: int, group: int, column: str) -> _Group:
    with _open_unchanged(path, size, mtime_ns) as file:
        own = _Positioned(os.dup(file.fileno()), size)
    return _Group(
        pq.ParquetFile(own, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True),
        group,
        column,
    )


@functools.lru_cache(maxsize=4)
def _arrow_batch(path: str, size: int, mtime_ns: int, batch: int, column: str) -> _Batch:
    batches = _arrow_batches(path, size, mtime_ns)
    if batch >= len(batches):
        raise InputError(f"{path}: has no record batch {batch}")
    name = column.partition(".")[0] if column not in batches[batch].schema.names else column
    values = _leaf(batches[batch].column(name), column)
    values.validate(full=True)  # offsets of a stranger's file may lead anywhere
    return _Batch(values)


@functools.lru_cache(maxsize=2)
def _arrow_batches(path: str, size: int, mtime_ns: int) -> list[pa.RecordBatch]:
    with _open_unchanged(path, size, mtime_ns) as file:
        return open_arrow_batches(file)[1]


def _part(
    form: str, path: str, size: int, mtime_ns: int, part: int, column: str
) -> "_Group | _Batch":
    opened = _parquet_group if form == "parquet" else _arrow_batch
    return opened(path, size, mtime_ns, part, column)


def _leaf(array: pa.Array, column: str) -> pa.Array:
    """Return the field that `column` names within a struct, or the array itself."""
    return pc.struct_field(array, column.rpartition(".")[2]) if _is_struct(array) else array


def _is_struct(array: pa.Array) -> bool:
    return bool(pa.types.is_struct(array.type))


def open_arrow_batches(file: BinaryIO) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Map an Arrow file, a stream or a random-access file; its batches take no memory.

    Raises:
        pa.ArrowException, OSError, ValueError: it is torn, or not Arrow.
    """
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    source = pa.BufferReader(pa.py_buffer(mapped))
    if mapped[: len(_ARROW_FILE)] == _ARROW_FILE:
        reader = pa.ipc.open_file(source)
        return reader.schema, [reader.get_batch(i) for i in range(reader.num_record_batches)]
    stream = pa.ipc.open_stream(source)
    return stream.schema, list(stream)
