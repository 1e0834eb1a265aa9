"""How many requests at a time the open-file limit of this machine bears."""

import contextlib
import os
from pathlib import Path
from typing import Final

# Files that a worker opens beside its connections: shards, temporary files, certificates.
_RESERVE: Final = 24
_UNLIMITED: Final = 1 << 20


def bearable(threads: int) -> int:
    """Return how many of `threads` requests can be open at a time, when the soft limit is raised
    as far as the hard one; at least 1."""
    _, hard = _limits()
    return max(1, min(threads, hard - _open_files() - _RESERVE))


def make_room(threads: int) -> int:
    """Raise the soft limit of open files where `threads` requests need it; returns `bearable`."""
    soft, hard = _limits()
    needed = _open_files() + _RESERVE + threads
    if soft < needed:
        import resource

        # A container may forbid it; then the shortage shows where it hurts.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    return bearable(threads)


def shortage_hint(threads: int) -> str | None:
    """Return what to tell a user whose machine bears fewer than `threads` requests at a time."""
    borne = bearable(threads)
    if borne == threads:
        return None
    return (
        f"this machine lets a process open {_limits()[1]} files, so each worker makes {borne} "
        f"requests at a time and not {threads}; raise the hard limit (ulimit -Hn) for more"
    )


def _limits() -> tuple[int, int]:
    """Return the soft and the hard limit of open files."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return _UNLIMITED, _UNLIMITED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    return tuple(_UNLIMITED if limit == infinite else limit for limit in (soft, hard))  # type: ignore[return-value]  # two of them


def _open_files() -> int:
    with contextlib.suppress(OSError):
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    with contextlib.suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return 32
