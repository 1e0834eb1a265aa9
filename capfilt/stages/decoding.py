"""The pictures of one slice of a shard: the one owner of what is decoded of them.

A pass hands its stages one `SliceImages`. It decodes a picture once for each side and framing that
some stage asks for, and can begin before it is asked. What models compute of a picture they keep as
long as its pixels live (`compute.buckets.ImageMemo`), so all of it goes with the slice.
"""

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final, NamedTuple

import pyarrow as pa

from capfilt.models.pixels import Framing, UndecodableImage, load_rgb
from capfilt.models.protocols import Captioner, Matcher, Pixels, framing_of

_MOST_THREADS: Final = 16
_Outcome = Pixels | UndecodableImage


class Decoded(NamedTuple):
    """Pictures of a slice that could be decoded.

    `places` are their rows, `images` their pixels (side, side, 3). `errors` has an entry a row: why
    its picture cannot be decoded, or None; a row without a picture has None and no place.
    """

    places: list[int]
    images: list[Pixels]
    errors: list[str | None]


class SliceImages:
    """Encoded pictures, a null where a row has none; decoded when asked for, and once."""

    def __init__(self, column: pa.Array) -> None:
        self._encoded: list[bytes | None] = column.to_pylist()
        self._begun: dict[tuple[int, Framing], dict[int, Future[_Outcome]]] = {}
        self._decoded: dict[tuple[int, Framing], Decoded] = {}

    def begin(self, side: int, framing: Framing, pool: Executor) -> None:
        """Begin to decode for a side and framing in `pool`, unless that has begun already."""
        wanted = (side, framing)
        if wanted not in self._begun and wanted not in self._decoded:
            self._begun[wanted] = {
                row: pool.submit(_outcome, data, side, framing)
                for row, data in enumerate(self._encoded)
                if data is not None
            }

    def decoded(self, side: int, framing: Framing = "squash") -> Decoded:
        """Return the pictures at a side and framing; the same arrays whenever it is asked."""
        wanted = (side, framing)
        if wanted not in self._decoded:
            begun = self._begun.pop(wanted, {})
            self._decoded[wanted] = self._all(side, framing, begun)
        return self._decoded[wanted]

    def _all(self, side: int, framing: Framing, begun: dict[int, "Future[_Outcome]"]) -> Decoded:
        found = Decoded([], [], [None] * len(self._encoded))
        for row, data in enumerate(self._encoded):
            if data is None:
                continue
            outcome = begun[row].result() if row in begun else _outcome(data, side, framing)
            if isinstance(outcome, UndecodableImage):
                found.errors[row] = str(outcome)
            else:
                found.places.append(row)
                found.images.append(outcome)
        return found


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """A transform that looks at the column `image`, at one side and framing.

    A pass calls it with the slice's pictures; called with a batch alone it decodes its own.
    """

    run: Callable[[pa.RecordBatch, Decoded], pa.RecordBatch]
    side: int
    framing: Framing = "squash"

    def __call__(self, batch: pa.RecordBatch, images: SliceImages | None = None) -> pa.RecordBatch:
        """Return the added columns."""
        shared = images or SliceImages(batch.column("image"))
        return self.run(batch, shared.decoded(self.side, self.framing))


def decoded_for(model: Captioner | Matcher, batch: pa.RecordBatch) -> Decoded:
    """Decode a batch's pictures as a model wants them."""
    return SliceImages(batch.column("image")).decoded(model.side, framing_of(model))


def threads_for(device: str, workers: int = 1) -> int:
    """Return how many threads decode ahead for a worker on `device`.

    None on a CPU: models use every core already, and decoding would only take turns with them.
    """
    if device == "cpu":
        return 0
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // max(1, workers) - 1))


def rows_for(device: str) -> int:
    """Return how many rows a model wants at a time: enough to keep a GPU's tiles full."""
    return 64 if device == "cpu" else 512


def _outcome(data: bytes, side: int, framing: Framing) -> _Outcome:
    try:
        return load_rgb(data, side, framing)
    except UndecodableImage as error:
        return error
