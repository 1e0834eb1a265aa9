"""What is found out of the rows of a piece of an input, and kept for the next time.

`cuts/pieces/<id>.index` has the digests of each row's address and name; `<id>.names` that of each
row, which shards are named by, and the first bytes of its key. An index depends on the piece
alone; names depend also on the rows before that have the same address or name.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.errors import DamageError, InputError
from capfilt.fingerprint import fingerprint
from capfilt.inputs import Piece
from capfilt.inputs.spec import BLOCK_ROWS
from capfilt.ledger.naming import DIGEST, NamedRows, Texts, index_rows, name_rows
from capfilt.ledger.publish import Publisher
from capfilt.ledger.records import Bytes, Records, publish_records, read_records
from capfilt.ledger.repeats import Repeats
from capfilt.store.location import Location

FOLDER: Final = "cuts/pieces"
_VERSION: Final = 1  # raised when the same rows come to other digests
PREFIX: Final = 4  # bytes of a key with which a shard's name begins
INDEX_WIDTH: Final = 2 * DIGEST + 1
NAMES_WIDTH: Final = DIGEST + PREFIX


@dataclass(frozen=True, slots=True)
class PieceFiles:
    """Where what is kept of pieces lies: a run folder, or one that is thrown away.

    `known` is a run folder that is read and not written.
    """

    root: Location
    known: Location | None = None

    def has(self, name: str, width: int) -> bool:
        """Say whether a file of records of this width is there and whole.

        One that is not whole is removed: what it held is found out again.
        """
        for path in (self._own(name), self._file(name)):
            if path.exists():
                try:
                    read_records(path, width)
                except DamageError:
                    if path == self._own(name):
                        path.unlink(missing_ok=True)
                    continue
                return True
        return False

    def read(self, name: str, width: int) -> Records:
        """Return the records of a file.

        Raises:
            DamageError: it is missing or not as it was written.
        """
        return read_records(self._file(name), width)

    def publish(self, name: str, blocks: Iterator[Bytes], said: dict[str, Any]) -> None:
        """Publish records, and what is said of them (JSON) when the last has passed."""
        publish_records(Publisher(self.root), f"{FOLDER}/{name}", blocks, lambda: said)

    def _own(self, name: str) -> Location:
        return self.root / FOLDER / name

    def _file(self, name: str) -> Location:
        own = self._own(name)
        return own if self.known is None or own.exists() else self.known / FOLDER / name


def index_name(piece: Piece) -> str:
    """Return the name of a piece's index."""
    return f"{fingerprint((_VERSION, piece.identity))}.index"


def read_index(files: PieceFiles, piece: Piece) -> Records:
    """Return the index of a piece: (rows, 33); see `naming.index_rows`.

    Raises:
        DamageError: it is missing or not as it was written.
    """
    return files.read(index_name(piece), INDEX_WIDTH)


def index_piece(files: PieceFiles, piece: Piece) -> None:
    """Read a piece and keep its index."""
    said: dict[str, str | None] = {"first": None, "last": None}

    def blocks() -> Iterator[Bytes]:
        for block in piece.stream(BLOCK_ROWS):
            if not block.num_rows:
                continue
            ends = [_image_digest(block.slice(row, 1)) for row in (0, block.num_rows - 1)]
            said["first"], said["last"] = said["first"] or ends[0], ends[1]
            yield index_rows(block)

    files.publish(index_name(piece), blocks(), said)


def _image_digest(row: pa.RecordBatch) -> str:
    """Return what is equal of two rows of one image."""
    values = [row.column(name)[0].as_py() for name in ("url", "image_ref")]
    return fingerprint(values)


@dataclass(frozen=True, slots=True)
class Unit:
    """Pieces that are named one after the other, since an image's texts go over their ends.

    `places` are their numbers in the input, by which `addresses` and `names` know them.
    """

    pieces: tuple[Piece, ...]
    places: tuple[int, ...]
    addresses: Repeats
    names: Repeats

    @property
    def name(self) -> str:
        """The name of the file of its names."""
        repeated = hashlib.blake2b(digest_size=DIGEST)
        for place in self.places:
            for repeats in (self.addresses, self.names):
                for values in repeats.of(place):
                    repeated.update(len(values).to_bytes(8, "little") + values.tobytes())
        identities = [piece.identity for piece in self.pieces]
        return f"{fingerprint((_VERSION, identities, repeated.hexdigest()))}.names"


def named_blocks(files: PieceFiles, unit: Unit) -> Iterator[tuple[pa.RecordBatch, NamedRows]]:
    """Yield the rows of a unit, as the input has them and named.

    Raises:
        InputError: there are other rows than when they were indexed.
    """
    texts = Texts()
    for place, piece in zip(unit.places, unit.pieces, strict=True):
        index = read_index(files, piece).values
        again, _ = unit.addresses.of(place)
        named, counts = unit.names.of(place)
        start = 0
        for block in piece.stream(BLOCK_ROWS):
            stop = start + block.num_rows
            if stop > len(index):
                break
            mask = np.zeros(block.num_rows, np.bool_)
            mask[again[slice(*np.searchsorted(again, (start, stop)))] - start] = True
            some = slice(*np.searchsorted(named, (start, stop)))
            pairs = zip((named[some] - start).tolist(), counts[some].tolist(), strict=True)
            yield block, name_rows(block, index[start:stop], mask, dict(pairs), texts)
            start = stop
        if start != len(index):
            raise InputError(
                "the input changed while it was being read; run again when nothing writes to it"
            )


def name_unit(files: PieceFiles, unit: Unit, name: str) -> None:
    """Read a unit and keep the names of its rows."""
    said = dict.fromkeys(("duplicate_urls", "invalid_urls", "empty_captions"), 0)

    def blocks() -> Iterator[Bytes]:
        for _, named in named_blocks(files, unit):
            for kind, count in _counts(named.rows).items():
                said[kind] += count
            yield np.hstack([named.digests(), named.keys[:, :PREFIX]])

    files.publish(name, blocks(), said)


def read_names(files: PieceFiles, name: str) -> Records:
    """Return the names of a unit: (rows, 20), digest and first bytes of the key of each.

    Raises:
        DamageError: they are missing or not as they were written.
    """
    return files.read(name, NAMES_WIDTH)


def _counts(rows: pa.RecordBatch) -> Counter[str]:
    statuses = rows["source_status"].value_counts().to_pylist()
    found = {entry["values"]: entry["counts"] for entry in statuses}
    texts = pc.utf8_trim_whitespace(rows["caption"].fill_null(""))
    empty = pc.sum(pc.equal(pc.binary_length(texts), 0)).as_py() or 0
    return Counter(
        duplicate_urls=found.get(schema.DUPLICATE_URL, 0),
        invalid_urls=found.get(schema.INVALID_URL, 0),
        empty_captions=empty,
    )
