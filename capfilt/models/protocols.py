"""The two model seams. Every model family stands behind these."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from capfilt.models.pixels import Framing

Pixels = npt.NDArray[np.uint8]  # (side, side, 3) RGB, as `images.load_rgb` gives them


class Captioner(Protocol):
    """Writes texts for images."""

    @property
    def side(self) -> int:
        """Side in pixels of the square images that it takes."""

    def caption(self, images: Sequence[Pixels], keys: Sequence[str]) -> list[list[str]]:
        """Return K texts for each of B images: a function of an image and its sample key alone."""


class Matcher(Protocol):
    """Scores texts against images."""

    @property
    def side(self) -> int:
        """Side in pixels of the square images that it takes."""

    def match(
        self, images: Sequence[Pixels], texts: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Score B images with their own texts.

        Returns (ITM probabilities in [0, 1], ITC cosine similarities in [-1, 1]), each shaped as
        `texts`; NaN for a text of which the normalisation leaves nothing.
        """

    def embed(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Return L2-normalised ITC image embeddings, (B, projection size)."""


@runtime_checkable
class Framed(Protocol):
    """A model that says how it wants images to become squares; one that does not, squashes."""

    @property
    def framing(self) -> Framing:
        """How an image becomes a square."""


def framing_of(model: Captioner | Matcher) -> Framing:
    """Return how a model wants images to become squares."""
    return model.framing if isinstance(model, Framed) else "squash"
