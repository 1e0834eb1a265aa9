"""Models that several stages of one pass use: loaded by the first, freed by the last."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Held:
    model: Any  # of whatever kind the loader returns
    users: int = 0


_held: Final[dict[Hashable, _Held]] = {}
_lock: Final = threading.Lock()


@contextlib.contextmanager
def shared(key: Hashable, load: Callable[[], T]) -> Iterator[T]:
    """Yield what `load` returns, the same for all contexts of one key that are open at a time."""
    with _lock:
        if key not in _held:
            _held[key] = _Held(load())
        held = _held[key]
        held.users += 1
    try:
        yield held.model
    finally:
        with _lock:
            held.users -= 1
            if not held.users:
                _held.pop(key, None)
