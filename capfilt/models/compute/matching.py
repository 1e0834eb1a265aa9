"""What the matchers of all families share: shapes, buckets of texts, and states of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from capfilt.models.compute.buckets import Bucket, ImageMemo, States, padded_buckets
from capfilt.models.compute.loading import Normaliser
from capfilt.models.compute.tiles import Tiled, TileSizes
from capfilt.models.compute.transfer import PixelUpload
from capfilt.models.filter_text import normalise_for_filter
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Precision

Scores = tuple[list[list[float]], list[list[float]]]


class TiledMatcher(Tiled):
    """A matcher that computes in tiles.

    A family says what it keeps of images (`_encode`), how that becomes an embedding (`_vectors`),
    and how texts are scored against it (`_scores_of`, or `_matched` as a whole).

    pixels, tokenizer: from arrays and texts to what the model takes.
    lengths: to which texts are padded, in tokens; the last one is where they are cut.
    width: of an image's embedding.
    """

    def __init__(
        self,
        pixels: Normaliser,
        tokenizer: Any,  # transformers' tokenizers are untyped
        sizes: TileSizes,
        lengths: tuple[int, ...],
        width: int,
        device: str,
        precision: Precision,
    ) -> None:
        super().__init__(sizes, precision)
        self._pixels, self._tokenizer, self._device = pixels, tokenizer, device
        self._lengths, self._width = lengths, width
        self._memo = ImageMemo(self._encode)

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return self._pixels.side

    def match(self, images: Sequence[Pixels], texts: Sequence[Sequence[str]]) -> Scores:
        """Score each image with its own texts; see `protocols.Matcher`."""
        with self.computing():
            return self.fitting(lambda: self._matched(images, texts))

    def embed(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Return image embeddings (B, D), L2-normalised."""
        if not images:
            return np.zeros((0, self._width), np.float32)
        with self.computing():
            vectors: npt.NDArray[np.float32]
            vectors = self.fitting(lambda: self._vectors(self._states(images))).cpu().numpy()
        return vectors

    def _matched(self, images: Sequence[Pixels], texts: Sequence[Sequence[str]]) -> Scores:
        states, scores = self._states(images), []
        buckets = self._buckets(texts)
        for bucket in buckets:
            own = [states[place] for place, _ in bucket.places]
            parts = [torch.stack(part) for part in zip(*own, strict=True)]
            scores.append(self._scores_of(bucket, parts))
        return scattered(texts, buckets, scores)

    def _states(self, images: Sequence[Pixels]) -> list[States]:
        return self._memo.of(images, self._uploaded)

    def _uploaded(self, images: Sequence[Pixels]) -> PixelUpload:
        return PixelUpload(images, self.sizes.images, self._device)

    def _buckets(self, texts: Sequence[Sequence[str]]) -> list[Bucket]:
        """Tokenise, and group by padded length; a text of which nothing is left is not scored."""

        def encode(own: list[str]) -> list[list[int]]:
            encoded = self._tokenizer(own, truncation=True, max_length=self._lengths[-1])
            ids: list[list[int]] = encoded.input_ids
            return ids

        read = [[self._as_read(text) for text in own] for own in texts]
        return padded_buckets(read, encode, self._lengths, self.sizes.texts, self._device)

    def _as_read(self, text: str) -> str:
        """Return what a model of BLIP's line reads of a text."""
        return normalise_for_filter(text)

    def _encode(self, images: torch.Tensor) -> States:
        """Return what is kept of a tile of images (B, side, side, 3), each part (B, …)."""
        raise NotImplementedError

    def _vectors(self, states: list[States]) -> torch.Tensor:
        """Return the embeddings (B, D) of B images, as floats."""
        raise NotImplementedError

    def _scores_of(self, bucket: Bucket, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return ITM and ITC (2, tile) of the texts; `parts` are their images', (tile, …)."""
        raise NotImplementedError


def scattered(
    texts: Sequence[Sequence[str]], buckets: Sequence[Bucket], scores: Sequence[torch.Tensor]
) -> Scores:
    """Put ITM and ITC (2, tile) of each bucket where its texts stand; NaN for texts without.

    The device is read once, when all of it has been given to it.
    """
    itm, itc = ([[float("nan")] * len(own) for own in texts] for _ in range(2))
    if not buckets:
        return itm, itc
    found = torch.cat(list(scores), dim=1).tolist()
    places = [place for bucket in buckets for place in bucket.places]
    real = [n < bucket.real for bucket in buckets for n in range(len(bucket.places))]
    for (image, number), counts, *both in zip(places, real, *found, strict=True):
        if counts:
            itm[image][number], itc[image][number] = both
    return itm, itc
