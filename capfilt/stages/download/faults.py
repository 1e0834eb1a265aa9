"""From an exception to the kind of failure that is booked: whose fault was it?"""

import contextlib
import errno
import http.client
import os
import socket
import ssl
import urllib.error
from typing import Final

from capfilt.stages.failures import FAILURES, http_failure

# Shortages of this machine, wherever they show.
SHORTAGES: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ENOSPC", "EDQUOT", "EADDRNOTAVAIL", "EAGAIN"),
        *("EACCES", "EPERM"),  # a local firewall's
    )
)
_NO_WAY: Final = frozenset(
    {
        *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN),
        errno.EAFNOSUPPORT,  # a machine without IPv6
    }
)


class Reason(str):
    """Why a request failed, in words, with the kind that is booked and counted beside them.

    img2dataset passes on `str(error)`; what it passes on of ours is this.
    """

    failure: str
    retry_after: float | None

    def __new__(cls, failure: str, words: str, retry_after: float | None = None) -> "Reason":
        """Make one; `retry_after`: seconds that the server asked to wait."""
        made = super().__new__(cls, words)
        made.failure, made.retry_after = failure, retry_after
        return made


class Failed(urllib.error.URLError):
    """A request that failed, as all failures leave the opener."""

    def __init__(self, failure: str, words: str = "", retry_after: float | None = None) -> None:
        meaning = FAILURES[failure].meaning if failure in FAILURES else failure
        self.said = Reason(failure, words or meaning, retry_after)
        super().__init__(self.said)

    @property
    def failure(self) -> str:
        """The kind; see `failures.py`."""
        return self.said.failure

    def __str__(self) -> str:
        return self.said


def http_failed(code: int, phrase: str, retry_after: float | None = None) -> Failed:
    """Return the failure of an answer with an HTTP status that is no success."""
    return Failed(http_failure(code), f"HTTP Error {code}: {phrase}", retry_after)


def as_failed(error: BaseException) -> Failed:
    """Return `error` as a failure of a known kind."""
    if isinstance(error, Failed):
        return error
    return Failed(_kind(error), _words(error))


def shortage(error: BaseException | None) -> str | None:
    """Say what this machine is short of, where that is what led to `error`."""
    while error is not None:
        if isinstance(error, Failed):
            return str(error) if error.failure == "machine" else None
        if _is_shortage(error):
            return _words(error)
        error = error.__cause__ or error.__context__
    return None


def _kind(error: BaseException) -> str:
    if _is_shortage(error):
        return "machine"
    if isinstance(error, socket.gaierror):
        return _name_kind(error)
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLError):
        ended = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
        return "reset" if ended or "EOF" in str(error) else "tls"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, http.client.IncompleteRead):
        return "incomplete_body"
    if isinstance(error, OSError):  # also http.client.RemoteDisconnected
        return "unreachable" if error.errno in _NO_WAY else "reset"
    return "bad_response"


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_MEMORY or _out_of_files()
    if isinstance(error, RuntimeError):
        return "start new thread" in str(error)
    if isinstance(error, ssl.SSLError):
        return False  # its numbers are OpenSSL's
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in SHORTAGES
    )


def _name_kind(error: socket.gaierror) -> str:
    return "dns_unavailable" if error.errno == socket.EAI_AGAIN else "dns"


def _out_of_files() -> bool:
    """Say whether no file can be opened: a look-up of a name then fails as if it were unknown."""
    try:
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)):
            return False
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno and _is_shortage(error):
        return os.strerror(error.errno) if error.errno > 0 else "no open files left"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the number, which is each system's own
    return str(error) or type(error).__name__
