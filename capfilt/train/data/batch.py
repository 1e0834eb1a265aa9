"""What a training step is fed: pixels and texts of the same rows, and what was left out."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

# CLIP's, which BLIP uses (BLIP repository, data/__init__.py).
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Skip:
    """A row that gave no sample: its key and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples: `pixels` (B, side, side, 3) uint8, and texts, keys and origins of the same rows.

    B is smaller than asked for by the rows in `skipped`, and in the last batch of all. `others`:
    further texts of each image, as many for all. `hard_negatives`: a text that is false of the
    image, where the data have one.
    """

    pixels: npt.NDArray[np.uint8]
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    origins: tuple[str, ...]
    skipped: tuple[Skip, ...] = ()
    others: tuple[tuple[str, ...], ...] = ()  # of length B, or empty where there are none
    hard_negatives: tuple[str | None, ...] = ()  # likewise

    def __len__(self) -> int:
        return len(self.texts)

    def padded(self, size: int) -> "Batch":
        """Return `size` samples, the first ones repeated where there are fewer.

        For losses that gather over processes and need batches of one size; a repeated sample has
        its own key twice, so it is no negative of itself.

        Raises:
            ValueError: there is no sample to repeat, or more than `size`.
        """
        if not 0 < len(self) <= size:
            raise ValueError(f"{len(self)} samples cannot be padded to {size}")
        places = [number % len(self) for number in range(size)]
        return replace(
            self,
            pixels=self.pixels[places],
            texts=tuple(self.texts[i] for i in places),
            keys=tuple(self.keys[i] for i in places),
            origins=tuple(self.origins[i] for i in places),
            others=tuple(self.others[i] for i in places if self.others),
            hard_negatives=tuple(self.hard_negatives[i] for i in places if self.hard_negatives),
        )


def normalised(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return (B, 3, side, side) of (B, side, side, 3): in [0, 1], less CLIP's mean, by its std."""
    mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((scaled - mean) / std)
