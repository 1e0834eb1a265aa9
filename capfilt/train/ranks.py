"""Which of torchrun's processes this one is; alone, it is the first of one. Never imports torch."""

import os


def rank() -> int:
    """Return the number of this process among all, over all machines."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return how many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def by_torchrun() -> bool:
    """Say whether torchrun began this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
