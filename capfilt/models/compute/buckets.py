"""Texts in tiles of a fixed shape, and what is kept of images between the stages of a pass."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from capfilt.models.compute.tiles import tiles
from capfilt.models.compute.transfer import PixelUpload, indices, to_device
from capfilt.models.protocols import Pixels

# What a model computes of an image, on a tile: tensors whose first dimension are the images.
States = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A tile of texts of one padded length.

    `places` are (image, number of the text) of the `real` ones, and `images` (tile,) the same
    images on the device; `ids` and `mask` (1 where a token is, 0 where padding) are (tile, length).
    """

    places: list[tuple[int, int]]
    real: int
    images: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor


def padded_buckets(
    texts: Sequence[Sequence[str]],
    encode: Callable[[list[str]], list[list[int]]],
    lengths: Sequence[int],
    size: int,
    device: str,
) -> list[Bucket]:
    """Tokenise, and group by padded length; empty texts are left out.

    A text is padded to the first of `lengths` that holds it, so its compute shape is its own;
    `encode` must give at most the last of them.
    """
    scored = [(i, n, text) for i, own in enumerate(texts) for n, text in enumerate(own) if text]
    if not scored:
        return []
    groups: dict[int, list[tuple[tuple[int, int], list[int]]]] = {}
    for (image, number, _), ids in zip(scored, encode([t for *_, t in scored]), strict=True):
        length = next(n for n in lengths if n >= len(ids))
        groups.setdefault(length, []).append(((image, number), ids))
    return [
        _bucket(tile, real, length, device)
        for length, group in groups.items()
        for tile, real in tiles(group, size)
    ]


def _bucket(
    tile: list[tuple[tuple[int, int], list[int]]], real: int, length: int, device: str
) -> Bucket:
    # What stands in a masked place is never looked at; 0 is a token of every vocabulary.
    ids = [[*own, *[0] * (length - len(own))] for _, own in tile]
    mask = [[1] * len(own) + [0] * (length - len(own)) for _, own in tile]
    return Bucket(
        [place for place, _ in tile],
        real,
        indices([image for (image, _), _ in tile], device),
        to_device(torch.tensor(ids), device),
        to_device(torch.tensor(mask), device),
    )


class ImageMemo:
    """What a model computes of images, once for all stages that look at the same pixels.

    An array of pixels is the key. Its entry lives as long as the array, which its slice of a pass
    owns, so the memo needs no size of its own.
    """

    def __init__(self, encode: Callable[[torch.Tensor], States]) -> None:
        self._encode = encode
        self._states: dict[int, tuple[weakref.ref[Pixels], States]] = {}

    def __len__(self) -> int:
        """Return how many images it has states of."""
        return len(self._states)

    def of(
        self, images: Sequence[Pixels], upload: Callable[[Sequence[Pixels]], PixelUpload]
    ) -> list[States]:
        """Return the states of each image, encoding those that are not at hand in tiles."""
        fresh = {id(image): image for image in images if id(image) not in self._states}
        left = iter(fresh.values())
        for pixels, real in upload(list(fresh.values())):
            encoded = self._encode(pixels)
            for place, image in enumerate(islice(left, real)):
                self._keep(image, tuple(part[place] for part in encoded))
        return [self._states[id(image)][1] for image in images]

    def _keep(self, image: Pixels, states: States) -> None:
        place = id(image)
        alive = weakref.ref(image, lambda _: self._states.pop(place, None))
        self._states[place] = (alive, states)
