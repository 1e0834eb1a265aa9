"""Whether this machine can fetch at all, judged by what its last requests came to.

Where most of a window of requests fail in a way that a machine without network, name service or
open files sees everywhere, going on would book the machine's fault as the pages'.
"""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Final

from capfilt.errors import MachineError

WINDOW: Final = 100  # requests that are looked at
FEWEST: Final = 20  # requests before anything is said
_TOO_MANY: Final = 0.5
_NAMES: Final = frozenset({"dns", "dns_unavailable"})
# One of the thirteen names that every resolver of the public internet knows (RFC 8499).
_KNOWN_NAME: Final = b"a.root-servers.net"
_ANYWHERE: Final = (
    (socket.AF_INET, "192.0.2.1"),  # TEST-NET-1, RFC 5737
    (socket.AF_INET6, "2001:db8::1"),  # RFC 3849
)


@dataclass(frozen=True, slots=True)
class Probes:
    """How it is found out whether the machine is at fault; each says True where all is well."""

    names: Callable[[], bool]
    route: Callable[[], bool]


class Health:
    """Counts outcomes; `fault` is set once most of the last ones are the machine's."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._last: deque[str | None] = deque(maxlen=WINDOW)
        self._shard: list[str | None] = []  # since the last one ended
        self._lock = threading.Lock()
        self.fault: str | None = None

    def note(self, failure: str | None) -> None:
        """Count one outcome (None: a picture, or an answer at least) and judge the last ones."""
        with self._lock:
            self._last.append(failure)
            self._shard.append(failure)
            if failure is not None and self.fault is None and len(self._last) >= FEWEST:
                self.fault = self._shortage() or self._offline(self._last)

    def end_shard(self) -> None:
        """Judge a shard by its own requests, however few: probes are sure. Then `check`."""
        with self._lock:
            seen, self._shard = self._shard, []
            self.fault = self.fault or self._offline(seen)
        self.check()

    def check(self) -> None:
        """Raise a MachineError that says what the machine lacks, if it lacks anything."""
        if self.fault is not None:
            raise MachineError(
                f"{self.fault}. Nothing of this shard was written, so that no page is blamed; "
                "finished shards are kept: run the same command again to go on"
            )

    def _shortage(self) -> str | None:
        if _mostly(self._last, {"machine"}):
            return "this machine is short of open files, memory or threads; try fewer --threads"
        if _mostly(self._last, {"proxy"}):
            return "the proxy is not there, or refuses us; look at --proxy"
        return None

    def _offline(self, seen: Sequence[str | None]) -> str | None:
        if _mostly(seen, _NAMES) and not self._probes.names():
            return "the name service of this machine gives no answers; is it online? (--proxy?)"
        if _mostly(seen, {"unreachable"}) and not self._probes.route():
            return "this machine has no route to the internet; is it online? (--proxy?)"
        if _mostly(seen, {*_NAMES, "unreachable"}):
            self._last.clear()  # it is the pages after all: look again when as many have gone by
        return None


def _mostly(seen: Sequence[str | None], failures: Set[str]) -> bool:
    return sum(one in failures for one in seen) > _TOO_MANY * len(seen)


def machine_probes(allow_private: bool) -> Probes:
    """Return the real ones.

    In a network of its own (`allow_private`) a name service may know no public name at all.
    """
    return Probes(lambda: _knows_names(allow_private), _has_route)


def _knows_names(allow_private: bool) -> bool:
    try:
        socket.getaddrinfo(_KNOWN_NAME, None)
    except socket.gaierror as error:
        return allow_private and error.errno != socket.EAI_AGAIN
    except OSError:
        return False
    return True


def _has_route() -> bool:
    """Say whether there is any way out; connecting a datagram socket sends nothing."""
    for family, address in _ANYWHERE:
        with (
            contextlib.suppress(OSError),
            contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as sock,
        ):
            sock.connect((address, 9))
            return True
    return False
