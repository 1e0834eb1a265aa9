"""SIGKILL at a chosen step of what writes files: from that step on, nothing is changed any more."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

# What creates, names, moves and removes files; `publish.py` and pathlib use no other.
_STEPS: Final = ("link", "unlink", "rename", "replace", "symlink", "mkdir", "rmdir")


class Killed(BaseException):
    """The process is gone; nobody may catch this, and what runs in a `finally` does nothing."""


@contextmanager
def killed_before(step: int) -> Iterator[None]:
    """Let so many steps happen, and none after them."""
    left = itertools.count(step, -1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if next(left) <= 0:
                raise Killed
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in _STEPS:
            patch.setattr(os, name, dying(getattr(os, name)))
        yield


def at_every_step(work: Callable[[], object], look: Callable[[], object]) -> int:
    """Kill `work` before its first step, its second …, and `look` each time at what is left.

    `look` prepares the next attempt too, where `work` must begin anew. Returns the kills.
    """
    for kills in itertools.count():
        try:
            with killed_before(kills):
                work()
        except Killed:
            look()
        else:
            return kills
    raise AssertionError("unreachable")
