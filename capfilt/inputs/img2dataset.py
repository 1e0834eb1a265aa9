"""Output folders of img2dataset: its `files`, `parquet` and `webdataset` formats.

Each shard has a Parquet file (`00000.parquet`) with one row an address, successful or not; the
images lie in that file itself, in `00000.tar`, or in the folder `00000/`.
"""

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import InputError
from capfilt.inputs.columns import CAPTION, URL, check_kept, maybe_column
from capfilt.inputs.images import describe_file
from capfilt.inputs.parquet import ParquetTable, open_parquet
from capfilt.inputs.paths import labels
from capfilt.inputs.refs import parquet_ref
from capfilt.inputs.sources import Source, kept_line
from capfilt.inputs.spec import FOLLOW_LINKS_OPTION, KIND_OPTION, InputSpec
from capfilt.inputs.tables import ERROR, Wanted, raw_of, same_types
from capfilt.inputs.tars import IMAGE_EXTENSIONS, open_tar

_NEEDED: Final = ("key", "status", "error_message")
_ENCODINGS: Final = ("jpg", "png", "webp")  # its image formats, which name the column
_Located = tuple[str | None, str | None]  # (image_ref, reason); one of them is null
# From the key and the number of a row in the shard (from 0) to its image.
_Find = Callable[[str | None, int], _Located]


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: its table, and the columns that are read of it."""

    table: ParquetTable
    label: str  # unique; names rows without an address
    url: str | None
    caption: str | None
    images: Path | None  # the tar or the folder; None: in the table
    download_missing: bool
    kept: pa.Schema
    follow_links: bool = False

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW in the order of the table."""
        names = [*_NEEDED, *(name for name in (self.url, self.caption) if name)]
        wanted = Wanted(tuple(dict.fromkeys(names)), None, self.kept)
        self.table.stamp.check()
        find, first = self._finder(), 0
        for batch in self.table.read(wanted, block_rows):
            yield self._raw(batch, find, first)
            first += batch.num_rows
        self.table.stamp.check()

    def _raw(self, batch: pa.RecordBatch, find: _Find, first: int) -> pa.RecordBatch:
        """Return RAW rows of `batch`, which begins with row `first` of the shard."""
        texts = dict(zip(reversed(batch.schema.names), reversed(batch.columns), strict=True))
        keys, states, faults = (texts[name].to_pylist() for name in _NEEDED)
        rows = zip(keys, states, faults, itertools.count(first), strict=False)
        located = [self._locate(find, *row) for row in rows]
        addresses = pa.array([f"{self.label}/{key}" for key in keys], pa.string())
        if self.url:
            addresses = pc.coalesce(texts[self.url], addresses)
        nothing = pa.nulls(batch.num_rows, pa.string())
        captions = texts[self.caption] if self.caption else nothing
        refs = pa.array([ref for ref, _ in located], pa.string())
        reasons = pa.array([reason for _, reason in located], pa.string())
        reasons = pc.coalesce(texts[ERROR], reasons)
        kept = batch.columns[batch.num_columns - len(self.kept) :]
        wanted = Wanted(("url", "caption"), None, self.kept)
        plain = pa.RecordBatch.from_arrays(
            [addresses, captions, reasons, *kept], names=wanted.names
        )
        return raw_of(plain, wanted, refs)

    def _locate(
        self, find: _Find, key: str | None, status: str | None, fault: str | None, number: int
    ) -> _Located:
        if status == schema.SUCCESS:
            return find(key, number)
        if self.download_missing and self.url:
            return None, None
        return None, f"img2dataset: {status}: {fault}"

    def _finder(self) -> _Find:
        if self.images is None:
            return _in_table(self.table)
        if self.images.suffix == ".tar":
            known = _in_tar(self.images)
        else:
            known = _in_folder(self.images, self.follow_links)
        missing = (None, f"img2dataset's success, but {self.images.name} has no such image")
        return lambda key, _: known.get(key or "", missing)


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of an output folder."""

    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, files: Sequence[Path], spec: InputSpec) -> "Shards":
        """Open the shards of which `files` are Parquet files or tars.

        Raises:
            InputError: a tar without its Parquet file, or as `open_shard`.
        """
        tables = dict.fromkeys(_table_of(path) for path in files)
        named = zip(tables, labels(list(tables)), strict=True)
        return cls(tuple(open_shard(path, label, spec) for path, label in named))

    @property
    def kept(self) -> pa.Schema:
        """Return the columns that are carried to the export.

        Raises:
            InputError: the shards disagree.
        """
        return same_types(self.shards[0].kept.names, [shard.table for shard in self.shards])

    @property
    def files(self) -> list[Path]:
        """Return the Parquet files, in order."""
        return [shard.table.stamp.path for shard in self.shards]

    def read(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of RAW, shard after shard."""
        for shard in self.shards:
            yield from shard.read(block_rows)


def _table_of(path: Path) -> Path:
    table = path.with_suffix(".parquet")
    if not table.is_file():
        raise InputError(
            f"{path}: {table.name} is not beside it, so img2dataset has not finished this shard; "
            f"run it again, or read the tars alone with {KIND_OPTION} webdataset"
        )
    return table


def open_shard(path: Path, label: str, spec: InputSpec) -> Shard:
    """Open the shard whose Parquet file is `path`.

    Raises:
        InputError: it is not img2dataset's, torn, or without its images.
    """
    table = ParquetTable.open(path)
    for needed in _NEEDED:
        if needed not in table.columns:
            raise InputError(
                f"{path}: no column {needed!r}, so img2dataset did not write it; "
                f"for a list of addresses give {KIND_OPTION} parquet"
            )
    given = spec.caption_col or _its_caption(table)
    caption = maybe_column(CAPTION, given, table.columns, str(path))
    url = maybe_column(URL, spec.url_col, table.columns, str(path))
    check_kept(spec.keep_columns, table.columns, str(path))
    return Shard(
        table=table,
        label=label,
        url=url,
        caption=None if spec.no_captions else caption,
        images=_images_of(path, table),
        download_missing=spec.download_missing,
        kept=table.types_of(spec.keep_columns),
        follow_links=spec.follow_links,
    )


def _its_caption(table: ParquetTable) -> str | None:
    """Return img2dataset's caption column; `txt` is its copy where nulls have become empty."""
    return next((name for name in ("caption", "txt") if name in table.columns), None)


def is_shard(path: Path) -> bool:
    """Say whether `path` is the Parquet file of a shard, by its columns and what lies beside."""
    if path.suffix != ".parquet":
        return False
    columns = set(ParquetTable.open(path).columns)
    beside = path.with_suffix("").is_dir() or path.with_suffix(".tar").is_file()
    return {"key", "status"} <= columns and (beside or not columns.isdisjoint(_ENCODINGS))


def _images_of(path: Path, table: ParquetTable) -> Path | None:
    if image_column(table):
        return None
    for images in (path.with_suffix(".tar"), path.with_suffix("")):
        if images.exists():
            return images
    if path.with_suffix(".tfrecord").exists():
        raise InputError(
            f"{path}: tfrecord is not read; have img2dataset write webdataset, parquet or files"
        )
    raise InputError(
        f"{path}: no images with it: neither {path.stem}.tar nor the folder {path.stem}/ is there, "
        f"and it has none of the columns {', '.join(_ENCODINGS)}; "
        f"to download its addresses again give {KIND_OPTION} parquet"
    )


def image_column(table: ParquetTable) -> str | None:
    """Return the column of encoded images, or None."""
    return next((name for name in _ENCODINGS if name in table.columns), None)


def _in_table(table: ParquetTable) -> _Find:
    """Find an image by its row group and the row in it."""
    path, status = os.path.realpath(table.stamp.path), os.stat(table.stamp.path)
    with open_parquet(table.stamp.path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    column, ends = image_column(table) or "", list(itertools.accumulate(sizes))

    def find(_key: str | None, number: int) -> _Located:
        group = bisect.bisect_right(ends, number)
        row = number - (ends[group] - sizes[group])
        return parquet_ref(path, status, group, row, column), None

    return find


def _in_tar(path: Path) -> dict[str, _Located]:
    """Return the images of one tar by key: an img2dataset shard has 10,000 by default."""
    shard = open_tar(path)
    with closing(shard.file):
        return {sample.key: shard.image_ref(sample) for sample in shard.samples()}


def _in_folder(folder: Path, follow_links: bool) -> dict[str, _Located]:
    """Return the images of one shard's folder by key."""
    found: dict[str, _Located] = {}
    for entry in sorted(os.scandir(os.path.realpath(folder)), key=lambda entry: entry.name):
        key, dot, extension = entry.name.partition(".")
        if dot and extension in IMAGE_EXTENSIONS:
            found.setdefault(key, _entry(entry, follow_links))
    return found


def _entry(entry: "os.DirEntry[str]", follow_links: bool) -> _Located:
    if not entry.is_symlink():
        return describe_file(entry.path, entry.stat(follow_symlinks=False))
    if not follow_links:
        return None, f"the image is a link; if it leads into a store, give {FOLLOW_LINKS_OPTION}"
    try:
        path = os.path.realpath(entry.path)
        return describe_file(path, os.stat(path, follow_symlinks=False))
    except OSError:
        return None, "a link whose target is missing: the store has not fetched this image"


def open_shards(spec: InputSpec, files: Sequence[Path]) -> Source:
    """Open the shards of an output folder of img2dataset."""
    shards = Shards.open(files, spec)
    kept = shards.kept
    return Source(
        f"img2dataset shards{kept_line(kept)}",
        tuple(shards.files),
        shards.read,
        local=not spec.download_missing,
        pictures=True,
        kept=kept,
    )
