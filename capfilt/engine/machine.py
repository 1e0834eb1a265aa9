"""What this machine has: devices, and how many processes its cores and its memory bear."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from capfilt.errors import InputError
from capfilt.models.checkpoints import weight_bytes
from capfilt.models.recipe import ModelRef

_WORKER_OVERHEAD_BYTES: Final = 1_500_000_000  # Python, torch, a slice of pictures and states
_MEMORY_SHARE: Final = 0.7
_MOST_HOST_WORKERS: Final = 16  # each downloads with dozens of threads
# While one process decodes, tokenises and writes, the other one computes.
_WORKERS_A_DEVICE: Final = 2
_DEVICE_WORK_BYTES: Final = 16_000_000_000  # caches, states and keys of a slice beside the weights
_CORES_A_WORKER: Final = 2  # one launches kernels, the other ones decode


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
    """Return the number of worker processes that cores and memory bear, at most two a GPU."""
    if wanted is not None:
        return wanted
    weights = 2 * sum(map(weight_bytes, models))  # fp16 files become fp32 in memory
    by_memory = int(_available_bytes() * _MEMORY_SHARE / (weights + _WORKER_OVERHEAD_BYTES))
    if devices[0] == "cpu":
        return max(1, min(cores(), by_memory))
    on_each = min(_device_bytes(device) for device in devices) // (weights + _DEVICE_WORK_BYTES)
    wished = len(devices) * max(1, min(_WORKERS_A_DEVICE, on_each))
    return max(len(devices), min(wished, by_memory, cores() // _CORES_A_WORKER))


def choose_host_workers(wanted: int | None) -> int:
    """Return the number of processes for passes without models: the download and the policy."""
    return wanted or min(cores(), _MOST_HOST_WORKERS)


def cores() -> int:
    """Return how many cores this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device_bytes(device: str) -> int:
    """Return the memory that a GPU has, used or not: what is free changes from run to run."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def _available_bytes() -> int:
    """Return the memory that is free for us, or a guess where the system does not say."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    return 8_000_000_000
