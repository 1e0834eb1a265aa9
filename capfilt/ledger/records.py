"""Files of many short records of one length, written once and read at any place.

`records | JSON of what is said of them | its length | SHA-256 of all before`. They hold what was
found out of rows, so that nobody reads the rows again to know it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from capfilt.errors import DamageError
from capfilt.ledger.publish import Publisher
from capfilt.store.location import Location
from capfilt.store.reading import mapped

Bytes = npt.NDArray[np.uint8]  # (records, bytes of one)
_DIGEST: Final = 32
_LENGTH: Final = 8
_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a file, as they lie there, and what is said of them."""

    values: Bytes
    said: dict[str, Any]  # JSON

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.values)


def publish_records(
    publisher: Publisher, name: str, blocks: Iterable[Bytes], say: Callable[[], dict[str, Any]]
) -> None:
    """Publish a file; `say` is asked after the last block. A file that is there is left alone."""

    def write(out: BinaryIO) -> None:
        digest = hashlib.sha256()

        def put(data: bytes) -> None:
            digest.update(data)
            out.write(data)

        for block in blocks:
            put(block.tobytes())
        text = json.dumps(say()).encode()
        put(text + len(text).to_bytes(_LENGTH, "little"))
        out.write(digest.digest())

    publisher.publish(name, write)


def read_records(path: Location, width: int) -> Records:
    """Open a file of records of `width` bytes; all of it is checked.

    Raises:
        DamageError: it is missing or not as it was written.
    """
    try:
        data = mapped(path)
        stop = len(data) - _DIGEST
        digest = hashlib.sha256()
        for start in range(0, stop, _CHUNK):
            digest.update(data[start : min(stop, start + _CHUNK)].data)
        if digest.digest() != data[max(0, stop) :].tobytes():
            raise ValueError("its bytes are not those that were written")
        end = stop - _LENGTH - int.from_bytes(data[stop - _LENGTH : stop].tobytes(), "little")
        said = json.loads(data[end : stop - _LENGTH].tobytes())
        return Records(data[:end].reshape(-1, width), said)
    except (OSError, ValueError) as error:
        raise DamageError(f"{path} cannot be read ({error}); remove it") from error
