"""Cutting an input into shards that are named by what they hold.

A shard's name is `<first key>-<rows>-<digest of the rows>`, so a name alone tells whether the
next rows of an input are that shard: cutting an input again, or an input to which rows were
appended, finds the old shards and cuts new ones only from rows that are in none. Rows keep the
input's order whichever way they are cut.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from capfilt import schema
from capfilt.errors import DamageError, InputError
from capfilt.fingerprint import fingerprint
from capfilt.inputs import Input, Piece
from capfilt.inputs.spec import KEPT
from capfilt.ledger.indexing import (
    INDEX_WIDTH,
    NAMES_WIDTH,
    PieceFiles,
    Unit,
    index_name,
    index_piece,
    name_unit,
    named_blocks,
    read_index,
    read_names,
)
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.memory import recall, remember
from capfilt.ledger.naming import DIGEST
from capfilt.ledger.records import Bytes
from capfilt.ledger.repeats import find_repeats
from capfilt.ledger.sealed import sealed, unsealed
from capfilt.plain import from_plain
from capfilt.process.pool import Pool
from capfilt.process.rotation import from_own_place
from capfilt.process.temporary import private_folder
from capfilt.progress import Advance, unheard
from capfilt.store.location import Location

STAGE: Final = "source-1"  # the number is raised when keys or columns change
KEPT_STAGE: Final = "columns"  # of the columns that are carried to the export
_MANIFESTS: Final = "inputs"
_SEPARATOR: Final = b"\x00"
_FEW_ROWS: Final = 200_000  # are cut by this process: others take a second to start
_WRITERS: Final = 4  # threads, which wait for the disk
_TOTALS: Final = ("duplicate_urls", "invalid_urls", "empty_captions")


@dataclass(frozen=True, slots=True)
class SourceManifest:
    """One input as it was cut: its shards in row order, and what the input itself said."""

    described: str
    shards: tuple[str, ...]
    rows: int
    duplicate_urls: int
    invalid_urls: int
    empty_captions: int

    @property
    def id(self) -> str:
        """Identify the input by its rows in order; the way it was stored does not matter."""
        return fingerprint(self.shards)


def cut(
    data: Input,
    ledger: Ledger,
    shard_rows: int,
    told: Advance = unheard,
    processes: int = 1,
) -> SourceManifest:
    """Cut `data` into shards of `shard_rows` rows (the last may be shorter) and publish them.

    Rows with an address that an earlier row has are kept with the status `duplicate_url`, but
    where they follow it with another text, with `another_text`; rows without a usable address with
    `invalid_url`. `told` hears of rows as they are cut. What was found out of a piece of the input
    is kept in the run folder, so that a longer list is read where it is new.

    Raises:
        InputError: the input has no rows, or `shard_rows` is not positive.
    """
    if (known := _recalled(data, ledger, shard_rows)) is not None:
        told(known.rows)
        return known
    count = processes if (data.row_count_hint or 0) > _FEW_ROWS else 1
    kept = kept_stage(data)
    with private_folder() as scratch, Pool(count) as pool:
        files = PieceFiles(ledger.root if data.pieces else scratch)
        found = _found_out(data, ledger, shard_rows, files, scratch, pool)
        _publish(found, _Publishing(ledger, files, kept, data.kept), pool, told)
    save_manifest(ledger, found.manifest)
    remember(ledger, data, shard_rows, found.manifest.id, kept)
    return found.manifest


def _recalled(data: Input, ledger: Ledger, shard_rows: int) -> SourceManifest | None:
    """Return what the same files were cut into before, where all of it is there still."""
    cut = recall(ledger, data.identity, shard_rows)
    if cut is None:
        return None
    try:
        manifest = load_manifest(ledger, cut.manifest)
    except DamageError:
        return None
    shards = set(manifest.shards)
    stages = filter(None, (STAGE, cut.kept_stage))
    return manifest if all(shards <= ledger.shards(stage) for stage in stages) else None


def kept_stage(data: Input) -> str | None:
    """Return the name of the stage of an input's carried columns: a digest of types and values.

    None where none are carried. It stands beside the source stage, with files for the same shards,
    and reads the input once; the values are in the name since they are no part of a shard's.
    """
    if data.kept is None:
        return None
    if data.remembered is not None:
        return data.remembered.kept_stage
    digest = hashlib.blake2b(digest_size=8)
    digest.update(str([(field.name, str(field.type)) for field in data.kept]).encode("utf-8"))
    for block in data.rows():
        for value in block.column(KEPT).to_pylist():
            digest.update(repr(list(value.values())).encode("utf-8", "surrogatepass") + _SEPARATOR)
    return f"{KEPT_STAGE}-{digest.hexdigest()}"


def peek(data: Input, ledger: Ledger, shard_rows: int) -> SourceManifest:
    """Return what `cut` would, without writing anything."""
    if (known := _recalled(data, ledger, shard_rows)) is not None:
        return known
    with private_folder() as scratch, Pool(1) as pool:
        files = PieceFiles(scratch, ledger.root)
        return _found_out(data, ledger, shard_rows, files, scratch, pool).manifest


def check_shard_rows(shard_rows: int) -> None:
    """Refuse shards without a row.

    Raises:
        InputError: `shard_rows` is not positive.
    """
    if shard_rows < 1:
        raise InputError(f"shards of {shard_rows} rows are not possible; give at least 1")


def rows_of(shards: Iterable[str], ledger: Ledger) -> int:
    """Return how many rows these shards have; the name of an input's shard says it."""
    total = 0
    for shard in shards:
        named = "~" not in shard  # an attempt's shard is named after the shard that it repeats
        total += int(shard.split("-")[1]) if named else ledger.receipt(STAGE, shard).rows
    return total


def save_manifest(ledger: Ledger, manifest: SourceManifest) -> None:
    """Publish `inputs/<id>.json`; a second writer of the same input changes nothing."""
    text = sealed(dataclasses.asdict(manifest))
    ledger.publisher.publish_bytes(f"{_MANIFESTS}/{manifest.id}.json", text.encode("utf-8"))


def load_manifest(ledger: Ledger, manifest_id: str) -> SourceManifest:
    """Read `inputs/<id>.json`.

    Raises:
        DamageError: it is missing or unreadable.
    """
    return read_manifest(ledger.root / _MANIFESTS / f"{manifest_id}.json")


def read_manifest(path: Location) -> SourceManifest:
    """Read the file of an input; its name is what its shards come to.

    Raises:
        DamageError: it is missing or unreadable.
    """
    try:
        manifest = from_plain(SourceManifest, unsealed(path.read_text(encoding="utf-8")))
        if manifest.id != path.stem:
            raise ValueError("its shards are not those of its name")
        return manifest
    except (OSError, ValueError, DamageError) as error:
        reason = " ".join(str(error).split())
        raise DamageError(
            f"{path} cannot be read ({reason}); `capfilt run` with that input makes it again"
        ) from error


def manifest_files(ledger: Ledger) -> list[Location]:
    """Return the files of all inputs of a run folder, sorted."""
    return sorted((ledger.root / _MANIFESTS).glob("*.json"))


# --- finding out which shards there are


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard, and with which row of the input it begins."""

    name: str
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Found:
    """An input as it is to be cut: its units with the row that each begins with, its shards."""

    manifest: SourceManifest
    units: tuple[Unit, ...]
    starts: tuple[int, ...]
    shards: tuple[_Shard, ...]


def _found_out(
    data: Input, ledger: Ledger, shard_rows: int, files: PieceFiles, scratch: Path, pool: Pool
) -> _Found:
    """Find out how an input is cut; what is known of its pieces is not read again."""
    check_shard_rows(shard_rows)
    pieces = data.pieces or (Piece(data.rows, ""),)
    new = [piece for piece in pieces if not files.has(index_name(piece), INDEX_WIDTH)]
    for _ in pool.each(functools.partial(index_piece, files), from_own_place(new)):
        pass
    units = _units(pieces, files, scratch)
    names = [unit.name for unit in units]
    tasks = [
        (unit, name)
        for unit, name in zip(units, names, strict=True)
        if not files.has(name, NAMES_WIDTH)
    ]
    for _ in pool.each(functools.partial(_name_unit, files), from_own_place(tasks)):
        pass
    named = [read_names(files, name) for name in names]
    rows = _Rows(tuple(each.values for each in named))
    shards = tuple(_sliced(rows, _Known.of(ledger.shards(STAGE)), shard_rows))
    if not shards:
        raise InputError(f"{data.describe()} has no rows; give an input with at least one")
    totals = {total: sum(each.said[total] for each in named) for total in _TOTALS}
    manifest = SourceManifest(
        data.describe(), tuple(shard.name for shard in shards), rows.starts[-1], **totals
    )
    return _Found(manifest, tuple(units), rows.starts[:-1], shards)


def _name_unit(files: PieceFiles, task: tuple[Unit, str]) -> None:
    name_unit(files, *task)


def _units(pieces: Sequence[Piece], files: PieceFiles, scratch: Path) -> list[Unit]:
    """Put pieces together whose ends are texts of one image."""
    indexes = [read_index(files, piece) for piece in pieces]
    addresses = find_repeats([i.values[:, :DIGEST] for i in indexes], scratch / "addresses")
    names = find_repeats([i.values[:, DIGEST : 2 * DIGEST] for i in indexes], scratch / "names")
    groups: list[list[int]] = []
    last = None
    for place, index in enumerate(indexes):
        if groups and (not len(index) or index.said["first"] == last):
            groups[-1].append(place)
        else:
            groups.append([place])
        last = index.said["last"] or last
    return [
        Unit(tuple(pieces[place] for place in group), tuple(group), addresses, names)
        for group in groups
    ]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The names of all rows of an input, as one array that lies in several files."""

    parts: tuple[Bytes, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """The row that each part begins with, and how many there are."""
        return tuple(np.cumsum([0, *map(len, self.parts)]).tolist())

    def between(self, start: int, stop: int) -> Bytes:
        """Return the names of these rows."""
        starts = self.starts
        first = int(np.searchsorted(starts, start, "right")) - 1
        found = []
        while start < stop:
            end = min(stop, starts[first + 1])
            found.append(self.parts[first][start - starts[first] : end - starts[first]])
            start, first = end, first + 1
        return np.concatenate(found)


def _shard_of(rows: _Rows, start: int, count: int) -> _Shard:
    """Name a shard `<first 8 digits of the first key>-<rows>-<16 digits of all rows>`."""
    names = rows.between(start, start + count)
    digest = hashlib.blake2b(names[:, :DIGEST].tobytes(), digest_size=8).hexdigest()
    return _Shard(f"{names[0, DIGEST:].tobytes().hex()}-{count}-{digest}", start, count)


@dataclass(frozen=True, slots=True)
class _Known:
    """The shards of a run, by the first key of each: (rows, name), longest first."""

    names: frozenset[str]
    starts: dict[str, list[int]]

    @classmethod
    def of(cls, names: set[str]) -> "_Known":
        starts: dict[str, set[int]] = {}
        for name in names:
            first, _, rest = name.partition("-")
            rows = rest.partition("-")[0]
            if rows.isdigit() and "~" not in name:  # an attempt's shard begins no input
                starts.setdefault(first, set()).add(int(rows))
        longest_first = {first: sorted(rows, reverse=True) for first, rows in starts.items()}
        return cls(frozenset(names), longest_first)

    def places(self, rows: _Rows) -> Iterator[int]:
        """Yield the rows, rising, that a known shard may begin with."""
        firsts = np.frombuffer(bytes.fromhex("".join(self.starts)), "<u4")
        for part, start in zip(rows.parts, rows.starts, strict=False):
            prefixes = np.ascontiguousarray(part[:, DIGEST:]).view("<u4").ravel()
            yield from (start + np.flatnonzero(np.isin(prefixes, firsts))).tolist()

    def at(self, rows: _Rows, place: int) -> _Shard | None:
        """Return the known shard that begins with a row, or None."""
        prefix = rows.between(place, place + 1)[0, DIGEST:].tobytes().hex()
        for count in self.starts.get(prefix, ()):
            if place + count <= rows.starts[-1]:
                shard = _shard_of(rows, place, count)
                if shard.name in self.names:
                    return shard
        return None


def _sliced(rows: _Rows, known: _Known, shard_rows: int) -> Iterator[_Shard]:
    """Cut rows: where a known shard begins, take it; elsewhere `shard_rows` at the most."""
    done = 0
    for place in known.places(rows) if known.names else ():
        if place < done or (shard := known.at(rows, place)) is None:
            continue
        yield from _fresh(rows, done, place, shard_rows)
        yield shard
        done = place + shard.rows
    yield from _fresh(rows, done, rows.starts[-1], shard_rows)


def _fresh(rows: _Rows, start: int, stop: int, shard_rows: int) -> Iterator[_Shard]:
    for first in range(start, stop, shard_rows):
        yield _shard_of(rows, first, min(shard_rows, stop - first))


# --- writing shards


@dataclass(frozen=True, slots=True)
class _Part:
    """Shards that begin in one unit, and the units that have their rows; `start` is the first."""

    units: tuple[Unit, ...]
    start: int
    shards: tuple[_Shard, ...]


@dataclass(frozen=True, slots=True)
class _Publishing:
    """Writes the shards of a part."""

    ledger: Ledger
    files: PieceFiles
    kept_stage: str | None
    kept: pa.Schema | None

    def __call__(self, part: _Part) -> int:
        """Write them; returns how many rows they have."""
        return sum(self.written(part))

    def written(self, part: _Part) -> Iterator[int]:
        """Write shards, several at a time; yields the rows of each."""
        pending: list[Future[int]] = []
        with ThreadPoolExecutor(_WRITERS) as writers:
            for shard, source, kept in _tables(self, part):
                pending.append(writers.submit(self._write, shard, source, kept))
                if len(pending) > _WRITERS:
                    yield pending.pop(0).result()
            for future in pending:
                yield future.result()

    def _write(self, shard: _Shard, source: pa.Table, kept: pa.Table | None) -> int:
        self.ledger.commit(Receipt(STAGE, shard.name, shard.rows), source)
        if self.kept_stage and kept is not None:
            self.ledger.commit(Receipt(self.kept_stage, shard.name, shard.rows), kept)
        return shard.rows


def _tables(how: _Publishing, part: _Part) -> Iterator[tuple[_Shard, pa.Table, pa.Table | None]]:
    """Yield the shards of a part with their rows, and with the columns that are carried."""
    blocks = (block for unit in part.units for block in named_blocks(how.files, unit))
    held: list[pa.RecordBatch] = []
    start = stop = part.start
    for shard in part.shards:
        while stop < shard.start + shard.rows:
            block, named = next(blocks)
            rows = named.rows
            held.append(rows if how.kept is None else rows.append_column(KEPT, block[KEPT]))
            stop += rows.num_rows
        while start + held[0].num_rows <= shard.start:
            start += held.pop(0).num_rows
        table = pa.Table.from_batches(held).slice(shard.start - start, shard.rows).combine_chunks()
        yield shard, table.select(schema.SOURCE.names), _carried(table, how.kept)


def _carried(table: pa.Table, kept: pa.Schema | None) -> pa.Table | None:
    if kept is None:
        return None
    return pa.Table.from_arrays(table[KEPT].combine_chunks().flatten(), schema=kept)


def _publish(found: _Found, how: _Publishing, pool: Pool, told: Advance) -> None:
    """Write the shards that are missing."""
    there = how.ledger.shards(STAGE)
    if how.kept_stage:
        there &= how.ledger.shards(how.kept_stage)
    missing = [shard for shard in found.shards if shard.name not in there]
    told(found.manifest.rows - sum(shard.rows for shard in missing))
    parts = from_own_place(_parts(found, missing))
    if len(parts) == 1:
        for rows in how.written(parts[0]):
            told(rows)
        return
    for rows in pool.each(how, parts):
        told(rows)


def _parts(found: _Found, shards: Sequence[_Shard]) -> list[_Part]:
    """Group shards by the unit that they begin in."""
    groups: dict[int, list[_Shard]] = {}
    for shard in shards:
        unit = int(np.searchsorted(found.starts, shard.start, "right")) - 1
        groups.setdefault(unit, []).append(shard)
    parts = []
    for unit, group in groups.items():
        end = group[-1].start + group[-1].rows
        last = int(np.searchsorted(found.starts, end, "left"))
        parts.append(_Part(found.units[unit:last], found.starts[unit], tuple(group)))
    return parts
