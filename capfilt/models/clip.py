"""CLIP behind the matcher's seam (arXiv 2103.00020): a cosine similarity, and no ITM."""

from typing import Final

import torch
from torch.nn.functional import normalize
from transformers import CLIPModel

from capfilt.models.compute.buckets import Bucket, States
from capfilt.models.compute.loading import Normaliser, load_checkpoint, load_tokenizer
from capfilt.models.compute.matching import TiledMatcher
from capfilt.models.compute.tiles import TileSizes
from capfilt.models.families import ModelKind
from capfilt.models.pixels import Framing
from capfilt.models.recipe import ModelRef, Precision

_TEXT_LENGTHS: Final = (12, 20, 32, 48)  # and the model's own limit, 77


class ClipMatcher(TiledMatcher):
    """Scores texts by the cosine of image and text embedding, as `itc_score`; `itm_score` is NaN.

    Texts are taken as they are, cut at the model's limit with the end token kept. Images are
    resized by their shorter edge and cropped at the centre, as CLIP's own processor does.
    """

    framing: Framing = "crop"

    def __init__(self, ref: ModelRef, device: str = "cpu", precision: Precision = "fp32") -> None:
        self._model = load_checkpoint(CLIPModel, ref, device, precision)
        config, kind = self._model.config, ModelKind.CLIP_MATCHER
        limit, vision = int(config.text_config.max_position_embeddings), config.vision_config
        tokens = (int(vision.image_size) // int(vision.patch_size)) ** 2 + 1
        super().__init__(
            Normaliser(ref, kind, device, self._model.dtype),
            load_tokenizer(ref, kind),
            TileSizes.of(tokens, int(config.text_config.hidden_size), device),
            (*(n for n in _TEXT_LENGTHS if n < limit), limit),
            int(config.projection_dim),
            device,
            precision,
        )

    def _as_read(self, text: str) -> str:
        return text.strip()

    def _vectors(self, states: list[States]) -> torch.Tensor:
        return torch.stack([features for (features,) in states]).float()

    def _scores_of(self, bucket: Bucket, parts: list[torch.Tensor]) -> torch.Tensor:
        cosines = (self._text_features(bucket) * parts[0]).float().sum(-1)
        return torch.stack([torch.full_like(cosines, torch.nan), cosines])

    def _encode(self, images: torch.Tensor) -> States:
        pooled = self._model.vision_model(pixel_values=self._pixels(images)).pooler_output
        return (normalize(self._model.visual_projection(pooled), dim=-1),)

    def _text_features(self, bucket: Bucket) -> torch.Tensor:
        """Return text embeddings (tile, D), L2-normalised."""
        pooled = self._model.text_model(
            input_ids=bucket.ids, attention_mask=bucket.mask
        ).pooler_output
        return normalize(self._model.text_projection(pooled), dim=-1)
