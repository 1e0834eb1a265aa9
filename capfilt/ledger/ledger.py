"""The column ledger: which (stage, shard) exists, its columns, and its receipt.

One small Parquet file for each (stage id, shard). It is created by one atomic, first-wins publish
and is its own completion mark; resume, status, caching and comparing two rounds are the same
question: which files exist. Its footer carries a receipt: rows, seconds, versions, and the
SHA-256 of every byte before the footer, so that damage can be told from foreign files.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt import __version__
from capfilt.errors import DamageError
from capfilt.ledger.publish import Publisher

SUFFIX: Final = ".parquet"
_RECEIPT_KEY: Final = b"capfilt.receipt"
_FOOTER_TAIL: Final = 8  # Parquet ends with the footer's length (4 bytes) and the magic "PAR1"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a shard file says of itself, in its footer.

    `seconds` is the wall-clock time that the stage spent on this shard; `counts` says how many
    rows have each status, where the stage has one. `failures` (funnel's reason -> kind -> rows) and
    `failing_hosts` (host -> kind -> rows) count the rows that failed; see tally.py.
    rows have each status, where the stage has one. `version` is the stage's; files from before it
    was written say 1.
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


@dataclass(frozen=True, slots=True)
class Ledger:
    """Reads and writes the stage folders `root/stages/<name>-<id>/<shard>.parquet`."""

    root: Path

    @property
    def publisher(self) -> Publisher:
        """The file creator of this run folder."""
        return Publisher(self.root)

    def folder(self, stage: str) -> Path:
        """Return where the files of a stage lie; `stage` is `<name>-<id>`."""
        return self.root / "stages" / stage

    def path(self, stage: str, shard: str) -> Path:
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
        return self.publisher.publish(str(relative), lambda out: _write(out, receipt, table))

    def read(self, stage: str, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the columns of a shard (None: all), rows in their order.

        Raises:
            DamageError: the file is missing or cannot be read.
        """
        with self._opened(stage, shard) as file:
            return file.read(columns=None if columns is None else list(columns))

    def receipt(self, stage: str, shard: str) -> Receipt:
        """Return the receipt of a shard without reading its columns.

        Raises:
            DamageError: the file is missing, torn, or not one of ours.
        """
        with self._opened(stage, shard) as file:
            return _receipt_of(file, self.path(stage, shard))

    def check(self, stage: str, shard: str, schema: pa.Schema | None = None) -> Receipt:
        """Re-read a shard file completely and compare it with its receipt.

        Raises:
            DamageError: torn, altered, foreign, or not of the expected schema.
        """
        path = self.path(stage, shard)
        receipt = self.receipt(stage, shard)
        if (receipt.stage, receipt.shard) != (stage, shard):
            raise DamageError(
                f"{path} is foreign: its receipt is of {receipt.stage} {receipt.shard}"
            )
        if _sha256_of_data(path) != (receipt.data_bytes, receipt.data_sha256):
            raise DamageError(f"{path} is altered: its bytes are not those that were written")
        table = self.read(stage, shard)
        if table.num_rows != receipt.rows:
            raise DamageError(f"{path} has {table.num_rows} rows, its receipt says {receipt.rows}")
        if schema is not None and table.schema.remove_metadata() != schema:
            raise DamageError(f"{path} has other columns than the stage adds: {table.schema.names}")
        return receipt

    def sweep(self) -> list[Path]:
        """Return what dead processes left unfinished; nobody will ever finish it."""
        return self.publisher.leftovers()

    def _opened(self, stage: str, shard: str) -> pq.ParquetFile:
        path = self.path(stage, shard)
        try:
            return pq.ParquetFile(path)
        except FileNotFoundError as error:
            raise DamageError(f"{path} is missing; `capfilt run` makes it again") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DamageError(
                f"{path} is torn or foreign ({error}); move it away and run again"
            ) from error


class _Hashing(io.RawIOBase):
    """A stream that hashes what passes through it on its way to a file."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self.count = 0
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]  # Arrow hands over any buffer
        self.digest.update(view)
        self.count += view.nbytes
        self._out.write(view)
        return view.nbytes


def _write(out: BinaryIO, receipt: Receipt, table: pa.Table) -> None:
    stream = _Hashing(out)
    codecs = {
        name: "none" if pa.types.is_binary(table.schema.field(name).type) else "zstd"
        for name in table.schema.names
    }  # encoded images do not compress; everything else does
    with pq.ParquetWriter(stream, table.schema, compression=codecs, version="2.6") as writer:
        writer.write_table(table)
        stamped = dataclasses.replace(
            receipt, data_bytes=stream.count, data_sha256=stream.digest.hexdigest()
        )
        text = json.dumps(dataclasses.asdict(stamped), sort_keys=True)
        writer.add_key_value_metadata({_RECEIPT_KEY.decode(): text})


def _receipt_of(file: pq.ParquetFile, path: Path) -> Receipt:
    text = (file.metadata.metadata or {}).get(_RECEIPT_KEY)
    if text is None:
        raise DamageError(f"{path} is foreign: it carries no capfilt receipt; move it away")
    try:
        return Receipt(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamageError(f"{path} has an unreadable receipt ({error}); move it away") from error


def _sha256_of_data(path: Path) -> tuple[int, str]:
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


def _names(folder: Path, suffix: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))
