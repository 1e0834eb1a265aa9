"""Decoding a batch of encoded images for a model, and beginning with the next batch meanwhile."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from capfilt.models.pixels import Framing, UndecodableImage, load_rgb
from capfilt.models.protocols import Pixels

_MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """A transform that looks at the column `image`, and can decode it ahead of its turn.

    `threads` decode ahead, none where it is 0: on a CPU the models use every core already, and
    decoding ahead would only take turns with them.
    """

    run: Callable[[pa.RecordBatch], pa.RecordBatch]
    side: int
    threads: int
    framing: Framing = "squash"

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the added columns."""
        return self.run(batch)

    def ahead(self, batch: pa.RecordBatch) -> None:
        """Begin to decode a batch that comes next; what it gives is found by `decode_rows`."""
        if not self.threads:
            return
        for data in batch.column("image").to_pylist():
            if data is not None:
                _pool(self.threads).submit(_decoded_quietly, data, self.side, self.framing)


def threads_for(device: str, devices: int = 1) -> int:
    """Return how many threads decode ahead for a worker on `device`."""
    if device == "cpu":
        return 0
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // max(1, devices) - 1))


def rows_for(device: str) -> int:
    """Return how many rows a model wants at a time: enough to keep a GPU's tiles full."""
    return 64 if device == "cpu" else 256


def decode_rows(
    column: pa.Array, side: int, framing: Framing = "squash"
) -> tuple[list[int], list[Pixels], list[str | None]]:
    """Decode the images of a column to (side, side, 3).

    Returns (places of the rows that have an image, their pixels, a reason for every row whose
    image cannot be decoded or None). A row without an image is in neither.
    """
    places: list[int] = []
    images: list[Pixels] = []
    errors: list[str | None] = [None] * len(column)
    for place, data in enumerate(column.to_pylist()):
        if data is None:
            continue
        try:
            images.append(load_rgb(data, side, framing))
            places.append(place)
        except UndecodableImage as error:
            errors[place] = str(error)
    return places, images, errors


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


def _decoded_quietly(data: bytes, side: int, framing: Framing) -> None:
    """Decode into the memo of `load_rgb`; whoever needs the picture is told what is wrong."""
    try:
        load_rgb(data, side, framing)
    except UndecodableImage:
        return
