"""A folder of images beside a table of their names and captions."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.refs import MAX_IMAGE_BYTES, file_ref
from capfilt.inputs.spec import IMAGES_DIR_OPTION, RAW
from capfilt.inputs.tables import Columns

_Located = tuple[str | None, str | None]  # (image_ref, reason); one of them is null


def find_images_dir(given: str | None, tables: Sequence[Path]) -> str:
    """Return the real path of the folder in which the names of `tables` are looked up.

    Raises:
        InputError: the folder that was given is none, or the tables lie in several.
    """
    if given is not None and not os.path.isdir(given):
        raise InputError(f"{given}: no such folder; correct {IMAGES_DIR_OPTION}")
    roots = {given or _beside(table) for table in tables}
    if len(roots) > 1:
        raise InputError(
            f"{tables[0]}: the captions tables lie in {len(roots)} folders; say where their "
            f"images are with {IMAGES_DIR_OPTION}, or run them one after the other"
        )
    return os.path.realpath(roots.pop())


def _beside(table: Path) -> str:
    folder = table.absolute().parent
    return str(folder / "images" if (folder / "images").is_dir() else folder)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Rows of a captions table, each with its image below `root`."""

    rows: Columns  # reads image name, caption
    root: str  # real path

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW. A name that leads to no image costs that row."""
        for batch in self.rows.read(block_rows):
            names, captions, errors = batch.columns
            found = [
                (None, error) if error else locate(self.root, name)
                for name, error in zip(names.to_pylist(), errors.to_pylist(), strict=True)
            ]
            refs = pa.array([ref for ref, _ in found], pa.string())
            reasons = pa.array([reason for _, reason in found], pa.string())
            yield pa.RecordBatch.from_arrays([names, captions, refs, reasons], schema=RAW)


def locate(root: str, name: str | None) -> _Located:
    """Return the reference of the image `name` below the real path `root`, or why there is none.

    The name is hostile: what it leads to must lie below `root` after all links are followed.
    """
    if not name:
        return None, "no image name"
    try:
        path = os.path.realpath(os.path.join(root, name))
        if os.path.commonpath([root, path]) != root:
            return None, "the image name leads out of the images folder"
        status = os.stat(path, follow_symlinks=False)
    except ValueError:  # a null byte
        return None, "the image name is not a path"
    except OSError as error:
        return None, f"image file: {error.strerror}"
    return describe_file(path, status)


def describe_file(path: str, status: os.stat_result) -> _Located:
    """Return the reference of an image file, or why it is not one."""
    if not stat.S_ISREG(status.st_mode):
        return None, "the image name leads to no regular file"
    if status.st_size > MAX_IMAGE_BYTES:
        return None, f"image file of {status.st_size} bytes, more than {MAX_IMAGE_BYTES}"
    return file_ref(path, status), None
