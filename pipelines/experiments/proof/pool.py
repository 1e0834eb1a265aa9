"""Running tasks in processes of their own, as many at once as there are cores."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from capfilt.errors import CapfiltError
from pipelines.experiments.proof.tasks import Task

Say = Callable[[str], None]


def run_all(
    tasks: list[Task], done: Callable[[str], bool], command: list[str], workers: int, say: Say
) -> None:
    """Run every task that is not done, after those it needs; `command` plus its name does one.

    Raises:
        CapfiltError: a task failed; the others that ran beside it were stopped.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    began: dict[str, float] = {}
    try:
        while (waiting := [task for task in tasks if not done(task.name)]) or running:
            for task in _ready(waiting, done, running)[: workers - len(running)]:
                running[task.name] = _started([*command, task.name])
                began[task.name] = time.monotonic()
            for name in [name for name, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                if code or not done(name):
                    raise CapfiltError(f"the task {name} failed with exit code {code}; see above")
                left = sum(not done(task.name) for task in tasks)
                say(f"{name}: {time.monotonic() - began[name]:.0f} s, {left} tasks left")
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def _ready(
    waiting: list[Task], done: Callable[[str], bool], running: dict[str, subprocess.Popen[bytes]]
) -> list[Task]:
    return [
        task
        for task in waiting
        if task.name not in running and all(done(need) for need in task.needs)
    ]


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    # One thread each: sums in another order would be other weights.
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(command, env={**os.environ, **alone})


def this_program(root: Path, *options: str) -> list[str]:
    """Return the command that does a single task, whose name comes after it."""
    return [
        sys.executable,
        "-m",
        "pipelines.experiments.proof",
        "--run",
        str(root),
        *options,
        "--task",
    ]
