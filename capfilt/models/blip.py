"""BLIP behind the two seams (arXiv 2201.12086): our forward pass on transformers' weights.

Checkpoints are loaded by transformers' own classes; what runs then is `vision`, `text` and
`decoder`, which compute the same numbers (tests compare them at every step) for a fraction of the
cost: an image's cross-attention keys and values are projected once an image and layer, whatever
the number of its captions or candidate texts.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize, scaled_dot_product_attention
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.errors import ModelError
from capfilt.models.compute.attention import attend, steady_attention
from capfilt.models.compute.buckets import Bucket, States
from capfilt.models.compute.decoder import Decoder
from capfilt.models.compute.loading import Normaliser, load_checkpoint, load_tokenizer
from capfilt.models.compute.matching import Scores, TiledMatcher, scattered
from capfilt.models.compute.packed_linear import Dense
from capfilt.models.compute.text import TextTower, keys_and_values
from capfilt.models.compute.tiles import Tiled, TileSizes, tiles
from capfilt.models.compute.transfer import PixelUpload, indices, to_device
from capfilt.models.compute.uniforms import uniforms
from capfilt.models.compute.vision import VisionTower
from capfilt.models.families import ModelKind
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Beam, CaptionerRecipe, ModelRef, Nucleus, Precision
from capfilt.models.vocabulary import encoder_token, no_encoder_token

# Texts are padded to the first of these that holds them: a text's own length decides, so its
# compute shape is its own. 35 is the paper's limit.
TEXT_LENGTHS: Final = (8, 12, 16, 24, 35)


class BlipCaptioner(Tiled):
    """Writes K captions an image (section 3.3; decoding figures of the authors' repository)."""

    def __init__(self, recipe: CaptionerRecipe, device: str = "cpu") -> None:
        ref = recipe.model
        model = load_checkpoint(BlipForConditionalGeneration, ref, device, recipe.precision)
        self._tokenizer = load_tokenizer(ref, ModelKind.BLIP_CAPTIONER)
        self._pixels = Normaliser(ref, ModelKind.BLIP_CAPTIONER, device, model.dtype)
        self._recipe, self._lengths, self._device = recipe, recipe.lengths, device
        text = model.config.text_config
        self._end, self._pad = int(text.sep_token_id), int(text.pad_token_id)
        self._prompt = self._prompt_ids(recipe.prompt, int(text.bos_token_id))
        self._vision = VisionTower(model.vision_model)
        sizes = TileSizes.of(self._vision.tokens, int(text.hidden_size), device)
        super().__init__(sizes, recipe.precision)
        shape = self.sizes.slots, self.sizes.images, self._vision.tokens
        self._decoder = Decoder(model.text_decoder, *shape)
        # Beam search is transformers' own, over our image states.
        self._reference = model.text_decoder if isinstance(recipe.decoding, Beam) else None

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return self._pixels.side

    def caption(self, images: Sequence[Pixels], keys: Sequence[str]) -> list[list[str]]:
        """Return K texts for each image; see `protocols.Captioner`."""
        if not images:
            return []
        with self.computing():
            return self._texts(self.fitting(lambda: self._written(images, keys)))

    def resized(self) -> None:
        """Give the decoder as many slots as fit."""
        self._decoder.resize(self.sizes.slots, self.sizes.images)

    def _written(self, images: Sequence[Pixels], keys: Sequence[str]) -> torch.Tensor:
        decoding = self._recipe.decoding
        if isinstance(decoding, Beam):
            return self._beams(images, decoding)
        return self._sample(images, keys, decoding)

    def _prompt_ids(self, prompt: str, start: int) -> list[int]:
        """Tokenise the prompt; [CLS] becomes the decoder's start token and [SEP] is cut off."""
        ids = [start, *self._tokenizer(prompt, add_special_tokens=False).input_ids]
        if len(ids) >= self._lengths.max_length:
            raise ModelError(
                f"the prompt takes {len(ids)} of at most {self._lengths.max_length} tokens; "
                "shorten it or raise the maximum length"
            )
        return ids

    def _sample(
        self, images: Sequence[Pixels], keys: Sequence[str], recipe: Nucleus
    ) -> torch.Tensor:
        """Return token ids (B, K, max_length), the prompt included."""
        steps = self._lengths.max_length - len(self._prompt)
        noise = uniforms(self._recipe.seed, keys, self._recipe.num_captions, steps)
        chances = to_device(torch.from_numpy(noise), self._device)
        sent = PixelUpload(images, self.sizes.images, self._device)

        def states(chosen: Sequence[int]) -> torch.Tensor:
            tile = sent.take()
            if tile is None or tile[1] != len(chosen):
                raise RuntimeError("the decoder asks for images in order, a tile at a time")
            found = self._vision(self._pixels(tile[0]))
            sent.prepare()
            return found

        return self._decoder.sample(states, chances, self._prompt, recipe, self._lengths, self._end)

    def _beams(self, images: Sequence[Pixels], recipe: Beam) -> torch.Tensor:
        """Return token ids (B, K, length), the prompt included."""
        found = [
            self._beams_of(self._vision(self._pixels(tile)), recipe)[:real]
            for tile, real in PixelUpload(images, self.sizes.images, self._device)
        ]
        longest = max(ids.shape[2] for ids in found)
        return torch.cat(
            [
                torch.nn.functional.pad(ids, (0, longest - ids.shape[2]), value=self._pad)
                for ids in found
            ]
        )

    def _beams_of(self, states: torch.Tensor, recipe: Beam) -> torch.Tensor:
        if self._reference is None:
            raise ModelError("this captioner was opened for nucleus sampling")
        with steady_attention():
            ids: torch.Tensor = self._reference.generate(
                input_ids=indices(self._prompt, self._device).repeat(len(states), 1),
                encoder_hidden_states=states,
                num_beams=recipe.num_beams,
                num_return_sequences=self._recipe.num_captions,
                do_sample=False,
                repetition_penalty=recipe.repetition_penalty,
                min_length=self._lengths.min_length,
                max_length=self._lengths.max_length,
                eos_token_id=self._end,
                pad_token_id=self._pad,
            )
        return ids.view(len(states), self._recipe.num_captions, -1)

    def _texts(self, ids: torch.Tensor) -> list[list[str]]:
        written = ids[:, :, len(self._prompt) :].tolist()
        return [
            [self._tokenizer.decode(one, skip_special_tokens=True).strip() for one in captions]
            for captions in written
        ]


class BlipMatcher(TiledMatcher):
    """Scores texts by the ITM head and by ITC similarity (sections 3.2, 3.3).

    `itm_token` is what stands at position 0 for ITM: `enc` as the authors trained it, or `cls`, as
    transformers' own class leaves it, for comparison. ITC always has [CLS] there.
    """

    def __init__(
        self, ref: ModelRef, itm_token: str, device: str = "cpu", precision: Precision = "fp32"
    ) -> None:
        model = load_checkpoint(BlipForImageTextRetrieval, ref, device, precision)
        kind = ModelKind.BLIP_MATCHER
        tokenizer, hidden = load_tokenizer(ref, kind), int(model.config.text_config.hidden_size)
        self._first = _encoder_token(tokenizer, model, ref) if itm_token == "enc" else None
        self._vision, self._text = VisionTower(model.vision_model), TextTower(model.text_encoder)
        self._vision_proj, self._text_proj = Dense.of(model.vision_proj), Dense.of(model.text_proj)
        self._itm_head = Dense.of(model.itm_head)
        super().__init__(
            Normaliser(ref, kind, device, model.dtype),
            tokenizer,
            TileSizes.of(self._vision.tokens, hidden, device),
            TEXT_LENGTHS,
            model.vision_proj.out_features,
            device,
            precision,
        )

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return ITC text embeddings (T, D), L2-normalised; zeros where a text is empty."""
        with self.computing():
            return self.fitting(lambda: self._texts_embedded(texts))

    def _texts_embedded(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        out = np.zeros((len(texts), self._width), np.float32)
        buckets = self._buckets([[text] for text in texts])
        if buckets:
            found = [self._text_features(bucket)[: bucket.real] for bucket in buckets]
            places = [place for bucket in buckets for place, _ in bucket.places[: bucket.real]]
            out[places] = torch.cat(found).float().cpu().numpy()
        return out

    def _matched(self, images: Sequence[Pixels], texts: Sequence[Sequence[str]]) -> Scores:
        states = [states for (states,) in self._states(images)]
        buckets, scores = self._buckets(texts), []
        for bucket, first in zip(buckets, self._grounded(buckets, states), strict=True):
            image = torch.stack([states[place][0] for place, _ in bucket.places])
            scores.append(torch.stack([self._itm(first), self._itc(bucket, image)]))
        return scattered(texts, buckets, scores)

    def _vectors(self, states: list[States]) -> torch.Tensor:
        first = [state[0] for (state,) in states]
        rows = [
            self._image_features(torch.stack(tile))[:real]
            for tile, real in tiles(first, self.sizes.texts)
        ]
        return torch.cat(rows).float()

    def _image_features(self, first: torch.Tensor) -> torch.Tensor:
        return normalize(self._vision_proj(first), dim=-1)

    def _encode(self, images: torch.Tensor) -> States:
        """Return image states (B, N, D)."""
        return (self._vision(self._pixels(images)),)

    def _grounded(
        self, buckets: Sequence[Bucket], states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the last state (tile, D) of position 0 of every text, its image looked at.

        All texts go through the layers together, so that a layer's image keys are projected once
        and need not be kept.
        """
        if not buckets:
            return []
        masks = [_mask(bucket) for bucket in buckets]
        hidden = [self._text.begin(self._headed(bucket.ids)) for bucket in buckets]
        keys = _LayerKeys(self._text, states, self.sizes.images)
        for number in range(len(self._text.layers)):
            keys.project(number)
            for at, bucket in enumerate(buckets):
                look = partial(keys.gather, bucket)
                hidden[at] = self._text.bidirectional(number, hidden[at], masks[at], look)
        return [x[:, 0] for x in hidden]

    def _itm(self, first: torch.Tensor) -> torch.Tensor:
        """Return the probability of a match of each text, (tile,)."""
        return torch.softmax(self._itm_head(first).float(), dim=-1)[:, 1]

    def _itc(self, bucket: Bucket, image: torch.Tensor) -> torch.Tensor:
        """Return the cosine (tile,) of each text with its image's class state (tile, D)."""
        products = self._text_features(bucket) * self._image_features(image)
        return products.float().sum(-1)

    def _text_features(self, bucket: Bucket) -> torch.Tensor:
        """Return embeddings (tile, D) of texts alone, [CLS] at position 0."""
        x, mask = self._text.begin(bucket.ids), _mask(bucket)
        for number in range(len(self._text.layers)):
            x = self._text.bidirectional(number, x, mask, None)
        return normalize(self._text_proj(x[:, 0]), dim=-1)

    def _headed(self, ids: torch.Tensor) -> torch.Tensor:
        """Put [ENC] at position 0, or leave what the tokenizer put there."""
        if self._first is None:
            return ids
        return torch.cat([torch.full_like(ids[:, :1], self._first), ids[:, 1:]], dim=1)


def _mask(bucket: Bucket) -> torch.Tensor:
    """Return (tile, 1, 1, length): where a token stands."""
    return bucket.mask.bool()[:, None, None]


class _LayerKeys:
    """Cross-attention keys and values of all images, of one layer at a time, in one buffer."""

    def __init__(self, tower: TextTower, states: Sequence[torch.Tensor], tile: int) -> None:
        self._tower, self._tiles = (
            tower,
            [(torch.stack(t), real) for t, real in tiles(states, tile)],
        )
        self._count = len(states)
        self._held: torch.Tensor | None = None  # (count, N, 2, heads, d)

    def project(self, number: int) -> None:
        """Fill the buffer with those of layer `number`."""
        start = 0
        for states, real in self._tiles:
            layer = self._tower.layers[number]
            if self._held is None:
                self._held = layer.key_buffer(states, self._count, states.shape[1])
            self._held[start : start + real] = layer.image_keys(states)[:real]
            start += real

    def gather(self, bucket: Bucket, q: torch.Tensor) -> torch.Tensor:
        """Attend (texts, heads, L, d), each text to its own image."""
        if self._held is None:
            raise RuntimeError("project comes first")
        if q.device.type != "cpu":
            own = self._held.index_select(0, bucket.images)
            return attend(q, *keys_and_values(own))
        keys, values = keys_and_values(self._held)
        # One text at a time reads its image where it lies: no copy, and a shape of its own.
        return torch.cat(
            [
                scaled_dot_product_attention(q[i : i + 1], keys[p : p + 1], values[p : p + 1])
                for i, (p, _) in enumerate(bucket.places)
            ]
        )


def _encoder_token(tokenizer: Any, model: Any, ref: ModelRef) -> int:  # untyped classes
    text = model.config.text_config
    ids = {"vocab_size": text.vocab_size, "bos_token_id": text.bos_token_id}
    found = encoder_token(tokenizer.get_vocab(), ids)
    if found is None:
        raise no_encoder_token(ref.name)
    return found
