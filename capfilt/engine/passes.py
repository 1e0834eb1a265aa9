"""Running a plan: its passes one after the other, each over the shards that miss something."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capfilt.engine.executors import Executor, Processes, Serial
from capfilt.engine.plan import Plan, PlannedStage, RunReader, is_barrier
from capfilt.engine.ranks import rank_order
from capfilt.engine.worker import PassJob, solve_barrier
from capfilt.errors import InputError
from capfilt.ledger.ledger import Ledger
from capfilt.ledger.source import rows_of
from capfilt.models.checkpoints import weight_bytes
from capfilt.models.recipe import ModelRef, Precision
from capfilt.process.rotation import from_own_place
from capfilt.progress import Progress

_WORKER_OVERHEAD_BYTES: Final = 1_500_000_000  # Python, torch, a slice of pictures and states
_LARGE_MODEL_BYTES: Final = 200_000_000
_MEMORY_SHARE: Final = 0.7
_MOST_HOST_WORKERS: Final = 16  # each downloads with dozens of threads


@dataclass(frozen=True, slots=True)
class Resources:
    """What may be used: processes for models and for the rest, devices, which part of an array."""

    workers: int = 1
    host_workers: int = 1
    devices: tuple[str, ...] = ("cpu",)
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank {self.rank} of {self.world_size}: ranks count from 0")
        if self.workers < 1 or self.host_workers < 1:
            raise InputError(f"{self.workers} workers; give at least 1")

    def executor(self, *, models: bool) -> Executor:
        """Return the executor for a pass of models, or for any other pass."""
        count = self.workers if models else self.host_workers
        return Serial() if count == 1 else Processes(count)


def advance(plan: Plan, ledger: Ledger, resources: Resources, progress: Progress) -> bool:
    """Do what is missing of a plan. Returns whether all of it is done now.

    A rank of a job array does its own slice first, then what others have left; see `ranks`.
    """
    reader = RunReader(ledger, plan)
    for stages in plan.passes():
        if is_barrier(stages[0].stage):
            if plan.missing(ledger, stages[0]):
                with progress(stages[0].stage.name, rows_of(plan.shards, ledger)) as told:
                    solve_barrier(reader, stages[0], told)
        else:
            run_pass(plan, ledger, stages, resources, progress)
        if any(plan.missing(ledger, planned) for planned in stages):
            return False
    return True


def check_models(plan: Plan, ledger: Ledger) -> bool:
    """Load each model that has work to do, once, before the download and not after it.

    Returns whether there is any.

    Raises:
        ModelError: a checkpoint is incomplete or of the wrong kind.
    """
    found = False
    with contextlib.ExitStack() as held:  # stages of one model load it once
        for planned in plan.stages:
            stage = planned.stage
            if is_barrier(stage) or stage.resource != "model" or not plan.missing(ledger, planned):
                continue
            held.enter_context(stage.open())
            found = True
    return found


def precision_hint(
    models: Sequence[ModelRef], precisions: Sequence[Precision], devices: Sequence[str]
) -> str | None:
    """Return a hint for large models at fp32 where bf16 is much faster, or None.

    It is never chosen for them: it changes last bits, and with them the identity of every caption
    and score, so that machines of one run that differ would each compute their own.
    """
    if "fp32" not in precisions or max(map(weight_bytes, models), default=0) < _LARGE_MODEL_BYTES:
        return None
    if devices[0] == "cpu":
        from capfilt.models.compute.packed_linear import fast_bf16_cpu

        if not fast_bf16_cpu():
            return None
    return (
        "hint: this machine multiplies bf16 matrices itself; --precision bf16 makes captioning and "
        "matching several times faster (it is part of the run's identity: decide before you begin)"
    )


def bf16_warning(precisions: Sequence[Precision], devices: Sequence[str]) -> str | None:
    """Return a warning for bf16 on a processor that has no units for it, or None."""
    if "bf16" not in precisions or devices[0] != "cpu":
        return None
    from capfilt.models.compute.packed_linear import fast_bf16_cpu

    if fast_bf16_cpu():
        return None
    return (
        "warning: this processor has no units for bf16 (AVX512-BF16, AMX) and imitates it, many "
        "times slower than fp32; leave --precision bf16 out, or use a GPU"
    )


def run_pass(
    plan: Plan,
    ledger: Ledger,
    stages: tuple[PlannedStage, ...],
    resources: Resources,
    progress: Progress,
) -> None:
    """Run one pass over the shards that miss something of it, this rank's own first."""
    missing = missing_of_pass(plan, ledger, stages)
    if resources.world_size > 1:
        mine = rank_order(plan.shards, missing, resources.rank, resources.world_size)
    else:
        mine = from_own_place(missing)
    if not mine:
        return
    label = "+".join(planned.stage.name for planned in stages)
    job = PassJob(str(ledger.root), plan, stages, resources.devices)
    with progress(label, rows_of(mine, ledger)) as told:
        resources.executor(models=runs_models(stages)).run(job, mine, told)


def runs_models(stages: Sequence[PlannedStage]) -> bool:
    """Say whether a pass needs a device."""
    return any(not is_barrier(p.stage) and p.stage.resource == "model" for p in stages)


def missing_of_pass(plan: Plan, ledger: Ledger, stages: Sequence[PlannedStage]) -> list[str]:
    """Return the shards that miss at least one of these stages, in order."""
    wanted: set[str] = set()
    for planned in stages:
        wanted.update(plan.missing(ledger, planned))
    return [shard for shard in plan.shards if shard in wanted]


def choose_devices(wanted: str) -> tuple[str, ...]:
    """Turn `auto`, `cpu`, `cuda` or `cuda:1,cuda:3` into devices.

    `auto` is every CUDA device where there is one, otherwise the CPU.

    Raises:
        InputError: a CUDA device is asked for and there is none.
    """
    if wanted == "cpu":
        return ("cpu",)
    import torch

    count = torch.cuda.device_count()
    if wanted in {"auto", "cuda"}:
        if count == 0 and wanted == "cuda":
            raise InputError("--device cuda: torch sees no CUDA device; use --device cpu")
        return tuple(f"cuda:{i}" for i in range(count)) or ("cpu",)
    devices = tuple(part.strip() for part in wanted.split(","))
    for device in devices:
        if device not in {f"cuda:{i}" for i in range(count)}:
            raise InputError(f"--device {device!r}: there are {count} CUDA devices, from cuda:0")
    return devices


def choose_workers(wanted: int | None, models: Sequence[ModelRef], devices: Sequence[str]) -> int:
    """Return the number of worker processes: one a device, or as many as cores and memory bear."""
    if wanted is not None:
        return wanted
    if devices[0] != "cpu":
        return len(devices)
    each = (
        2 * sum(weight_bytes(model) for model in models) + _WORKER_OVERHEAD_BYTES
    )  # fp16 files become fp32 in memory
    return max(1, min(_cores(), int(_available_bytes() * _MEMORY_SHARE / each)))


def choose_host_workers(wanted: int | None) -> int:
    """Return the number of processes for passes without models: the download and the policy."""
    return wanted or min(_cores(), _MOST_HOST_WORKERS)


def _cores() -> int:
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _available_bytes() -> int:
    """Return the memory that is free for us, or a guess where the system does not say."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    return 8_000_000_000
