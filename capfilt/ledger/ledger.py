"""The column ledger: which (stage, shard) exists, its columns, and its receipt.

One small Parquet file for each (stage id, shard). It is created by one atomic, first-wins publish
and is its own completion mark; resume, status, caching and comparing two rounds are the same
question: which files exist. Its footer carries a receipt: rows, seconds, versions, and the
SHA-256 of every byte before the footer, so that damage can be told from foreign files.

Every read is checked: the footer by a SHA-256 of its own, pages by their checksums, and the receipt
by what was asked for. What a file was computed from is in its receipt too, by its SHA-256.
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt import __version__
from capfilt.errors import DamageError, StorageError
from capfilt.ledger.publish import Publisher
from capfilt.store.location import Location
from capfilt.store.reading import arrow_file, names_in, parquet_file

SUFFIX: Final = ".parquet"
_RECEIPT_KEY: Final = b"capfilt.receipt"
_FOOTER_TAIL: Final = 8  # Parquet ends with the footer's length (4 bytes) and the magic "PAR1"
_MAGIC: Final = b"PAR1"
# The footer's digest stands in the footer itself; it is taken with zeros in its place.
_UNSEALED: Final = "0" * 64
_SEAL: Final = re.compile(rb'"footer_sha256": "([0-9a-f]{64})"')
# What Arrow raises of bytes that are none of its own.
UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a shard file says of itself, in its footer.

    `seconds` is the wall-clock time that the stage spent on this shard; `counts` says how many
    rows have each status, where the stage has one. `failures` (funnel's reason -> kind -> rows) and
    `failing_hosts` (host -> kind -> rows) count the rows that failed; see tally.py.
    `version` is the stage's; files from before it was written say 1. `inputs` are the files that it
    was computed from: stage id -> `data_sha256` of that stage's file of the shard. Files of older
    versions have no `footer_sha256` and no page checksums.
    """

    stage: str
    shard: str
    rows: int
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    version: int = 1
    capfilt: str = __version__
    data_bytes: int = 0
    data_sha256: str = ""
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    failing_hosts: dict[str, dict[str, int]] = field(default_factory=dict)
    footer_sha256: str = ""
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Reads and writes the stage folders `root/stages/<name>-<id>/<shard>.parquet`."""

    root: Location

    @property
    def publisher(self) -> Publisher:
        """The file creator of this run folder."""
        return Publisher(self.root)

    def folder(self, stage: str) -> Location:
        """Return where the files of a stage lie; `stage` is `<name>-<id>`."""
        return self.root / "stages" / stage

    def path(self, stage: str, shard: str) -> Location:
        """Return where the file of (stage, shard) lies, or would."""
        return self.folder(stage) / f"{shard}{SUFFIX}"

    def stages(self) -> list[str]:
        """Return the stage folders that exist, sorted."""
        return _names(self.root / "stages", "")

    def shards(self, stage: str) -> set[str]:
        """Return the shards that a stage has finished: one directory scan."""
        return set(_names(self.folder(stage), SUFFIX))

    def has(self, stage: str, shard: str) -> bool:
        """Say whether a stage has finished a shard."""
        return self.path(stage, shard).exists()

    def commit(self, receipt: Receipt, table: pa.Table) -> bool:
        """Publish the columns of a shard. Returns False where another writer came first.

        Raises:
            StorageError: the disk is full, read-only, or has no hard links.
        """
        relative = self.path(receipt.stage, receipt.shard).relative_to(self.root)
        return self.publisher.publish(str(relative), lambda out: _put(out, receipt, table))

    def read(self, stage: str, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the columns of a shard (None: all), rows in their order; see `read_receipted`."""
        return self.read_receipted(stage, shard, columns)[0]

    def read_receipted(
        self,
        stage: str,
        shard: str,
        columns: Sequence[str] | None = None,
        schema: pa.Schema | None = None,
    ) -> tuple[pa.Table, Receipt]:
        """Return columns of a shard (None: all) with the file's receipt.

        `schema` is what the stage adds, where the caller knows it.

        Raises:
            DamageError: the file is missing, torn, altered, of another stage or shard, or has
                other rows or columns than it should.
        """
        with self._opened(stage, shard) as (file, receipt):
            self._check_columns(stage, shard, file.schema_arrow, columns, schema)
            table = file.read(columns=None if columns is None else list(columns))
            table.validate(full=True)  # a page's header is in no checksum
        if table.num_rows != receipt.rows:
            raise self.damage(
                stage, shard, f"has {table.num_rows} rows, its receipt says {receipt.rows}"
            )
        return table, receipt

    def receipt(self, stage: str, shard: str) -> Receipt:
        """Return the receipt of a shard without reading its columns.

        Raises:
            DamageError: the file is missing, torn, or not the one that was asked for.
        """
        with self._opened(stage, shard) as (_, receipt):
            return receipt

    def check(self, stage: str, shard: str, schema: pa.Schema | None = None) -> Receipt:
        """Re-read a shard file completely and compare it with its receipt.

        Raises:
            DamageError: torn, altered, foreign, or not of the expected schema.
        """
        receipt = self.receipt(stage, shard)
        if _sha256_of_data(self.path(stage, shard)) != (receipt.data_bytes, receipt.data_sha256):
            raise self.damage(stage, shard, "is altered: its bytes are not those that were written")
        self.read_receipted(stage, shard, None, schema)
        return receipt

    def sweep(self) -> list[Location]:
        """Return what dead processes left unfinished; nobody will ever finish it."""
        return self.publisher.leftovers()

    def damage(self, stage: str, shard: str, what: str) -> DamageError:
        """Return the error of a shard's file: `what` follows its path, and the remedy that."""
        return DamageError(f"{self.path(stage, shard)} {what}; {repair_advice(self.root)}")

    @contextmanager
    def _opened(self, stage: str, shard: str) -> Iterator[tuple[pq.ParquetFile, Receipt]]:
        """Open a shard's file, its footer and receipt checked; whatever Arrow raises is damage."""
        path = self.path(stage, shard)
        try:
            with arrow_file(path) as opened:
                sealed = _check_footer(opened)
                with parquet_file(opened) as file:
                    receipt = _receipt_of(file)
                    _check_receipt(receipt, stage, shard, file.metadata.num_rows)
                    if not sealed:
                        _check_unsealed(path, receipt)
                    yield file, receipt
        except FileNotFoundError as error:
            raise DamageError(
                f"{path} is missing; `capfilt run` with its input makes it again"
            ) from error
        except UNREADABLE as error:
            if is_of_system(error):
                raise StorageError(f"{path} cannot be read: {error}") from error
            raise self.damage(stage, shard, f"is damaged ({in_a_line(error)})") from error

    def _check_columns(
        self,
        stage: str,
        shard: str,
        found: pa.Schema,
        columns: Sequence[str] | None,
        expected: pa.Schema | None,
    ) -> None:
        """Raise DamageError where the columns are not those of the stage, or miss one asked for."""
        bare = found.remove_metadata()
        same = expected is None or bare == expected
        if not same or not set(columns or ()) <= set(found.names):
            raise self.damage(stage, shard, f"has other columns than the stage adds: {found.names}")


def repair_advice(root: Location) -> str:
    """Say what to do about a damaged file of a run folder."""
    return (
        f"`capfilt verify {shlex.quote(str(root))} --repair` moves it away, and "
        "`capfilt run` with the same input and options makes it again"
    )


class HashingStream(io.RawIOBase):
    """A stream that hashes what passes through it on its way to a file.

    After `hold`, what is written is kept back, unhashed, until `release` writes it.
    """

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self.count = 0
        self._out = out
        self._held: bytearray | None = None

    def hold(self) -> None:
        """Hold back everything that is written from here on."""
        self._held = bytearray()

    def release(self, change: Callable[[bytes], bytes]) -> None:
        """Write what was kept back, after `change`."""
        self._out.write(change(bytes(self._held or b"")))
        self._held = None

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, data: object) -> int:
        """Pass bytes on; returns how many there were."""
        view = memoryview(data)  # type: ignore[arg-type]  # Arrow hands over any buffer
        if self._held is not None:
            self._held += view
            return view.nbytes
        self.digest.update(view)
        self.count += view.nbytes
        self._out.write(view)
        return view.nbytes


def _put(out: BinaryIO, receipt: Receipt, table: pa.Table) -> None:
    _write(out, receipt, table)


def data_sha256(table: pa.Table) -> str:
    """Return the digest that a file with these columns would have."""
    with open(os.devnull, "wb") as out:
        return _write(out, Receipt("", "", table.num_rows), table)


def _write(out: BinaryIO, receipt: Receipt, table: pa.Table) -> str:
    """Write a shard's file; returns the SHA-256 of its data."""
    stream = HashingStream(out)
    codecs = {
        name: "none" if pa.types.is_binary(table.schema.field(name).type) else "zstd"
        for name in table.schema.names
    }  # encoded images do not compress; everything else does
    with pq.ParquetWriter(
        stream, table.schema, compression=codecs, version="2.6", write_page_checksum=True
    ) as writer:
        writer.write_table(table)
        stamped = dataclasses.replace(
            receipt,
            data_bytes=stream.count,
            data_sha256=stream.digest.hexdigest(),
            footer_sha256=_UNSEALED,
        )
        text = json.dumps(dataclasses.asdict(stamped), sort_keys=True)
        writer.add_key_value_metadata({_RECEIPT_KEY.decode(): text})
        stream.hold()
    stream.release(_sealed)
    return stamped.data_sha256


def _sealed(footer: bytes) -> bytes:
    """Put the digest of a footer into it: of all bytes after the data, with zeros in its place."""
    digest = hashlib.sha256(footer).hexdigest().encode()
    start, stop = _seal_of(footer) or (0, 0)
    return footer[:start] + digest + footer[stop:]


def _seal_of(footer: bytes) -> tuple[int, int] | None:
    """Return where the digest of a footer stands in it, or None.

    It is in the receipt, which comes after the statistics of the columns: these hold texts of
    strangers, who may write what they like.
    """
    found = _SEAL.search(footer, max(0, footer.rfind(_RECEIPT_KEY)))
    return None if found is None else found.span(1)


def _check_footer(file: pa.NativeFile) -> bool:
    """Compare a footer with its digest. Returns whether it has one.

    Raises:
        ValueError: it is not the footer that was written, or no Parquet's.
    """
    footer = _footer_of(file)
    place = _seal_of(footer)
    if place is None:
        return False
    start, stop = place
    bare = footer[:start] + _UNSEALED.encode() + footer[stop:]
    if hashlib.sha256(bare).hexdigest().encode() != footer[start:stop]:
        raise ValueError("its footer is altered")
    return True


def _footer_of(file: pa.NativeFile) -> bytes:
    """Return all bytes of a Parquet file after its data."""
    size = file.size()
    file.seek(max(0, size - _FOOTER_TAIL))
    tail = file.read()
    start = size - _FOOTER_TAIL - int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or start < len(_MAGIC):
        raise ValueError(f"it is torn or foreign: {size} bytes without a whole footer")
    file.seek(start)
    return bytes(file.read())


def _receipt_of(file: pq.ParquetFile) -> Receipt:
    text = (file.metadata.metadata or {}).get(_RECEIPT_KEY)
    if text is None:
        raise ValueError("it is foreign: it carries no capfilt receipt")
    try:
        return Receipt(**json.loads(text))
    except TypeError as error:
        raise ValueError(f"its receipt is unreadable: {error}") from error


def _check_receipt(receipt: Receipt, stage: str, shard: str, rows: int) -> None:
    if (receipt.stage, receipt.shard) != (stage, shard):
        raise ValueError(f"it is foreign: its receipt is of {receipt.stage} {receipt.shard}")
    if receipt.rows != rows:
        raise ValueError(f"it has {rows} rows, its receipt says {receipt.rows}")


def _check_unsealed(path: Location, receipt: Receipt) -> None:
    """Check a file of an older version, whose pages have no checksums: whole, at every read."""
    if receipt.footer_sha256:
        raise ValueError("the digest of its footer is altered")
    if _sha256_of_data(path) != (receipt.data_bytes, receipt.data_sha256):
        raise ValueError("it is altered: its bytes are not those that were written")


def is_of_system(error: BaseException) -> bool:
    """Say whether a file could not be read for a reason that is not in its bytes."""
    return isinstance(error, OSError) and error.errno not in {None, errno.EISDIR, errno.ENOTDIR}


def in_a_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split())[:300]


def _sha256_of_data(path: Location) -> tuple[int, str]:
    with path.open("rb") as stream:
        stream.seek(-_FOOTER_TAIL, os.SEEK_END)
        data_bytes = stream.tell() - int.from_bytes(stream.read(4), "little")
        stream.seek(0)
        digest = hashlib.sha256()
        left = data_bytes
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return data_bytes, digest.hexdigest()


def _names(folder: Location, suffix: str) -> list[str]:
    names = names_in(folder)
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))
