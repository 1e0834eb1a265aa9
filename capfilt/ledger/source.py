"""Cutting an input into shards that are named by what they hold.

A shard's name is `<first key>-<rows>-<digest of the rows>`, so a name alone tells whether the
next rows of an input are that shard: cutting an input again, or an input to which rows were
appended, finds the old shards and cuts new ones only from rows that are in none. Rows keep the
input's order whichever way they are cut.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capfilt import schema
from capfilt.errors import DamageError, InputError
from capfilt.fingerprint import fingerprint
from capfilt.inputs import RAW, Input
from capfilt.inputs import urls as addresses
from capfilt.inputs.spec import KEPT
from capfilt.ledger.ledger import Ledger, Receipt
from capfilt.ledger.memory import recall, remember
from capfilt.ledger.sealed import sealed, unsealed
from capfilt.plain import from_plain
from capfilt.progress import Advance, unheard

STAGE: Final = "source-1"  # the number is raised when keys or columns change
KEPT_STAGE: Final = "columns"  # of the columns that are carried to the export
_MANIFESTS: Final = "inputs"
_SEPARATOR: Final = b"\x00"
# From url, caption and image_ref of a row.
_TextOf = Callable[[str | None, str | None, str | None], str]
_AGAIN: Final = (schema.DUPLICATE_URL, "an earlier row has the same address")


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


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    url: str | None
    caption: str | None
    image_ref: str | None
    source_status: str
    source_error: str | None
    attempt: int = 0
    kept: dict[str, Any] | None = None  # JSON: the columns that are carried, no part of its name

    def digest(self) -> bytes:
        status, error = self.source_status, self.source_error
        if status == schema.ANOTHER_TEXT:  # as if alone, so that names are those of before
            local = self.image_ref is not None
            status, error = (schema.SOURCE_OK, None) if local else _AGAIN
        parts = (self.key, self.url, self.caption, self.image_ref, status, error)
        joined = _SEPARATOR.join(map(_bytes, parts))
        return hashlib.blake2b(joined, digest_size=16).digest()


def cut(data: Input, ledger: Ledger, shard_rows: int, told: Advance = unheard) -> SourceManifest:
    """Cut `data` into shards of `shard_rows` rows (the last may be shorter) and publish them.

    Rows with an address that an earlier row has are kept with the status `duplicate_url`, but
    where they follow it with another text, with `another_text`; rows without a usable address with
    `invalid_url`. `told` hears of rows as they are cut.

    Raises:
        InputError: the input has no rows, or `shard_rows` is not positive.
    """
    if (known := _recalled(data, ledger, shard_rows)) is not None:
        told(known.rows)
        return known
    there = ledger.shards(STAGE)
    kept = kept_stage(data)
    kept_there = ledger.shards(kept) if kept else set()

    def publish(name: str, rows: list[_Row]) -> None:
        if name not in there:
            ledger.commit(Receipt(STAGE, name, len(rows)), _table(rows))
        if kept and data.kept is not None and name not in kept_there:
            columns = pa.Table.from_pylist([row.kept or {} for row in rows], data.kept)
            ledger.commit(Receipt(kept, name, len(rows)), columns)
        told(len(rows))

    manifest = _walk(data, ledger, shard_rows, publish)
    save_manifest(ledger, manifest)
    remember(ledger, data, shard_rows, manifest.id, kept)
    return manifest


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
    return _walk(data, ledger, shard_rows, lambda _name, _rows: None)


def _walk(
    data: Input, ledger: Ledger, shard_rows: int, visit: Callable[[str, "list[_Row]"], None]
) -> SourceManifest:
    check_shard_rows(shard_rows)
    known = _Known.of(ledger.shards(STAGE))
    tally = _Tally()
    shards: list[str] = []
    for rows in _slices(_rows(data), known, shard_rows):
        name = shard_name(rows)
        visit(name, rows)
        shards.append(name)
        tally.add(rows)
    if not shards:
        raise InputError(f"{data.describe()} has no rows; give an input with at least one")
    return SourceManifest(data.describe(), tuple(shards), **dataclasses.asdict(tally))


def check_shard_rows(shard_rows: int) -> None:
    """Refuse shards without a row.

    Raises:
        InputError: `shard_rows` is not positive.
    """
    if shard_rows < 1:
        raise InputError(f"shards of {shard_rows} rows are not possible; give at least 1")


def shard_name(rows: "list[_Row]") -> str:
    """Return `<first 8 digits of the first key>-<rows>-<16 digits of all rows>`."""
    digest = hashlib.blake2b(b"".join(row.digest() for row in rows), digest_size=8).hexdigest()
    return f"{rows[0].key[:8]}-{len(rows)}-{digest}"


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


def read_manifest(path: Path) -> SourceManifest:
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


def manifest_files(ledger: Ledger) -> list[Path]:
    """Return the files of all inputs of a run folder, sorted."""
    return sorted((ledger.root / _MANIFESTS).glob("*.json"))


@dataclass(slots=True)
class _Tally:
    rows: int = 0
    duplicate_urls: int = 0
    invalid_urls: int = 0
    empty_captions: int = 0

    def add(self, rows: list[_Row]) -> None:
        self.rows += len(rows)
        self.duplicate_urls += sum(row.source_status == schema.DUPLICATE_URL for row in rows)
        self.invalid_urls += sum(row.source_status == schema.INVALID_URL for row in rows)
        self.empty_captions += sum(not (row.caption or "").strip() for row in rows)


# --- naming rows


def _rows(data: Input) -> Iterator[_Row]:
    """Yield the rows of `data` with their keys and what the input says of each."""
    addresses, names = map(_Repeats, _repeated(data, (_address, _name)))
    image = _Texts()
    for block in data.rows():
        columns = [block.column(name).to_pylist() for name in RAW.names]
        carried = block.column(KEPT).to_pylist() if data.kept is not None else [None] * len(block)
        rows = zip(*columns, carried, strict=True)
        for url, caption, image_ref, input_error, kept in rows:
            again = addresses.count(_address(url, caption, image_ref)) > 0
            name = _name(url, caption, image_ref)
            status, reason = _source_status(url, image_ref, input_error, again)
            status = image.joined((url, image_ref), caption, status)
            reason = None if status == schema.ANOTHER_TEXT else reason
            key = _key(name, names.count(name))
            yield _Row(key, url, caption, image_ref, status, reason, 0, kept)


class _Texts:
    """Finds the further texts of an image: rows after its first that differ in the text alone."""

    def __init__(self) -> None:
        self._image: tuple[str | None, str | None] | None = None  # of the rows before, if usable
        self._texts: set[str] = set()

    def joined(self, image: tuple[str | None, str | None], caption: str | None, status: str) -> str:
        """Return the status of a row of `image` (address, reference); `status` it has alone."""
        text = caption or ""
        local = image[1] is not None
        alone = schema.SOURCE_OK if local else schema.DUPLICATE_URL
        if image == self._image and status != schema.INVALID_URL:
            another = status == alone and text not in self._texts
            self._texts.add(text)
            return schema.ANOTHER_TEXT if another else status
        self._image = image if status == schema.SOURCE_OK else None
        self._texts = {text}
        return status


def _key(name: str, occurrence: int) -> str:
    """Return the sample key: unique in an input, and the same wherever the row stands in it."""
    text = _SEPARATOR.join((_bytes(name), b"%d" % occurrence))
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _source_status(
    url: str | None, image_ref: str | None, error: str | None, again: bool
) -> tuple[str, str | None]:
    if error is not None:
        return schema.INVALID_URL, error
    if image_ref is None and (fault := addresses.fault_of(url)):
        return schema.INVALID_URL, fault
    if again:
        return _AGAIN
    return schema.SOURCE_OK, None


def _address(url: str | None, caption: str | None, image_ref: str | None) -> str:
    """Return what makes two rows the same: the address that is fetched, or a local image with its
    caption."""
    if image_ref is not None:
        return f"{image_ref}\x00{caption or ''}"
    try:
        return addresses.normalise(url or "")
    except ValueError:
        return (url or "").strip()


def _name(url: str | None, caption: str | None, image_ref: str | None) -> str:
    """Return what a key is made of. Where a local image lies is no part of it."""
    return f"{image_ref if url is None else url}\x00{'0' if caption is None else '1' + caption}"


class _Repeats:
    """Counts how often a text came before, of those texts that come more than once."""

    def __init__(self, repeated: set[int]) -> None:
        self._repeated = repeated
        self._seen: dict[str, int] = {}

    def count(self, text: str) -> int:
        """Return how many times `text` was asked for before."""
        if hash(text) not in self._repeated:
            return 0
        before = self._seen.get(text, 0)
        self._seen[text] = before + 1
        return before


def _repeated(data: Input, texts_of: Sequence[_TextOf]) -> list[set[int]]:
    """Return, for each kind of text of a row, the hashes of those that more than one row has.

    They take 8 bytes a row, not the text. A collision only adds a candidate; `_Repeats` compares
    the texts themselves.
    """
    found: list[list[npt.NDArray[np.int64]]] = [[] for _ in texts_of]
    for block in data.rows():
        columns = [block.column(name).to_pylist() for name in ("url", "caption", "image_ref")]
        for hashes, text_of in zip(found, texts_of, strict=True):
            texts = map(text_of, *columns)
            hashes.append(np.fromiter(map(hash, texts), np.int64, block.num_rows))
    return [_more_than_once(hashes) for hashes in found]


def _more_than_once(hashes: Sequence[npt.NDArray[np.int64]]) -> set[int]:
    values = np.sort(np.concatenate([np.empty(0, np.int64), *hashes]))
    return set(np.unique(values[1:][values[1:] == values[:-1]]).tolist())


def _bytes(text: str | None) -> bytes:
    return b"\xff" if text is None else text.encode("utf-8", "surrogatepass")


def _table(rows: list[_Row]) -> pa.Table:
    columns = [[getattr(row, name) for row in rows] for name in schema.SOURCE.names]
    return pa.table(columns, schema=schema.SOURCE)


# --- finding the shards that are there already


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

    def at(self, ahead: list[_Row]) -> int:
        """Return how many of the rows `ahead` are a known shard; 0 where none begins here."""
        for rows in self.starts.get(ahead[0].key[:8], ()):
            if rows <= len(ahead) and shard_name(ahead[:rows]) in self.names:
                return rows
        return 0

    @property
    def longest(self) -> int:
        return max((rows[0] for rows in self.starts.values()), default=0)


def _slices(rows: Iterator[_Row], known: _Known, shard_rows: int) -> Iterator[list[_Row]]:
    """Cut rows: where a known shard begins, take it; elsewhere `shard_rows` at the most."""
    reach = max(known.longest, shard_rows)
    ahead: list[_Row] = []
    fresh: list[_Row] = []
    exhausted = False
    while True:
        while not exhausted and len(ahead) < reach:
            row = next(rows, None)
            exhausted = row is None
            if row is not None:
                ahead.append(row)
        if not ahead:
            break
        if length := known.at(ahead):
            if fresh:
                yield fresh
                fresh = []
            yield ahead[:length]
            del ahead[:length]
            continue
        fresh.append(ahead.pop(0))
        if len(fresh) == shard_rows:
            yield fresh
            fresh = []
    if fresh:
        yield fresh
