"""Fixed compute shapes: why a neighbour cannot change a caption or a score.

A matrix product's last bits may depend on its shape, and a sampled token on the last bit of a
logit. So every forward pass runs at one shape, whatever the batch: images and texts are cut into
tiles of a fixed number of rows, and the last tile is filled up by repeating its first row. Within
a tile each row is computed alike wherever it stands (a test holds this for the kernels in use),
and one thread computes it, since the way that threads share a product depends on their number.
The sizes follow from the model and the kind of device alone, never from what happens to be free.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import torch

from capfilt.errors import ModelError
from capfilt.models.recipe import Precision

T = TypeVar("T")

# Tokens of one image tile: enough rows for the matrix units at their full rate, and few enough
# that an activation stays below the size from which malloc gives every buffer fresh pages.
_CPU_TOKENS: Final = 2400
_CUDA_TOKENS: Final = 20_000
_WIDE: Final = 512
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TileSizes:
    """Rows of the fixed shapes: images of a vision pass, images that are decoded at a time, texts.

    `slots` is how many images a decoding step serves.
    """

    images: int
    slots: int
    texts: int

    @classmethod
    def of(cls, tokens: int, width: int, device: str) -> Self:
        """Choose for a model of `tokens` an image and a text width of `width`."""
        cuda = device.startswith("cuda")
        images = max(1, min(64, (_CUDA_TOKENS if cuda else _CPU_TOKENS) // tokens))
        if cuda:
            return cls(images, 8 * images, 256)
        # A wide text tower is bound by reading its weights, a small one by the number of calls.
        return cls(images, min(64, 4 * images), 16 if width >= _WIDE else 64)

    def halved(self) -> Self:
        """Return half of each, at least one."""
        half = [max(1, size // 2) for size in (self.images, self.slots, self.texts)]
        return type(self)(*half)


def tiles(rows: Sequence[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Yield (tile of exactly `size` rows, how many of them are real)."""
    for start in range(0, len(rows), size):
        tile = list(rows[start : start + size])
        real = len(tile)
        yield tile + [tile[0]] * (size - real), real


class Tiled:
    """Something that computes in tiles, and makes do with smaller ones where memory is short.

    Smaller tiles are other shapes, so from there on last bits may differ from those of a device
    with more memory; it is said once.
    """

    def __init__(self, sizes: TileSizes, precision: Precision) -> None:
        self.sizes, self._precision = sizes, precision

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that all of its arithmetic runs in."""
        return fixed_compute(self._precision)

    def fitting(self, work: Callable[[], T]) -> T:
        """Return work(); halve the tiles and begin again each time that memory runs out.

        Raises:
            ModelError: not even the smallest tiles fit.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                if self.sizes == TileSizes(1, 1, 1):
                    raise ModelError(
                        "the model and a single image do not fit into the device's memory; "
                        "take a smaller model, --precision bf16 or another device"
                    ) from error
            # Outside the handler, which holds on to the tensors of the failed attempt.
            self.sizes = self.sizes.halved()
            self.resized()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("out of memory: going on with %s", self.sizes)

    def resized(self) -> None:
        """Follow `sizes`; a subclass that keeps buffers makes them anew."""


@contextlib.contextmanager
def fixed_compute(precision: Precision = "fp32") -> Iterator[None]:
    """Run torch without gradients, on one CPU thread a process; more cores take more workers.

    A GPU rounds the factors of fp32 products to 10 bits at tf32, and only there: left alone, torch
    would do so in convolutions at fp32 too.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_num_threads(), products.allow_tf32, convolutions.allow_tf32
    torch.set_num_threads(1)
    products.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before[0])
        products.allow_tf32, convolutions.allow_tf32 = before[1:]
