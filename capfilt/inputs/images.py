"""A folder of images beside a table of their names and captions."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.columns import IMAGE
from capfilt.inputs.paths import open_table
from capfilt.inputs.refs import MAX_IMAGE_BYTES, file_ref
from capfilt.inputs.sources import Source, kept_line, table_columns
from capfilt.inputs.spec import FOLLOW_LINKS_OPTION, IMAGES_DIR_OPTION, InputSpec
from capfilt.inputs.tables import Columns, Table, raw_of

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
    """Return the folder of a table's images: `images/` beside it, else its own.

    The Hub's `metadata` tables name images from their own folder.
    """
    folder = table.absolute().parent
    beside = (folder / "images").is_dir() and not is_metadata(table)
    return str(folder / "images" if beside else folder)


def is_metadata(table: Path) -> bool:
    """Say whether a table is called as the Hub's imagefolder calls the one of a folder."""
    return table.name in {"metadata.jsonl", "metadata.csv", "metadata.parquet"}


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Rows of a captions table, each with its image below `root`."""

    rows: Columns  # reads image name, caption
    root: str  # real path
    follow_links: bool = False

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW. A name that leads to no image costs that row."""
        for batch in self.rows.read(block_rows):
            names, errors = batch.column(0), batch.column(len(self.rows.wanted.texts))
            found = [
                (None, error) if error else locate(self.root, name, self.follow_links)
                for name, error in zip(names.to_pylist(), errors.to_pylist(), strict=True)
            ]
            refs = pa.array([ref for ref, _ in found], pa.string())
            reasons = pa.array([reason for _, reason in found], pa.string())
            yield raw_of(batch, self.rows.wanted, refs, reasons)


def locate(root: str, name: str | None, follow_links: bool = False) -> _Located:
    """Return the reference of the image `name` below the real path `root`, or why there is none.

    The name is hostile: what it leads to must lie below `root` after all links are followed;
    with `follow_links` links may lead elsewhere, but not the name itself. Where no file has that
    name, backslashes in it separate folders, as Windows writes them.
    """
    if not name:
        return None, "no image name"
    found = _locate(root, name, follow_links)
    if found[0] is None and "\\" in name:
        return _locate(root, name.replace("\\", "/"), follow_links)
    return found


def _locate(root: str, name: str, follow_links: bool) -> _Located:
    try:
        path = os.path.realpath(os.path.join(root, name))
        outside = os.path.commonpath([root, path]) != root
        if outside and (fault := _fault_outside(root, name, follow_links)):
            return None, fault
        status = os.stat(path, follow_symlinks=False)
    except ValueError:  # a null byte
        return None, "the image name is not a path"
    except OSError as error:
        if os.path.islink(os.path.join(root, name)) and not os.path.lexists(path):
            return None, "a link whose target is missing: the store has not fetched this image"
        return None, f"image file: {error.strerror}"
    return describe_file(path, status)


def _fault_outside(root: str, name: str, follow_links: bool) -> str | None:
    """Say why an image outside of `root` is not taken; None: a link leads there, and may."""
    absolute = os.path.isabs(name) and os.path.commonpath([root, os.path.normpath(name)]) != root
    if absolute or ".." in name.split("/"):
        return f"the image name leads out of the images folder ({IMAGES_DIR_OPTION})"
    if follow_links:
        return None
    return (
        "a link leads out of the images folder; if it is a store's (the Hub's cache, DVC, "
        f"git-annex), give {FOLLOW_LINKS_OPTION}"
    )


def describe_file(path: str, status: os.stat_result) -> _Located:
    """Return the reference of an image file, or why it is not one."""
    if not stat.S_ISREG(status.st_mode):
        return None, "the image name leads to no regular file"
    if status.st_size > MAX_IMAGE_BYTES:
        return None, f"image file of {status.st_size} bytes, more than {MAX_IMAGE_BYTES}"
    return file_ref(path, status), None


def open_folder(spec: InputSpec, files: Sequence[Path]) -> Source:
    """Open captions tables and the folder of their images."""
    return open_captions(spec, [open_table(path, spec.encoding) for path in files])


def open_captions(spec: InputSpec, tables: Sequence[Table]) -> Source:
    """Open the folder of the images that tables name."""
    files = [table.stamp.path for table in tables]
    columns = table_columns(spec, tables, (IMAGE, spec.image_col))
    root = find_images_dir(spec.images_dir, files)
    stream = ImageFolder(columns, root, spec.follow_links).read
    texts = "" if spec.no_captions else " with captions"
    what = f"images in {root}{texts}{kept_line(columns.wanted.kept)}"
    kept = columns.wanted.kept
    return Source(what, tuple(files), stream, True, True, kept)
