"""CLIP behind the matcher's seam (arXiv 2103.00020): a cosine similarity, and no ITM."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize
from transformers import CLIPModel

from capfilt.models.compute.buckets import Bucket, ImageMemo, States, padded_buckets
from capfilt.models.compute.loading import Normaliser, load_checkpoint, load_tokenizer
from capfilt.models.compute.tiles import Tiled, TileSizes, fixed_compute
from capfilt.models.families import ModelKind
from capfilt.models.pixels import Framing
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import ModelRef, Precision

_TEXT_LENGTHS: Final = (12, 20, 32, 48)  # and the model's own limit, 77


class ClipMatcher(Tiled):
    """Scores texts by the cosine of image and text embedding, as `itc_score`; `itm_score` is NaN.

    Texts are taken as they are, cut at the model's limit with the end token kept. Images are
    resized by their shorter edge and cropped at the centre, as CLIP's own processor does.
    """

    framing: Framing = "crop"

    def __init__(self, ref: ModelRef, device: str = "cpu", precision: Precision = "fp32") -> None:
        self._model = load_checkpoint(CLIPModel, ref, device, precision)
        self._tokenizer = load_tokenizer(ref, ModelKind.CLIP_MATCHER)
        self._pixels = Normaliser(ref, ModelKind.CLIP_MATCHER, device, self._model.dtype)
        self._device, config = device, self._model.config
        limit = int(config.text_config.max_position_embeddings)
        self._lengths = (*(n for n in _TEXT_LENGTHS if n < limit), limit)
        vision = config.vision_config
        tokens = (int(vision.image_size) // int(vision.patch_size)) ** 2 + 1
        super().__init__(TileSizes.of(tokens, int(config.text_config.hidden_size), device))
        self._memo = ImageMemo(self._encode)

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return self._pixels.side

    def match(
        self, images: Sequence[Pixels], texts: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Score each image with its own texts; see `protocols.Matcher`. ITM is NaN throughout."""
        with fixed_compute():
            return self.fitting(lambda: self._matched(images, texts))

    def embed(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Return image embeddings (B, D), L2-normalised."""
        if not images:
            return np.zeros((0, int(self._model.config.projection_dim)), np.float32)
        with fixed_compute():
            found = self.fitting(lambda: self._memo.of(images, self.sizes.images))
            vectors: npt.NDArray[np.float32]
            vectors = torch.stack([features for (features,) in found]).float().cpu().numpy()
        return vectors

    def _matched(
        self, images: Sequence[Pixels], texts: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], list[list[float]]]:
        itm = [[float("nan")] * len(own) for own in texts]
        itc = [[float("nan")] * len(own) for own in texts]
        seen = self._memo.of(images, self.sizes.images)
        for bucket in self._buckets(texts):
            image = torch.stack([seen[place][0] for place, _ in bucket.places])
            cosines = (self._text_features(bucket) * image).float().sum(-1).tolist()
            for (place, number), cosine in list(zip(bucket.places, cosines, strict=True))[
                : bucket.real
            ]:
                itc[place][number] = cosine
        return itm, itc

    def _encode(self, images: list[Pixels]) -> States:
        pooled = self._model.vision_model(pixel_values=self._pixels(images)).pooler_output
        return (normalize(self._model.visual_projection(pooled), dim=-1),)

    def _buckets(self, texts: Sequence[Sequence[str]]) -> list[Bucket]:
        def encode(own: list[str]) -> list[list[int]]:
            encoded = self._tokenizer(own, truncation=True, max_length=self._lengths[-1])
            ids: list[list[int]] = encoded.input_ids
            return ids

        there = [[text.strip() for text in own] for own in texts]
        return padded_buckets(there, encode, self._lengths, self.sizes.texts, self._device)

    def _text_features(self, bucket: Bucket) -> torch.Tensor:
        """Return text embeddings (tile, D), L2-normalised."""
        pooled = self._model.text_model(
            input_ids=bucket.ids, attention_mask=bucket.mask
        ).pooler_output
        return normalize(self._model.text_projection(pooled), dim=-1)
