"""The body of an answer: read and decoded within the limit of bytes."""

import http.client
import zlib
from typing import Final

from capfilt.stages.download.faults import Failed

_READ_BYTES: Final = 1 << 16
_MOST_CODINGS: Final = 3
_GZIP: Final = b"\x1f\x8b"


def read_body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Read a whole answer; codings that nobody asked for are undone.

    Raises:
        Failed: it is longer than `max_bytes` (as sent, or decoded), cut short, or in a coding
            that is not known.
    """
    if (response.length or 0) > max_bytes:
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    size = 0
    while piece := response.read(_READ_BYTES):
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return _decoded(b"".join(pieces), response.headers.get_all("Content-Encoding", []), max_bytes)


def _decoded(body: bytes, headers: list[str], max_bytes: int) -> bytes:
    names = [name.strip().lower() for header in headers for name in header.split(",")]
    codings = [name for name in names if name not in {"", "identity"}]
    if len(codings) > _MOST_CODINGS:
        raise Failed("bad_response", f"the body has {len(codings)} codings around it")
    for coding in reversed(codings):
        if coding in {"gzip", "x-gzip"}:
            # Servers name the coding of a file's name and send the picture as it is.
            body = _inflated(body, 31, max_bytes) if body.startswith(_GZIP) else body
        elif coding == "deflate":
            body = _inflated(body, _deflate_bits(body), max_bytes)
        else:
            raise Failed("bad_response", f"Content-Encoding {coding[:20]!r} was not asked for")
    return body


def _deflate_bits(body: bytes) -> int:
    """Return zlib's window for a "deflate" body: with zlib's header (RFC 9110), or without one."""
    headed = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return 15 if headed else -15


def _inflated(body: bytes, bits: int, max_bytes: int) -> bytes:
    """Return the decoded body; a bomb is left as soon as it is larger than the limit."""
    pieces: list[bytes] = []
    room = max_bytes + 1
    while body:
        inflater = zlib.decompressobj(bits)
        try:
            piece = inflater.decompress(body, room)
        except zlib.error as error:
            raise Failed("bad_response", f"the body's coding is broken: {error}") from error
        pieces.append(piece)
        room -= len(piece)
        if room <= 0:
            raise _too_large(max_bytes)
        if not inflater.eof:
            raise Failed("incomplete_body", "the body's coding ends in the middle")
        # RFC 1952: a gzip file may have several members; anything else behind it is padding.
        body = inflater.unused_data if inflater.unused_data.startswith(_GZIP) else b""
    return b"".join(pieces)


def _too_large(max_bytes: int) -> Failed:
    return Failed("too_large", f"the body is longer than {max_bytes} bytes")
