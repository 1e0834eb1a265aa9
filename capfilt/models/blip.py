"""BLIP behind the two seams, on transformers' own classes and weights (arXiv 2201.12086)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from capfilt.errors import ModelError
from capfilt.models.loading import Normaliser, load_checkpoint, load_tokenizer
from capfilt.models.noise import uniforms
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import Beam, Lengths, ModelRef, Nucleus, Precision
from capfilt.models.sampling import pick, processed_probabilities
from capfilt.models.tiles import fixed_compute, tiles
from capfilt.texts import normalise_for_filter

IMAGES_PER_TILE: Final = 16
TEXTS_PER_TILE: Final = 32
# Texts are padded to the first of these that holds them: a text's own length decides, so its
# compute shape is its own. 35 is the paper's limit.
TEXT_LENGTHS: Final = (8, 12, 16, 24, 35)
_KEPT_STATES: Final = 256  # images whose vision states are kept between the stages of a pass


class BlipCaptioner:
    """Writes K captions an image (section 3.3; decoding figures of the authors' repository)."""

    def __init__(
        self,
        ref: ModelRef,
        *,
        decoding: Nucleus | Beam,
        lengths: Lengths,
        prompt: str,
        num_captions: int,
        seed: int,
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        self._model = load_checkpoint(BlipForConditionalGeneration, ref, device, precision)
        self._tokenizer = load_tokenizer(ref)
        self._pixels = Normaliser(ref, device, self._model.dtype)
        self._decoding, self._lengths = decoding, lengths
        self._k, self._seed, self._device = num_captions, seed, device
        text = self._model.config.text_config
        self._end, self._pad = int(text.sep_token_id), int(text.pad_token_id)
        self._prompt = self._prompt_ids(prompt, int(text.bos_token_id))

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return self._pixels.side

    def caption(self, images: Sequence[Pixels], keys: Sequence[str]) -> list[list[str]]:
        """Return K texts for each image; see `protocols.Captioner`."""
        texts: list[list[str]] = []
        with fixed_compute():
            for tile, real in tiles(list(zip(images, keys, strict=True)), IMAGES_PER_TILE):
                states = self._vision_states([image for image, _ in tile])
                ids = self._decode(states, [key for _, key in tile])
                texts.extend(self._texts(ids)[:real])
        return texts

    def _prompt_ids(self, prompt: str, start: int) -> list[int]:
        """Tokenise the prompt; [CLS] becomes the decoder's start token and [SEP] is cut off."""
        ids = [start, *self._tokenizer(prompt, add_special_tokens=False).input_ids]
        if len(ids) >= self._lengths.max_length:
            raise ModelError(
                f"the prompt takes {len(ids)} of at most {self._lengths.max_length} tokens; "
                "shorten it or raise the maximum length"
            )
        return ids

    def _vision_states(self, images: list[Pixels]) -> torch.Tensor:
        states: torch.Tensor = self._model.vision_model(self._pixels(images)).last_hidden_state
        return states

    def _decode(self, states: torch.Tensor, keys: list[str]) -> torch.Tensor:
        """Return token ids (B, K, length), the prompt included."""
        if isinstance(self._decoding, Beam):
            ids = self._beams(states, self._decoding)
        else:
            ids = self._sample(states, keys, self._decoding)
        return ids.view(states.shape[0], self._k, -1)

    def _sample(self, states: torch.Tensor, keys: list[str], recipe: Nucleus) -> torch.Tensor:
        steps = self._lengths.max_length - len(self._prompt)
        noise = torch.from_numpy(uniforms(self._seed, keys, self._k, steps)).flatten(0, 1)
        noise = noise.to(self._device)
        states = states.repeat_interleave(self._k, dim=0)
        ids = torch.tensor([self._prompt], device=self._device).repeat(states.shape[0], 1)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=self._device)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        fresh = ids
        for step in range(steps):
            logits = self._next_logits(fresh, states, cache)
            forbid = self._end if ids.shape[1] < self._lengths.min_length else None
            chosen = pick(*processed_probabilities(logits, ids, recipe, forbid), noise[:, step])
            fresh = chosen.masked_fill(ended, self._pad)[:, None]
            ids = torch.cat([ids, fresh], dim=1)
            ended |= chosen == self._end
            if bool(ended.all()):
                break
        return ids

    def _next_logits(
        self, fresh: torch.Tensor, states: torch.Tensor, cache: EncoderDecoderCache
    ) -> torch.Tensor:
        out = self._model.text_decoder(
            input_ids=fresh,
            encoder_hidden_states=states,
            past_key_values=cache,
            use_cache=True,
            is_decoder=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _beams(self, states: torch.Tensor, recipe: Beam) -> torch.Tensor:
        ids: torch.Tensor = self._model.text_decoder.generate(
            input_ids=torch.tensor([self._prompt], device=self._device).repeat(len(states), 1),
            encoder_hidden_states=states,
            num_beams=recipe.num_beams,
            num_return_sequences=self._k,
            do_sample=False,
            repetition_penalty=recipe.repetition_penalty,
            min_length=self._lengths.min_length,
            max_length=self._lengths.max_length,
            eos_token_id=self._end,
            pad_token_id=self._pad,
        )
        return ids

    def _texts(self, ids: torch.Tensor) -> list[list[str]]:
        written = ids[:, :, len(self._prompt) :].tolist()
        return [
            [self._tokenizer.decode(one, skip_special_tokens=True).strip() for one in captions]
            for captions in written
        ]


class BlipMatcher:
    """Scores texts by the ITM head and by ITC similarity (sections 3.2, 3.3).

    `itm_token` is what stands at position 0 for ITM: `enc` as the authors trained it, or `cls`, as
    transformers' own class leaves it, for comparison. ITC always has [CLS] there.
    """

    def __init__(
        self, ref: ModelRef, itm_token: str, device: str = "cpu", precision: Precision = "fp32"
    ) -> None:
        self._model = load_checkpoint(BlipForImageTextRetrieval, ref, device, precision)
        self._tokenizer = load_tokenizer(ref)
        self._pixels = Normaliser(ref, device, self._model.dtype)
        self._device = device
        self._first = (
            _encoder_token(self._tokenizer, self._model, ref) if itm_token == "enc" else None
        )
        self._states: OrderedDict[int, tuple[Pixels, torch.Tensor]] = OrderedDict()

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return self._pixels.side

    def match(
        self, images: Sequence[Pixels], texts: Sequence[Sequence[str]]
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Score each image with its own texts; see `protocols.Matcher`."""
        pairs = [
            (place, number, normalise_for_filter(text))
            for place, own in enumerate(texts)
            for number, text in enumerate(own)
        ]
        itm = [[float("nan")] * len(own) for own in texts]
        itc = [[float("nan")] * len(own) for own in texts]
        with fixed_compute():
            states = self._vision_states(images)
            for length, bucket in self._buckets(pairs).items():
                for tile, real in tiles(bucket, TEXTS_PER_TILE):
                    ids = torch.tensor([own_ids for _, _, own_ids in tile], device=self._device)
                    chosen = torch.stack([states[place] for place, _, _ in tile])
                    scores = self._scores(ids, chosen, length)
                    for (place, number, _), (p, s) in list(zip(tile, scores, strict=True))[:real]:
                        itm[place][number], itc[place][number] = p, s
        return itm, itc

    def embed(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Return ITC image embeddings (B, D), L2-normalised."""
        if not images:
            return np.zeros((0, self._model.vision_proj.out_features), np.float32)
        with fixed_compute():
            states = self._vision_states(images)
            rows = [
                self._image_features(torch.stack(tile))[:real]
                for tile, real in tiles(states, IMAGES_PER_TILE)
            ]
        features: npt.NDArray[np.float32] = torch.cat(rows).float().cpu().numpy()
        return features

    def _image_features(self, states: torch.Tensor) -> torch.Tensor:
        return normalize(self._model.vision_proj(states[:, 0]), dim=-1)

    def _vision_states(self, images: Sequence[Pixels]) -> list[torch.Tensor]:
        """Return (N, D) states an image, encoding only those that are not at hand already.

        `images.load_rgb` hands out one shared array an image, so the array is the key; holding it
        keeps its id from being given to another.
        """
        fresh = list(
            {id(image): image for image in images if id(image) not in self._states}.values()
        )
        for tile, real in tiles(fresh, IMAGES_PER_TILE):
            states = self._model.vision_model(self._pixels(tile)).last_hidden_state
            for image, state in zip(tile[:real], states[:real], strict=True):
                self._states[id(image)] = (image, state)
        found = [self._states[id(image)][1] for image in images]
        while len(self._states) > _KEPT_STATES:
            self._states.popitem(last=False)
        return found

    def _buckets(
        self, pairs: list[tuple[int, int, str]]
    ) -> dict[int, list[tuple[int, int, list[int]]]]:
        """Tokenise, and group by padded length; a text of which nothing is left is not scored."""
        buckets: dict[int, list[tuple[int, int, list[int]]]] = {}
        pad = int(self._model.config.text_config.pad_token_id)
        scored = [pair for pair in pairs if pair[2]]
        if not scored:
            return buckets
        encoded = self._tokenizer(
            [text for _, _, text in scored], truncation=True, max_length=TEXT_LENGTHS[-1]
        ).input_ids
        for (place, number, _), ids in zip(scored, encoded, strict=True):
            length = next(n for n in TEXT_LENGTHS if n >= len(ids))
            padded = [*ids, *[pad] * (length - len(ids))]
            buckets.setdefault(length, []).append((place, number, padded))
        return buckets

    def _scores(
        self, ids: torch.Tensor, states: torch.Tensor, length: int
    ) -> list[tuple[float, float]]:
        """Return (ITM probability, ITC similarity) of each pair of a tile."""
        mask = (ids != self._model.config.text_config.pad_token_id).long()
        plain = self._model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        text_features = normalize(self._model.text_proj(plain[:, 0]), dim=-1)
        itc = (text_features * self._image_features(states)).sum(-1)
        if self._first is not None:
            ids = torch.cat([torch.full_like(ids[:, :1], self._first), ids[:, 1:]], dim=1)
        grounded = self._model.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states
        ).last_hidden_state
        itm = torch.softmax(self._model.itm_head(grounded[:, 0]).float(), dim=-1)[:, 1]
        return list(zip(itm.tolist(), itc.float().tolist(), strict=True))


def _encoder_token(tokenizer: Any, model: Any, ref: ModelRef) -> int:  # untyped classes
    """Return the id of [ENC]; released checkpoints have it in the model but not the tokenizer."""
    found = tokenizer.get_vocab().get("[ENC]")
    if found is not None:
        return int(found)
    text = model.config.text_config
    if text.vocab_size == text.bos_token_id + 2:  # [DEC] and [ENC] were appended, in this order
        return int(text.bos_token_id) + 1
    raise ModelError(
        f"{ref.name!r} has no [ENC] token in its tokenizer; add it, or score with --itm-token cls"
    )
