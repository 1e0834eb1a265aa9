"""BLIP-2 behind the two seams (arXiv 2301.12597), on transformers' own modules.

What is computed once an image stays computed once: the vision tower and, for captions, the Q-Former
and the language model's pass over its 32 queries and the prompt; K captions share them.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch.nn.functional import normalize
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    PreTrainedModel,
)

from capfilt.errors import ModelError
from capfilt.models.compute.buckets import Bucket, States
from capfilt.models.compute.language import Prompt, ends, sample, search
from capfilt.models.compute.loading import Normaliser, load_checkpoint, load_tokenizer
from capfilt.models.compute.matching import TiledMatcher
from capfilt.models.compute.tiles import Tiled, TileSizes, tiles
from capfilt.models.compute.transfer import PixelUpload, to_device
from capfilt.models.compute.uniforms import uniforms
from capfilt.models.families import ModelKind
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Beam, CaptionerRecipe, ModelRef, Precision

# 32 tokens were the limit in training (the authors' code, `max_txt_len`).
TEXT_LENGTHS: Final = (8, 12, 16, 24, 32)


class Blip2Captioner(Tiled):
    """Writes K captions an image with a frozen language model, OPT or FLAN-T5 (section 3.2).

    Spaces around the prompt are cut: these tokenizers put a word's space before it. `lengths`
    count the prompt's tokens, with the one that the tokenizer adds, and the written ones; for
    FLAN-T5 too, which reads the prompt and does not repeat it.
    """

    kind: ClassVar[ModelKind] = ModelKind.BLIP2_CAPTIONER
    model_class: ClassVar[type[PreTrainedModel]] = Blip2ForConditionalGeneration

    def __init__(self, recipe: CaptionerRecipe, device: str = "cpu") -> None:
        ref = recipe.model
        self._model = load_checkpoint(self.model_class, ref, device, recipe.precision)
        keep_queries_fp32(self._model)
        self._tokenizer = load_tokenizer(ref, self.kind)
        self._pixels = Normaliser(ref, self.kind, device, self._model.vision_model.dtype)
        self._recipe, self._lengths, self._device = recipe, recipe.lengths, device
        self._prompt = self._prompt_of(recipe.prompt.strip())
        super().__init__(tile_sizes(self._model, device), recipe.precision)

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return self._pixels.side

    def caption(self, images: Sequence[Pixels], keys: Sequence[str]) -> list[list[str]]:
        """Return K texts for each image; see `protocols.Captioner`."""
        if not images:
            return []
        with self.computing():
            ids = self.fitting(lambda: self._written(images, keys)).tolist()
        return [
            [self._tokenizer.decode(one, skip_special_tokens=True).strip() for one in own]
            for own in ids
        ]

    def _prompt_of(self, text: str) -> Prompt:
        image = self._model.config.image_token_index
        placeholder = ends(self._model.language_model)[1] if image is None else int(image)
        prompt = Prompt(tuple(self._tokenizer(text).input_ids), placeholder)
        if prompt.steps(self._lengths) < 1:
            raise ModelError(
                f"the prompt takes {len(prompt.ids)} of at most {self._lengths.max_length} "
                "tokens; shorten it or raise the maximum length"
            )
        return prompt

    def _written(self, images: Sequence[Pixels], keys: Sequence[str]) -> torch.Tensor:
        """Return written token ids (B, K, steps)."""
        sent = PixelUpload(images, self.sizes.images, self._device)
        parts = [
            self._tile(pixels, tile)[:real]
            for (pixels, real), (tile, _) in zip(sent, tiles(keys, self.sizes.images), strict=True)
        ]
        return torch.cat(parts)

    def _tile(self, pixels: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        language, prompt = self._model.language_model, self._prompt
        queries = self._queries(pixels)
        recipe, lengths = self._recipe, self._lengths
        if isinstance(recipe.decoding, Beam):
            return search(language, queries, prompt, recipe.num_captions, recipe.decoding, lengths)
        noise = uniforms(recipe.seed, keys, recipe.num_captions, prompt.steps(lengths))
        chances = to_device(torch.from_numpy(noise), self._device)
        return sample(language, queries, prompt, chances, recipe.decoding, lengths)

    def _queries(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the language model reads of each image: (B, Q, its width)."""
        states = self._model.vision_model(pixel_values=self._pixels(images)).last_hidden_state
        seen = self._looked(states)
        # The Q-Former is kept at fp32; the language model is not.
        queries: torch.Tensor = self._model.language_projection(seen.to(states.dtype))
        return queries

    def _looked(self, states: torch.Tensor) -> torch.Tensor:
        """Return the Q-Former's query outputs (B, Q, D) for image states (B, N, D)."""
        return image_queries(self._model, states)


class Blip2Matcher(TiledMatcher):
    """Scores texts by BLIP-2's ITM head and by ITC similarity (section 3.1).

    ITM: the softmax, once, of the mean of the 32 queries' logits. ITC: the largest cosine of a
    query with the text. Position 0 is [CLS] for both, as BLIP-2 was trained.
    """

    def __init__(self, ref: ModelRef, device: str = "cpu", precision: Precision = "fp32") -> None:
        self._model = load_checkpoint(Blip2ForImageTextRetrieval, ref, device, precision)
        keep_queries_fp32(self._model)
        kind = ModelKind.BLIP2_MATCHER
        super().__init__(
            Normaliser(ref, kind, device, self._model.vision_model.dtype),
            load_tokenizer(ref, kind),
            tile_sizes(self._model, device),
            TEXT_LENGTHS,
            self._model.text_projection.out_features,
            device,
            precision,
        )

    def _vectors(self, states: list[States]) -> torch.Tensor:
        """Return the means of the normalised queries, normalised.

        ITC has 32 vectors an image and no single one; this one is for telling copies.
        """
        means = torch.stack([features.float().mean(0) for _, features in states])
        return normalize(means, dim=-1)

    def _scores_of(self, bucket: Bucket, parts: list[torch.Tensor]) -> torch.Tensor:
        states, features = parts
        return torch.stack([self._itm(bucket, states), self._itc(bucket, features)])

    def _encode(self, images: torch.Tensor) -> States:
        """Return image states (B, N, D), and normalised query features (B, Q, P)."""
        states = self._model.vision_model(pixel_values=self._pixels(images)).last_hidden_state
        queries = image_queries(self._model, states).to(states.dtype)
        return states, normalize(self._model.vision_projection(queries), dim=-1)

    def _itm(self, bucket: Bucket, states: torch.Tensor) -> torch.Tensor:
        """Return each text's probability of a match with its image (tile, N, D)."""
        model, count = self._model, len(bucket.ids)
        queries = model.query_tokens.expand(count, -1, -1)
        width = queries.shape[1]
        seen = torch.nn.functional.pad(bucket.mask, (width, 0), value=1)
        joint = model.qformer(
            query_embeds=model.embeddings(input_ids=bucket.ids, query_embeds=queries),
            query_length=width,
            attention_mask=seen,
            encoder_hidden_states=states,
        ).last_hidden_state[:, :width]
        logits = model.itm_head(joint.to(model.itm_head.weight.dtype)).mean(dim=1)
        return torch.softmax(logits.float(), dim=-1)[:, 1]

    def _itc(self, bucket: Bucket, features: torch.Tensor) -> torch.Tensor:
        """Return each text's largest cosine with one of its image's queries (tile, Q, P)."""
        model = self._model
        alone = model.qformer(
            query_embeds=model.embeddings(input_ids=bucket.ids),
            query_length=0,
            attention_mask=bucket.mask,
        ).last_hidden_state[:, 0]
        text = normalize(model.text_projection(alone.to(features.dtype)), dim=-1)
        return (features @ text[:, :, None]).squeeze(-1).amax(1).float()


def image_queries(model: Any, states: torch.Tensor) -> torch.Tensor:  # untyped classes
    """Return the Q-Former's query outputs (B, Q, D) for image states (B, N, D)."""
    found = model.qformer(
        query_embeds=model.query_tokens.expand(len(states), -1, -1), encoder_hidden_states=states
    )
    queries: torch.Tensor = found.last_hidden_state
    return queries


def keep_queries_fp32(model: Any) -> None:  # untyped classes
    """Put the query tokens and the Q-Former back to fp32, where transformers keeps them too."""
    model.query_tokens.data = model.query_tokens.data.float()
    model.qformer.float()


def tile_sizes(model: Any, device: str) -> TileSizes:  # untyped classes
    """Return the fixed shapes of a model of this family."""
    vision, width = model.config.vision_config, int(model.config.qformer_config.hidden_size)
    tokens = (int(vision.image_size) // int(vision.patch_size)) ** 2 + 1
    return TileSizes.of(tokens, width, device)
