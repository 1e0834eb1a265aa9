"""References to local images: a short text that says exactly which bytes are meant.

A reference is a JSON list in ASCII, `[form, path, file size, mtime_ns, …where in it]`, so any
path survives, even one that is not UTF-8. Size and time of the file belong to it: a file that
was changed is another image, and reading by an old reference fails rather than lies.
"""

import functools
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.errors import InputError

# No photograph is larger; a hostile file of terabytes must not take the worker's memory.
MAX_IMAGE_BYTES: Final = 256 * 1024 * 1024

# O_NOFOLLOW and O_NONBLOCK: what was a file when it was listed may be a link or a pipe by now.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def file_ref(path: str, status: os.stat_result) -> str:
    """Refer to a whole file."""
    return _encode("file", path, status.st_size, status.st_mtime_ns)


def tar_ref(path: str, status: os.stat_result, offset: int, length: int) -> str:
    """Refer to `length` bytes at `offset` of an uncompressed tar."""
    return _encode("tar", path, status.st_size, status.st_mtime_ns, offset, length)


def parquet_ref(path: str, status: os.stat_result, group: int, row: int, column: str) -> str:
    """Refer to the cell in `row` of row group `group` of a binary column."""
    return _encode("parquet", path, status.st_size, status.st_mtime_ns, group, row, column)


def _encode(*parts: str | int) -> str:
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=True)


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
    group, row, column = where
    image = _read_column(path, size, mtime_ns, group, column)[row].as_py()
    if not isinstance(image, bytes):
        raise InputError(f"{path}: no image in row {row} of row group {group}")
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
            raise InputError(f"{path}: changed since the input was read; run with the input again")
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


# Rows are asked for in order, so the last row group (100 images as img2dataset writes them)
# serves nearly every call; two, because a shard's end and the next one's beginning interleave.
@functools.lru_cache(maxsize=2)
def _read_column(path: str, size: int, mtime_ns: int, group: int, column: str) -> pa.ChunkedArray:
    with (
        _reported(path),
        _open_unchanged(path, size, mtime_ns) as file,
        pq.ParquetFile(file) as parquet,
    ):
        return parquet.read_row_group(group, columns=[column]).column(0)
