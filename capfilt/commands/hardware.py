"""What a command may use of this machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from capfilt.engine.machine import choose_devices, choose_host_workers, choose_workers
from capfilt.engine.passes import Resources
from capfilt.engine.ranks import rank_of
from capfilt.engine.ray_cluster import connect
from capfilt.errors import InputError
from capfilt.option import WORK, check_options, option
from capfilt.recipe.round import Round


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
    engine: Literal["local", "ranks", "ray"] = option(
        "local",
        "local: this process and its workers; ranks: one of several jobs over a run folder, which "
        "its launcher numbers (SLURM array, Kubernetes indexed Job, SkyPilot); ray: actors of the "
        "cluster at RAY_ADDRESS, or of one on this machine",
        panel=WORK,
    )
    rank: int | None = option(
        None,
        "Number of this job, from 0, where no launcher tells it",
        panel=WORK,
        shown="0",
        at_least=0,
    )
    world_size: int | None = option(
        None,
        "Number of jobs over the run folder",
        panel=WORK,
        shown="1, or the launcher's",
        at_least=1,
    )

    def __post_init__(self) -> None:
        """Check the ranges, and that what was given has an effect."""
        check_options(self)
        if self.engine == "ray" and (self.rank is not None or self.world_size is not None):
            raise InputError("--rank and --world-size have no effect with --engine ray")

    def place(self, environment: Mapping[str, str]) -> tuple[int, int]:
        """Return rank and world size of this job.

        Raises:
            InputError: no launcher tells them where they are asked for.
        """
        if self.engine == "ranks" and self.rank is None:
            return rank_of(environment, self.world_size)
        return self.rank or 0, self.world_size or 1


def resources_for(recipe: Round, hardware: Hardware) -> Resources:
    """Return what a round may use: processes, devices and this rank's share.

    Raises:
        InputError: a device is not there.
    """
    if hardware.engine == "ray":
        return _on_ray(hardware)
    devices = choose_devices(hardware.device)
    workers = choose_workers(hardware.workers, recipe.models, devices)
    host_workers = choose_host_workers(hardware.workers)
    rank, world_size = hardware.place(os.environ)
    return Resources(workers, host_workers, devices, rank, world_size)


def _on_ray(hardware: Hardware) -> Resources:
    cluster = connect()
    devices = cluster.devices(hardware.device)
    workers, others = cluster.workers(hardware.workers, devices), hardware.workers
    return Resources(workers, cluster.host_workers(others), devices, cluster=cluster)
