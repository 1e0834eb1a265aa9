"""Waiting for what other processes do."""

import time
from collections.abc import Callable


def wait_for(found: Callable[[], object]) -> None:
    """Return as soon as `found` is true; raises AssertionError after a minute."""
    for _ in range(1200):
        if found():
            return
        time.sleep(0.05)
    raise AssertionError("waited for a minute")
