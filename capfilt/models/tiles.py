"""Fixed compute shapes: why a neighbour cannot change a caption or a score.

A matrix product's last bits may depend on its shape, and a sampled token on the last bit of a
logit. So every forward pass runs at one shape, whatever the batch: images and texts are cut into
tiles of a fixed number of rows, and the last tile is filled up by repeating its first row. Within
a tile each row is computed alike wherever it stands (a test holds this for the kernels in use),
and one thread computes it, since the way that threads share a product depends on their number.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def tiles(rows: Sequence[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Yield (tile of exactly `size` rows, how many of them are real)."""
    for start in range(0, len(rows), size):
        tile = list(rows[start : start + size])
        real = len(tile)
        yield tile + [tile[0]] * (size - real), real


@contextlib.contextmanager
def fixed_compute() -> Iterator[None]:
    """Run torch without gradients, on one CPU thread a process; more cores take more workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
