"""Standard streams that never fail a command that does its work.

A character that a stream cannot encode is escaped. A closed pipe, a terminal that is gone and a
full disk are remembered, and told by the exit code when the work is done.
"""

import contextlib
import errno
import io
import os
import sys
from typing import Any, Final, TextIO

_CLOSED: Final = {errno.EPIPE, errno.EIO}
CLOSED_PIPE: Final = 141  # as of a program that SIGPIPE ends: 128 + 13
NOT_WRITTEN: Final = 4


class Tolerant(io.TextIOWrapper):
    """A text stream over another one's bytes; `failure` is the first error of writing."""

    failure: OSError | None = None

    @classmethod
    def over(cls, stream: io.TextIOWrapper) -> "Tolerant":
        """Return a tolerant stream that writes where `stream` does."""
        out: Any = stream.buffer  # binary; typeshed gives each kind a class of its own
        unbuffered = isinstance(out, io.RawIOBase)  # python -u
        if isinstance(out, io.RawIOBase):
            out = io.BufferedWriter(out)  # unlike it, a raw file drops what a pipe did not take
        return cls(
            out,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering or unbuffered,
        )

    def write(self, text: str, /) -> int:
        """Write, or remember why not."""
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or remember why not."""
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failure = self.failure or error
        if error.errno in _CLOSED:
            drop(self)


def drop(stream: TextIO) -> None:
    """Let a stream, and all else that writes to its file, write to nowhere from now on."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def settle() -> None:
    """Make this process's standard streams tolerant, and open those that are closed.

    Where one was closed, the next file that is opened would get its number, and whatever a library
    writes to that.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Tolerant.over(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = Tolerant.over(sys.stderr)


def exit_code(code: int) -> int:
    """Return the exit code of a command that ends with `code`, by what became of its output."""
    out = sys.stdout
    if not isinstance(out, Tolerant):
        return code
    out.flush()
    failure = out.failure
    if failure is None:
        return code
    drop(out)  # what is still in its buffer would fail again
    if failure.errno in _CLOSED:
        return code or CLOSED_PIPE
    print(f"capfilt: cannot write to standard output: {failure.strerror}", file=sys.stderr)
    return code or NOT_WRITTEN
