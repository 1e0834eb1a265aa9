"""What a command may use of this machine."""

from dataclasses import dataclass

from capfilt.engine import passes as engine
from capfilt.engine.passes import Resources
from capfilt.option import WORK, check_options, option
from capfilt.recipe.round import (
    Round,
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a command may use of this machine, and which job of an array it is."""

    workers: int | None = option(
        None,
        "Number of processes",
        panel=WORK,
        shown="as many as cores, or devices, and memory bear",
        at_least=1,
    )
    device: str = option("auto", "auto, cpu, cuda, or a list such as cuda:0,cuda:2", panel=WORK)
    rank: int = option(0, "Number of this job in a job array, from 0", panel=WORK, at_least=0)
    world_size: int = option(1, "Number of jobs in the array", panel=WORK, at_least=1)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_options(self)


def resources_for(recipe: Round, hardware: Hardware) -> Resources:
    """Return what a round may use: processes, devices and this rank's share.

    Raises:
        InputError: a device is not there.
    """
    devices = engine.choose_devices(hardware.device)
    workers = engine.choose_workers(hardware.workers, recipe.models, devices)
    host_workers = engine.choose_host_workers(hardware.workers)
    return Resources(workers, host_workers, devices, hardware.rank, hardware.world_size)
