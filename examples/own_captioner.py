"""A captioner of your own: it says how bright a picture is.

    capfilt run urls.csv --run DIR --captioner examples/own_captioner.py:Brightness
    capfilt status DIR --pipeline examples/own_captioner.py

The code of this file is part of what its captions are called by: changed code captions again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfilt import NO_CHECKPOINT, Caption, ModelRef


class Writer:
    """Writes a text for each picture; `side` is the side in pixels of what it looks at."""

    side = 32

    def caption(
        self, images: Sequence[npt.NDArray[np.uint8]], keys: Sequence[str]
    ) -> list[list[str]]:
        """Return the texts of each image: of the image and its key alone, never of the others."""
        return [[f"a picture of brightness {int(image.mean())}"] for image in images]


@dataclass(frozen=True)
class Brightness(Caption):
    """The recipe: its fields are its options; `model` is a checkpoint, where you have one."""

    model: ModelRef = NO_CHECKPOINT

    def captioner(self) -> Writer:
        """Load what writes the texts, on `self.device`."""
        return Writer()
