"""Naming rows: their keys, what the input says of each, and the digests that shards are named by.

All of a block at a time in Arrow; one by one only rows that need a closer look. Two rows are of one
address, or of one name, where the 128 bits of BLAKE2b of these are equal.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from capfilt import schema
from capfilt.inputs import urls as addresses
from capfilt.ledger.records import Bytes

DIGEST: Final = 16  # bytes
_SEPARATOR: Final = b"\x00"
_NOTHING: Final = b"\xff"  # stands for null in a digest; no text has this byte
_ERROR_AGAIN: Final = "an earlier row has the same address"
_STATUSES: Final = (
    schema.SOURCE_OK,
    schema.DUPLICATE_URL,
    schema.INVALID_URL,
    schema.ANOTHER_TEXT,
)
_OK, _AGAIN, _INVALID, _ANOTHER = range(4)
_Image = tuple[str | None, str | None]  # address, reference
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class NamedRows:
    """Rows of the input by the source stage's columns, and what makes their digests.

    `alone` are their statuses and errors as if their neighbours did not matter: `digests` are of
    these, so that names are those of before there were further texts.
    """

    rows: pa.RecordBatch
    keys: Bytes
    alone: tuple[pa.Array, pa.Array]

    def digests(self) -> Bytes:
        """Return the digest of each row (rows, 16), of which shards' names are made."""
        nothing = pa.scalar(_NOTHING)
        columns = [*self.rows.columns[:4], *self.alone]
        parts = [column.cast(pa.binary()) for column in columns]
        filled = [part.fill_null(nothing) if part.null_count else part for part in parts]
        return _hashed(pc.binary_join_element_wise(*filled, pa.scalar(_SEPARATOR)))


def index_rows(block: pa.RecordBatch) -> Bytes:
    """Return what is kept of rows (rows, 33).

    These are the digests of their addresses and of their names, which are the keys of first rows,
    and whether the input's own word of a row has to be asked for: 1 where it has.
    """
    url, caption, ref = (block.column(name) for name in ("url", "caption", "image_ref"))
    local = ref.is_valid()
    odd = pc.invert(pc.or_(addresses.plain(url), local))
    found = _hashed(_addresses(url, caption, ref, local, odd))
    looked = pc.or_(odd, block.column("input_error").is_valid())
    mask = looked.to_numpy(zero_copy_only=False).astype(np.uint8)
    return np.hstack([found, _hashed(_names(url, caption, ref, b"0")), mask[:, None]])


def _addresses(
    url: pa.Array, caption: pa.Array, ref: pa.Array, local: pa.Array, odd: pa.Array
) -> pa.Array:
    """Return what makes two rows the same: the address that is fetched, or a local image with its
    caption."""
    found = pc.if_else(local, _joined([ref, caption.fill_null("")]), url)
    if not pc.any(odd).as_py():
        return found
    texts = [_address(text) for text in url.filter(odd).to_pylist()]
    return pc.replace_with_mask(found, odd, pa.array(texts, pa.string()))


def _address(url: str | None) -> str:
    try:
        return addresses.normalise(url or "")
    except ValueError:
        return (url or "").strip()


def _names(url: pa.Array, caption: pa.Array, ref: pa.Array, occurrence: bytes) -> pa.Array:
    """Return what keys are made of. Where a local image lies is no part of it."""
    told = pc.if_else(caption.is_valid(), pc.binary_join_element_wise("1", caption, ""), "0")
    return _joined([pc.coalesce(url, ref, pa.scalar("None")), told, occurrence.decode()])


def _joined(parts: Sequence[pa.Array | str]) -> pa.Array:
    return pc.binary_join_element_wise(*parts, _SEPARATOR.decode())


def _hashed(texts: pa.Array) -> Bytes:
    """Return BLAKE2b of every text, 16 bytes each."""
    first = texts.offset
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[first : first + len(texts) + 1]
    ends, begin = ends - ends[0], int(ends[0])
    content = b"" if data is None else data.slice(begin, int(ends[-1])).to_pybytes()
    places, blake2b = ends.tolist(), hashlib.blake2b
    digests = [
        blake2b(content[start:stop], digest_size=DIGEST).digest()
        for start, stop in itertools.pairwise(places)
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)


@dataclass(slots=True)
class Texts:
    """Finds the further texts of an image: rows after its first that differ in the text alone.

    It sees the blocks of an input one after the other.
    """

    _image: _Image | None = None  # of the rows before, if usable
    _texts: set[str] = field(default_factory=set)
    _last: _Image | None = None  # of the row before

    def settle(self, block: pa.RecordBatch, codes: Codes) -> Codes:
        """Return the codes of statuses of a block; `codes` are those that the rows have alone."""
        if not len(codes):
            return codes
        settled = codes.copy()
        url, caption, ref = (block.column(name) for name in ("url", "caption", "image_ref"))
        same = _like_before(url) & _like_before(ref)
        same[0] = self._last == (url[0].as_py(), ref[0].as_py())
        looked = same.copy()
        looked[:-1] |= same[1:]
        looked[-1] = True  # the next block may go on with its image
        for row in np.flatnonzero(looked).tolist():
            if not same[row]:
                self._image, self._texts = None, set()
            image = url[row].as_py(), ref[row].as_py()
            settled[row] = self._joined(image, caption[row].as_py() or "", int(codes[row]))
            self._last = image
        return settled

    def _joined(self, image: _Image, text: str, code: int) -> int:
        """Return the status of the next row that is looked at; `code` it has alone."""
        alone = _OK if image[1] is not None else _AGAIN
        if image == self._image and code != _INVALID:
            another = code == alone and text not in self._texts
            self._texts.add(text)
            return _ANOTHER if another else code
        self._image = image if code == _OK else None
        self._texts = {text}
        return code


def _like_before(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Say which values are equal to the one before; null is equal to null."""
    found = np.zeros(len(column), np.bool_)
    now, before = column.slice(1), column.slice(0, len(column) - 1)
    both = pc.and_(now.is_null(), before.is_null())
    same = pc.or_(pc.equal(now, before).fill_null(False), both)
    found[1:] = same.to_numpy(zero_copy_only=False)
    return found


def name_rows(
    block: pa.RecordBatch,
    index: Bytes,
    again: npt.NDArray[np.bool_],
    occurrences: dict[int, int],
    texts: Texts,
) -> NamedRows:
    """Name the rows of a block.

    Args:
        block: rows as the input has them.
        index: what `index_rows` says of them.
        again: whether an earlier row has a row's address.
        occurrences: place in the block -> how many earlier rows have that row's name, if any.
        texts: has seen the blocks before.
    """
    url, caption, ref = (block.column(name) for name in ("url", "caption", "image_ref"))
    keys = _counted(index[:, DIGEST : 2 * DIGEST], url, caption, ref, occurrences)
    alone, faults = _alone(block, index[:, -1].astype(np.bool_), again)
    codes = texts.settle(block, alone)
    errors = pc.if_else(pa.array(codes == _ANOTHER), pa.scalar(None, pa.string()), faults)
    attempts = pa.array(np.zeros(len(codes), np.int32))
    columns = [_hexed(keys), url, caption, ref, _told(codes), errors, attempts]
    rows = pa.RecordBatch.from_arrays(columns, schema=schema.SOURCE)
    return NamedRows(rows, keys, (_told(alone), faults))


def _told(codes: Codes) -> pa.Array:
    return pa.array(_STATUSES).take(pa.array(codes))


def _alone(
    block: pa.RecordBatch, looked: npt.NDArray[np.bool_], again: npt.NDArray[np.bool_]
) -> tuple[Codes, pa.Array]:
    """Return statuses (codes) of rows whose neighbours do not matter, and what is wrong of them.

    Only rows that are `looked` at can be wrong.
    """
    codes = np.where(again, _AGAIN, _OK).astype(np.int8)
    errors = pc.if_else(pa.array(again), _ERROR_AGAIN, pa.scalar(None, pa.string()))
    if not looked.any():
        return codes, errors
    some = block.filter(pa.array(looked))
    columns = (some.column(name).to_pylist() for name in ("url", "image_ref", "input_error"))
    faults = [_fault(*values) for values in zip(*columns, strict=True)]
    rows = np.flatnonzero(looked)
    bad = np.array([fault is not None for fault in faults], np.bool_)
    codes[rows[bad]] = _INVALID
    mask = np.zeros(len(codes), np.bool_)
    mask[rows[bad]] = True
    told = pa.array([fault for fault in faults if fault is not None], pa.string())
    return codes, pc.replace_with_mask(errors, pa.array(mask), told)


def _fault(url: str | None, ref: str | None, given: str | None) -> str | None:
    return given if given is not None or ref is not None else addresses.fault_of(url)


def _counted(
    keys: Bytes, url: pa.Array, caption: pa.Array, ref: pa.Array, occurrences: dict[int, int]
) -> Bytes:
    """Return the keys, with those of rows whose name came before."""
    if not occurrences:
        return keys
    counted = keys.copy()
    for row, count in occurrences.items():
        name = _names(url[row:][:1], caption[row:][:1], ref[row:][:1], b"%d" % count)
        counted[row] = _hashed(name)[0]
    return counted


def _hexed(keys: Bytes) -> pa.Array:
    """Return digests in hex."""
    ends = pa.py_buffer(np.arange(0, 2 * keys.size + 1, 2 * DIGEST, dtype=np.int32).tobytes())
    return pa.StringArray.from_buffers(len(keys), ends, pa.py_buffer(keys.tobytes().hex().encode()))
