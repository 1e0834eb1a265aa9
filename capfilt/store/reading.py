"""Reading what lies at a place, where a local path and a bucket want different ways."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.store.location import Location

_COPIED: Final = 8 << 20  # bytes at a time


@contextmanager
def arrow_file(path: Location) -> Iterator[pa.NativeFile]:
    """Open a file for Arrow, which reads here and there of it.

    Raises:
        OSError: it is missing, or cannot be read.
        StorageError: the bucket does not answer.
    """
    if isinstance(path, Path):
        with pa.OSFile(os.fspath(path), "rb") as file:
            yield file
    else:
        with pa.PythonFile(ranged(path), mode="r") as file:
            yield file


def parquet_file(opened: pa.NativeFile) -> pq.ParquetFile:
    """Open Parquet with the checksums of its pages checked.

    Of a bucket the columns of a row group that lie side by side come in one request.
    """
    remote = isinstance(opened, pa.PythonFile)
    return pq.ParquetFile(opened, page_checksum_verification=True, pre_buffer=remote)


def ranged(path: Location) -> BinaryIO:
    """Open a file of which little is read, here and there: each read is a request in a bucket."""
    from capfilt.store.bucket import BucketPath

    return cast(BinaryIO, path.ranged()) if isinstance(path, BucketPath) else path.open("rb")


def mapped(path: Location) -> npt.NDArray[np.uint8]:
    """Return the bytes of a file as an array that lies on a disk, not in memory.

    What a bucket has is copied to a temporary file without a name.

    Raises:
        OSError: it is missing, or cannot be read.
        ValueError: it is empty.
    """
    if isinstance(path, Path):
        return np.memmap(path, np.uint8, "r")
    with tempfile.TemporaryFile() as copy, path.open("rb") as stream:
        shutil.copyfileobj(stream, copy, _COPIED)
        copy.flush()
        return np.memmap(copy, np.uint8, "r")  # stays when the file is closed


def names_in(folder: Location) -> list[str]:
    """Return the names directly in a folder, in no order; none where there is no folder."""
    if isinstance(folder, Path):
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []
    return [path.name for path in folder.iterdir()]


def names_below(folder: Location) -> list[str]:
    """Return the names, with slashes, of all files below a folder."""
    if isinstance(folder, Path):
        files = (path for path in folder.rglob("*") if not path.is_dir())
        return [path.relative_to(folder).as_posix() for path in files]
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def size_below(place: Location) -> int:
    """Return the bytes of a file, or of all below a folder."""
    from capfilt.store.bucket import BucketPath

    if isinstance(place, BucketPath):
        listed = sum(size for _, size in place.objects.sizes(place.key))
        return listed or (place.stat().st_size if place.exists() else 0)
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)
