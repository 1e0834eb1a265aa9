"""Which row groups a stream has, and how many samples lie in each: all that is kept in memory.

Footers are read, and, where samples are not simply rows, the columns `origin` and `key` of one row
group after another.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capfilt.errors import DamageError, InputError
from capfilt.export.place import MANIFEST, is_begun, is_data, load_manifest
from capfilt.fingerprint import fingerprint
from capfilt.train.data.mixture import Stream

Counts = npt.NDArray[np.int64]
_OPTIONAL: Final = ("key", "origin", "hard_negative")
_TAIL: Final = 1 << 16  # bytes; a Parquet footer with sizes and extremes of every column
_OF: Final = re.compile(r"-\d+-of-(\d+)\.parquet$")


@dataclass(frozen=True, slots=True)
class Group:
    """One row group: its file, number and first row therein, and what of it is taken.

    `taken` rows have an origin that the stream takes. The first `lead` of them belong to the last
    image of an earlier group, so it has `samples` of its own.
    """

    file: int
    number: int
    first_row: int
    taken: int
    lead: int
    samples: int


@dataclass(frozen=True, slots=True)
class StreamIndex:
    """A stream's files and row groups. `digest` is equal for equal data, wherever they lie."""

    stream: Stream
    files: tuple[Path, ...]
    keyed: bool  # there is a column `key`
    told: bool  # there is a column `origin`
    refuted: bool  # there is a column `hard_negative`
    groups: tuple[Group, ...]
    digest: str

    @property
    def samples(self) -> Counts:
        """Samples of every group, (G,)."""
        return np.array([group.samples for group in self.groups], np.int64)

    def read(self, group: Group, columns: list[str]) -> pa.Table:
        """Return the taken rows of a group, with the columns and their `row` in the file.

        Raises:
            DamageError: the file cannot be read any more.
        """
        path = self.files[group.file]
        filtered = self.told and bool(self.stream.origins)
        wanted = list(dict.fromkeys([*columns, *(["origin"] if filtered else [])]))
        try:
            with opened(path) as parquet:
                table = parquet.read_row_group(group.number, wanted, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DamageError(
                f"{path}, row group {group.number}: cannot be read ({error}); restore the file "
                "(`capfilt verify` checks an export) and go on from the last checkpoint"
            ) from error
        rows = pa.array(np.arange(table.num_rows) + group.first_row)
        table = table.append_column("row", rows)
        return table.filter(self._takes(table["origin"])) if filtered else table

    def _takes(self, origins: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.is_in(origins, value_set=pa.array(self.stream.origins))


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Yield the file; its pages are checked against their checksums, where it has any."""
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        yield parquet


def run_starts(keys: pa.ChunkedArray) -> Counts:
    """Return where each run of equal keys begins; a row without a key is a run of its own."""
    if not len(keys):
        return np.zeros(0, np.int64)
    changes = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1)).fill_null(True)
    return np.concatenate([[0], 1 + np.flatnonzero(changes.to_numpy())]).astype(np.int64)


def open_stream(stream: Stream) -> StreamIndex:
    """Find and check a stream's files, and count the samples of every row group.

    Raises:
        InputError: no folder, files, column or samples; the message says which.
        DamageError: the files are not those that the manifest lists.
    """
    files, listed, digest = _files_of(stream)
    (keyed, told, refuted), sizes = _footers(files, listed)
    _check(stream, files[0], keyed, told)
    shape = StreamIndex(stream, files, keyed, told, refuted, _unread(sizes), digest)
    groups = _counted(shape)
    if not sum(group.samples for group in groups):
        rows = sum(group.taken for group in shape.groups)
        raise InputError(
            f"{stream.folder}: none of its {rows} rows is to be trained on"
            + (f"; no text is of the origins {', '.join(stream.origins)}" if rows else "")
        )
    content = [
        digest or _contents(files),
        *(f"{group.file} {group.taken} {group.samples}" for group in groups),
    ]
    if refuted:
        content.append("hard_negative")
    return StreamIndex(stream, files, keyed, told, refuted, groups, fingerprint(content))


def _files_of(stream: Stream) -> tuple[tuple[Path, ...], tuple[int, ...] | None, str]:
    """Return the files, the rows that a manifest gives them, and its digest ("" without one)."""
    if not stream.folder.is_dir():
        raise InputError(f"{stream.folder} is no folder; give that of an export")
    if (stream.folder / MANIFEST).exists():
        return _listed(stream.folder)
    if is_begun(stream.folder):
        raise InputError(
            f"{stream.folder} holds an export that is not finished; give the command that wrote "
            "it again"
        )
    files = tuple(sorted(stream.folder.glob(stream.pattern)))
    if not files:
        there = sorted(str(p.relative_to(stream.folder)) for p in stream.folder.rglob("*.parquet"))
        raise InputError(
            f"{stream.folder} has no file {stream.pattern}"
            + (f", but {_several(there)}; name or link its files like that" if there else "")
        )
    for match in filter(None, (_OF.search(path.name) for path in files)):
        if int(match[1]) != len(files):
            raise InputError(
                f"{stream.folder} has {len(files)} of {int(match[1])} files; finish the export, "
                "or fetch the missing ones"
            )
    return files, None, ""


def _contents(files: tuple[Path, ...]) -> str:
    """Return a digest of Parquet files by size and footer: cheap, and any rewriting changes it."""
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            stream.seek(max(0, size - _TAIL))
            found.update(f"{file.name} {size}\n".encode() + stream.read())
    return found.hexdigest()[:32]


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _listed(folder: Path) -> tuple[tuple[Path, ...], tuple[int, ...], str]:
    manifest = load_manifest(folder)
    try:
        data = [each for each in manifest["files"] if is_data(each["path"])]
        entries = [each for each in data if each["path"].endswith(".parquet")]
        rows = tuple(int(each["rows"]) for each in entries)
        digest = str(manifest["digest"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamageError(
            f"{folder / MANIFEST} is no manifest of an export ({type(error).__name__}: {error}); "
            "`capfilt verify` tells more"
        ) from error
    if not entries:
        raise InputError(
            f"{folder} is an export without Parquet files, and training reads no others; "
            "`capfilt export --to` another folder, in the format parquet, writes one that it reads"
        )
    return tuple(folder / each["path"] for each in entries), rows, digest


def _footers(
    files: tuple[Path, ...], listed: tuple[int, ...] | None
) -> tuple[tuple[bool, bool, bool], list[list[int]]]:
    """Return which of `_OPTIONAL` are there, and the rows of every row group of every file."""
    sizes: list[list[int]] = []
    has: set[tuple[bool, bool, bool]] = set()
    for number, path in enumerate(files):
        try:
            with opened(path) as parquet:
                schema, footer = parquet.schema_arrow, parquet.metadata
        except (pa.ArrowException, OSError) as error:
            raise DamageError(
                f"{path} is no readable Parquet ({error}); restore it or take it out of the folder"
            ) from error
        has.add(_columns(path, schema))
        if len(has) > 1:
            raise InputError(f"{path} has others of {_OPTIONAL} than {files[0]}")
        if listed is not None and footer.num_rows != listed[number]:
            raise DamageError(
                f"{path} has {footer.num_rows} rows, not the {listed[number]} of the manifest; "
                "`capfilt verify` tells more"
            )
        sizes.append([footer.row_group(g).num_rows for g in range(footer.num_row_groups)])
    (columns,) = has
    return columns, sizes


def _columns(path: Path, schema: pa.Schema) -> tuple[bool, bool, bool]:
    """Check the columns of a file; says which of `_OPTIONAL` it has."""
    named = set(schema.names)
    missing = [name for name in ("image", "text") if name not in named]
    if missing:
        raise InputError(
            f"{path} has no column {' and '.join(missing)}; it has {', '.join(schema.names)}"
        )
    image = schema.field("image").type
    data = image.field("bytes").type if _is_image(image) else image
    if not (_is_image(image) and (pa.types.is_binary(data) or pa.types.is_large_binary(data))):
        raise InputError(
            f"{path}, column image: is {image}; it must be a struct with the encoded image in "
            "`bytes`, as datasets.Image writes it"
        )
    for name in ("text", *_OPTIONAL):
        kind = schema.field(name).type if name in named else pa.string()
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{path}, column {name}: is {kind}; it must be a string")
    key, origin, negative = (name in named for name in _OPTIONAL)
    return key, origin, negative


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _check(stream: Stream, path: Path, keyed: bool, told: bool) -> None:
    if stream.texts == "one" and not keyed:
        raise InputError(
            f"{path} has no column key, which tells the texts of an image together; add it, or "
            "take texts='all'"
        )
    if stream.origins and not told and stream.default_origin not in stream.origins:
        raise InputError(
            f"{path} has no column origin, so all its texts are {stream.default_origin}; give "
            f"default_origin, or take other origins than {', '.join(stream.origins)}"
        )


def _unread(sizes: list[list[int]]) -> tuple[Group, ...]:
    """Return every row group as if all of its rows were samples."""
    groups: list[Group] = []
    for file, rows in enumerate(sizes):
        first = 0
        for number, count in enumerate(rows):
            groups.append(Group(file, number, first, count, 0, count))
            first += count
    return tuple(groups)


def _counted(index: StreamIndex) -> tuple[Group, ...]:
    filtered = bool(index.stream.origins) and index.told
    by_image = index.stream.texts == "one"
    if not (filtered or by_image):
        return index.groups
    groups: list[Group] = []
    last: str | None = None  # the key of the row before
    for group in index.groups:
        table = index.read(group, ["key"] if by_image else [])
        lead, samples = 0, table.num_rows
        if by_image and table.num_rows:
            starts = run_starts(table["key"])
            if last is not None and table["key"][0].as_py() == last:
                lead = int(starts[1]) if len(starts) > 1 else table.num_rows
            samples = len(starts) - bool(lead)
            last = table["key"][table.num_rows - 1].as_py()
        taken = table.num_rows
        groups.append(Group(group.file, group.number, group.first_row, taken, lead, samples))
    return tuple(groups)
