"""The jobs of an array, a Kubernetes indexed Job or a SkyPilot cluster over one run folder.

Each rank does its own slice of the shards first. Then it takes what others have left, each rank in
an order of its own, so that a rank that died or has not begun holds nobody up; and whichever finds
the inputs of a barrier or of the export there does that too. No rank waits for another: publishing
is first-wins, so that at worst a few shards at the end of a pass are computed twice.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from capfilt.errors import InputError


@dataclass(frozen=True, slots=True)
class Array:
    """Variables by which a launcher tells a job its number, the first number, and how many."""

    name: str
    number: str
    count: str
    first: str | None = None


ARRAYS: Final = (
    Array("SLURM array", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    Array("Kubernetes indexed Job", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    Array("SkyPilot", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    Array("SLURM", "SLURM_PROCID", "SLURM_NTASKS"),
    Array("launcher", "RANK", "WORLD_SIZE"),
)


def rank_of(environment: Mapping[str, str], world_size: int | None = None) -> tuple[int, int]:
    """Return (rank, world size) as the launcher of this job tells it; `world_size` goes before.

    Raises:
        InputError: there is no such launcher, or it does not tell how many jobs there are.
    """
    for array in ARRAYS:
        if array.number in environment:
            number = _whole(environment, array.number)
            first = _whole(environment, array.first) if array.first in environment else 0
            if world_size is None and array.count not in environment:
                raise InputError(
                    f"--engine ranks: {array.number} is set and {array.count} is not; give "
                    "--world-size, the number of jobs"
                )
            return number - first, world_size or _whole(environment, array.count)
    known = ", ".join(array.number for array in ARRAYS)
    raise InputError(
        f"--engine ranks finds none of {known}; start it by such a launcher, or give --rank and "
        "--world-size"
    )


def _whole(environment: Mapping[str, str], name: str | None) -> int:
    text = environment[name or ""]
    if not text.strip().isdecimal():
        raise InputError(f"{name} is {text!r}, which is no number of a job")
    return int(text)


def rank_slice(shards: Sequence[str], rank: int, world_size: int) -> list[str]:
    """Return the shards of one job of a job array: every `world_size`-th, from `rank`."""
    return list(shards[rank::world_size])


def rank_order(
    shards: Sequence[str], missing: Collection[str], rank: int, world_size: int
) -> list[str]:
    """Return the missing shards in the order in which a rank does them: its own, then others'."""
    # The slice is cut from all shards, so that ranks do not shift as others finish theirs.
    left = set(missing)
    own = [shard for shard in rank_slice(shards, rank, world_size) if shard in left]
    others = left.difference(own)
    return own + sorted(others, key=lambda shard: _place(shard, rank))


def _place(shard: str, rank: int) -> bytes:
    return hashlib.blake2b(f"{rank} {shard}".encode(), digest_size=8).digest()
