"""How busy the GPUs were: the share of time in which a kernel ran, as NVIDIA's driver counts it.

The driver counts for all processes of a device together, so one process looks for all workers.
"""

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final

SAMPLES_A_SECOND: Final = 2
_COMMAND: Final = (
    "nvidia-smi",
    "--query-gpu=uuid,utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
    f"--loop-ms={1000 // SAMPLES_A_SECOND}",
)
_MIB: Final = 2**20


@dataclass(slots=True)
class DeviceUse:
    """What was seen of one device: busy shares in percent, and the most bytes that were in use."""

    busy: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def share(self) -> float:
        """The mean busy share in [0, 1], from the first moment with work to the last."""
        at_work = [place for place, percent in enumerate(self.busy) if percent > 0]
        if not at_work:
            return 0.0
        seen = self.busy[at_work[0] : at_work[-1] + 1]
        return sum(seen) / len(seen) / 100


@contextlib.contextmanager
def watched(devices: Sequence[str]) -> Iterator[dict[str, DeviceUse]]:
    """Yield what is seen of CUDA devices while the context is open; nothing without a driver.

    A device of which the driver tells nothing (MIG slices, other makers) has no entry.
    """
    seen: dict[str, DeviceUse] = {}
    names = {_uuid(device): device for device in devices if device.startswith("cuda")}
    if not names:
        yield seen
        return
    try:
        driver = subprocess.Popen(
            _COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        yield seen
        return
    reader = threading.Thread(target=_read, args=(driver.stdout, names, seen), daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        driver.kill()
        reader.join()
        driver.wait()
        if driver.stdout is not None:
            driver.stdout.close()


def told(label: str, seen: dict[str, DeviceUse]) -> list[str]:
    """Return a line a device: how busy it was, and how much of its memory was in use."""
    return [
        f"{label}: {device} was busy {100 * use.share:.0f} % of the time, "
        f"{use.peak_bytes / 1e9:.1f} GB of its memory in use at most"
        for device, use in sorted(seen.items())
        if use.busy
    ]


def _read(lines: IO[str] | None, names: dict[str, str], seen: dict[str, DeviceUse]) -> None:
    for line in lines or ():
        uuid, *figures = (part.strip() for part in line.split(","))
        device = names.get(uuid.removeprefix("GPU-"))
        if device is None or len(figures) != 2 or not all(f.isdecimal() for f in figures):
            continue
        use = seen.setdefault(device, DeviceUse())
        use.busy.append(float(figures[0]))
        use.peak_bytes = max(use.peak_bytes, int(figures[1]) * _MIB)


def _uuid(device: str) -> str:
    import torch

    return str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
