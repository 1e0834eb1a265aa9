"""A training in processes of its own, which end when the one that began them does.

Why not in the process that asks for it: a training on CPUs holds torch to one thread, on GPUs it
holds their memory, and what is run afterwards must compute the same whether or not a training was
there before it. And several GPUs need a process each, which torchrun starts.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capfilt.errors import (
    CapfiltError,
    DamageError,
    InputError,
    ModelError,
    PlanError,
    StorageError,
    WorkerError,
)
from capfilt.ledger.publish import TMP_DIR, explained
from capfilt.plain import from_plain, to_plain
from capfilt.process import lease, signals
from capfilt.process.temporary import private_folder
from capfilt.progress import Bar, Say, hear_metrics
from capfilt.train.data.reader import Reader, ReaderOptions
from capfilt.train.plan import PairFolder, TrainPlan, mixture
from capfilt.train.ranks import by_torchrun, local_rank, rank
from capfilt.train.start import start_of

_ERRORS: Final = (InputError, ModelError, PlanError, DamageError, StorageError)


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One training: `start` is a checkpoint's name or folder, `fresh` takes no weights of it.

    `devices` has a device for each process; where there are more processes they take turns.
    """

    plan: TrainPlan
    data: tuple[PairFolder, ...]
    out: str
    start: str
    fresh: bool
    devices: tuple[str, ...] = ("cpu",)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a training came to: losses of its first and its last step, by name.

    `seconds_a_step` is None where no step was left to do.
    """

    steps: int
    first: dict[str, float]
    last: dict[str, float]
    seconds_a_step: float | None


def run_job(job: TrainJob, processes: int, told: Bar, say: Say) -> Fitted:
    """Run a training, or go on with it, in `processes` processes; `told` hears of steps.

    Raises:
        CapfiltError: what the training raised.
        WorkerError: a process died.
    """
    with (
        alone(Path(job.out), say) as lock,
        private_folder() as temporary,
        contextlib.ExitStack() as running,
    ):
        with signals.held():  # for good in torchrun, which would answer them by itself
            child = subprocess.Popen(
                _command(job, processes),
                stdin=subprocess.PIPE,  # its end tells the processes that this one is gone
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=(lock,),
                env={**os.environ, "TMPDIR": str(temporary)},
            )
            running.callback(lease.sweep, Path(job.out) / TMP_DIR)
            running.push(lambda kind, *_: _ended(child, kill=kind is not None))
        last = _heard(child, told)
    if "fitted" in last:
        return from_plain(Fitted, last["fitted"])
    for kind in _ERRORS:
        if last.get("error") == kind.__name__:
            raise kind(last["message"])
    raise WorkerError(
        f"the training {job.out} ended by itself (exit code {child.returncode}); its checkpoints "
        "are kept: run the same command again to go on"
    )


def _command(job: TrainJob, processes: int) -> list[str]:
    own = ["-m", "capfilt.train.process", json.dumps(to_plain(job))]
    if processes == 1:
        return [sys.executable, *own]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, *own]


@contextlib.contextmanager
def alone(folder: Path, say: Say) -> Iterator[int]:
    """Hold the folder's lock, which processes can inherit: two trainings never share a folder.

    The lock dies with the last process that has it; where there are no locks, `say` hears of it.

    Raises:
        StorageError: there can be no such folder.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        free = lease.lock(lock, fcntl.LOCK_EX)
        if free is False:
            say(f"{folder} is being trained by another process; waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        elif free is None:
            say(f"{folder} is on a file system without locks: start no second training in it")
        yield lock
    finally:
        os.close(lock)


def _heard(child: "subprocess.Popen[str]", told: Bar) -> dict[str, Any]:  # JSON
    """Tell of the steps until the child's last word, and return that."""
    heard, last = hear_metrics(told), dict[str, Any]()
    for line in child.stdout or ():
        if not line.startswith("{"):
            continue  # something that a library printed
        last = json.loads(line)
        if "step" in last:
            heard(last)
    return last


def _ended(child: "subprocess.Popen[str]", *, kill: bool) -> None:
    """Wait for the end of all processes of a training."""
    if kill:
        child.kill()  # torchrun; what it began ends at the end of its standard input
    for pipe in filter(None, (child.stdin, child.stdout)):
        while pipe.readable() and os.read(pipe.fileno(), 65_536):
            pass  # until the last process that can write is gone
        pipe.close()
    child.wait()


def main() -> int:
    """Train what the first argument says, tell of it in JSON lines; returns the exit code."""
    job = from_plain(TrainJob, json.loads(sys.argv[1]))
    signals.leave_to_parent(but=(signal.SIGTERM,) if by_torchrun() else ())  # its way to end ranks
    threading.Thread(target=_die_with_parent, name="capfilt-parent", daemon=True).start()
    try:
        _emit(fitted=to_plain(_train(job)))
    except CapfiltError as error:
        _emit(error=type(error).__name__, message=str(error))
        return error.exit_code
    return 0


def _train(job: TrainJob) -> Fitted:
    plan, place = job.plan, local_rank()
    start, data = start_of(job.start, fresh=job.fresh), mixture(job.data)
    samples = Reader(data, ReaderOptions(batch_size=1, side=1)).epoch_samples

    from transformers.utils.logging import disable_progress_bar

    from capfilt.train.loop import LoopOptions, Metrics
    from capfilt.train.training import Training, train

    disable_progress_bar()  # of writing weights: the steps have one already
    device = job.devices[place % len(job.devices)]
    training = Training(
        recipe=plan.recipe_for(samples, start.folder),
        start=start,
        mixture=data,
        augment=plan.augment,
        looping=LoopOptions(Path(job.out), plan.every, plan.precision, device),
        workers=plan.workers,
        recompute=plan.recompute,
    )
    times: list[float] = []

    def heard(metrics: Metrics) -> None:
        times.append(time.monotonic())
        _emit(step=metrics["step"], loss=metrics["loss"])

    done = train(training, heard)
    # The first step warms caches up; a rate needs two moments.
    rate = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    return Fitted(done.steps, done.first, done.last, rate)


def _emit(**told: Any) -> None:  # JSON
    if rank() == 0:
        print(json.dumps(told), flush=True)


def _die_with_parent() -> None:
    """End this process when the parent is gone: its end of the pipe is closed then."""
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 4096):
            pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
