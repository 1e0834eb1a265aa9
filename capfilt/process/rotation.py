"""An order of work that differs from process to process."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def from_own_place(items: Sequence[T]) -> list[T]:
    """Rotate work by the process id, so that processes on one run start at different items.

    They need no lock: an item that another has published meanwhile is skipped, and where two do
    the same one, the first to publish wins.
    """
    if not items:
        return []
    start = (os.getpid() * 7919) % len(items)
    return [*items[start:], *items[:start]]
