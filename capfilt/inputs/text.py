"""Opening text files strictly: any byte that does not decode is told with its line and column."""

import codecs
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TextIO, cast

import pyarrow as pa

from capfilt.errors import InputError
from capfilt.inputs.paths import COMPRESSION, XZ
from capfilt.inputs.spec import ENCODING_OPTION, KIND_OPTION

# A first line longer than this is no header and no JSON row, but a binary file or a JSON array.
_LINE_LIMIT: Final = 16 * 1024 * 1024  # characters
_CHUNK: Final = 1 << 20  # bytes
_UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def open_text(path: Path, encoding: str, newline: str) -> Iterator[TextIO]:
    """Open a text file, compressed or not, for strict decoding; a byte-order mark is skipped.

    `newline` is as for `open`: "" keeps every line end, a line feed ends lines at that alone.

    Raises:
        InputError: at opening or from the body: bytes that are not `encoding`, torn compression.
    """
    with _explained(path, encoding), _open_binary(path) as raw:
        yield io.TextIOWrapper(raw, encoding=_skipping_mark(encoding), newline=newline)


@contextmanager
def _open_binary(path: Path) -> Iterator[BinaryIO]:
    codec = COMPRESSION.get(path.suffix.lower())
    with path.open("rb", buffering=_CHUNK) as file:  # Arrow opens no path that is not UTF-8
        if codec is None:
            yield file
        elif codec == XZ:
            with lzma.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            with pa.CompressedInputStream(file, codec) as stream:
                yield stream


def _skipping_mark(encoding: str) -> str:
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


@contextmanager
def _explained(path: Path, encoding: str) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise InputError(_encoding_fault(path, encoding)) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError(
            f"{path}: cannot be read ({reason or error}); is it torn? Fetch it again."
        ) from error


def check_first_line(path: Path, encoding: str) -> None:
    """Raise InputError where the file has no lines to speak of."""
    with open_text(path, encoding, "") as file:
        if len(file.readline(_LINE_LIMIT)) == _LINE_LIMIT:
            raise InputError(
                f"{path} line 1: longer than {_LINE_LIMIT} characters; is this a text table? "
                f"If not, say what it is with {KIND_OPTION}."
            )


def _encoding_fault(path: Path, encoding: str) -> str:
    """Read `path` again to say where it first fails to decode, and what to do."""
    line, column, found = 1, 1, "the text"
    with _open_binary(path) as raw:
        start = raw.read(4)
        for text, bad in _decoded(raw, start, encoding):
            line += text.count("\n")
            column = len(text) - text.rfind("\n") if "\n" in text else column + len(text)
            found = found if bad is None else f"byte 0x{bad:02X}"
    where = f"{path} line {line}, column {column}: {found} is not {encoding}"
    if start[:2] in _UTF16_MARKS:
        return f"{where}; the file begins like UTF-16, so give {ENCODING_OPTION} utf-16"
    return f"{where}; give the file's own encoding with {ENCODING_OPTION}, or convert it to UTF-8"


def _decoded(raw: BinaryIO, start: bytes, encoding: str) -> Iterator[tuple[str, int | None]]:
    """Yield pieces of text with line ends as line feeds; last, the first bad byte."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    chunk = start.removeprefix(codecs.BOM_UTF8)
    while True:
        pending, flags = decoder.getstate()
        try:
            yield newlines.decode(chunk), None
        except UnicodeDecodeError as error:
            decoder.setstate((pending, flags))
            yield newlines.decode(error.object[len(pending) : error.start]), None
            yield "", error.object[error.start]
            return
        except UnicodeError:  # UTF-16 without the byte-order mark, for one
            return
        chunk = raw.read(_CHUNK)
        if not chunk:  # the file ends within a character
            yield "", pending[0] if (pending := decoder.getstate()[0]) else None
            return
