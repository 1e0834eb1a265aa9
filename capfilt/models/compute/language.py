"""Writing texts with the language models of the BLIP-2 family, K of them after one prompt.

A decoder-only model (OPT, Vicuna) reads the image's queries and the prompt once; its cache is then
repeated for the K captions. An encoder-decoder model (FLAN-T5) encodes them once, and projects the
cross-attention keys and values of an image once. Every step has one shape, which depends on the
number of images in a tile, K and the step alone.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache

from capfilt.models.compute.attention import steady_attention
from capfilt.models.compute.sampling import pick, processed_probabilities
from capfilt.models.compute.transfer import indices
from capfilt.models.recipe import Beam, Lengths, Nucleus

_STEPS_A_LOOK = 4  # on a GPU: between two questions whether all captions have ended


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that a text begins with, with what the tokenizer puts around them.

    `placeholder` is the token that stands for a query of the image. It is never embedded, but to
    transformers it has been said, so the repetition penalty makes it less likely.
    """

    ids: tuple[int, ...]
    placeholder: int

    def steps(self, lengths: Lengths) -> int:
        """Return how many tokens may be written; the prompt counts, the image's queries do not."""
        return lengths.max_length - len(self.ids)


class _Writing(Protocol):
    """K texts for each image of a tile, being written; rows are (image, text)."""

    @property
    def history(self) -> torch.Tensor:
        """Tokens (rows, t) that the repetition penalty begins with."""

    def first(self) -> torch.Tensor:
        """Return scores (rows, V) for the first token."""

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """Take one more token (rows,) of each text; return scores (rows, V) for the next."""


class _DecoderOnly:
    """A `_Writing` of a causal model."""

    def __init__(
        self, model: Any, queries: torch.Tensor, prompt: Prompt, captions: int
    ) -> None:  # untyped classes
        self._model, self._cache = model, DynamicCache(config=model.config)
        images, self._k = len(queries), captions
        embedded, ids = prompted(model, queries, prompt)
        said = torch.nn.functional.pad(ids, (1, 0), value=prompt.placeholder)
        self.history = said.repeat(images * captions, 1)
        self._mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        self._scores = self._run(inputs_embeds=embedded)
        self._cache.batch_repeat_interleave(captions)
        self._mask = self._mask.repeat_interleave(captions, dim=0)

    def first(self) -> torch.Tensor:
        return self._scores.repeat_interleave(self._k, dim=0)

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._run(input_ids=tokens[:, None])

    def _run(self, **given: torch.Tensor) -> torch.Tensor:
        found = self._model(
            **given,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores: torch.Tensor = found.logits[:, -1]
        return scores


class _EncoderDecoder:
    """A `_Writing` of a model that encodes the prompt and writes from a start token."""

    def __init__(
        self, model: Any, queries: torch.Tensor, prompt: Prompt, captions: int
    ) -> None:  # untyped classes
        self._model, self._k = model, captions
        config = model.config
        self._cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        embedded, _ = prompted(model, queries, prompt)
        self._states = model.get_encoder()(inputs_embeds=embedded).last_hidden_state
        start = torch.full((len(queries),), _start(model), device=queries.device)
        self._scores = self.next(start)
        self._cache.batch_repeat_interleave(captions)
        # The cross-attention keys are in the cache; of these only the shape is looked at again.
        self._states = self._states.repeat_interleave(captions, dim=0)
        self.history = start.repeat_interleave(captions)[:, None]

    def first(self) -> torch.Tensor:
        return self._scores.repeat_interleave(self._k, dim=0)

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self._model(
            encoder_outputs=(self._states,),
            decoder_input_ids=tokens[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        scores: torch.Tensor = found.logits[:, -1]
        return scores


@steady_attention()
def sample(
    model: Any,  # transformers' models are untyped
    queries: torch.Tensor,
    prompt: Prompt,
    noise: torch.Tensor,
    recipe: Nucleus,
    lengths: Lengths,
) -> torch.Tensor:
    """Write K texts an image by nucleus sampling.

    Args:
        model: OPT, FLAN-T5 or another language model of transformers.
        queries: (B, Q, D) what the model reads of each image, in its own width.
        prompt: what each text begins with (decoder-only), or what is read with the image.
        noise: (B, K, steps) uniform in [0, 1), on the device.
        recipe, lengths: of nucleus sampling.

    Returns:
        written ids (B, K, steps), without the prompt; padding from the end of a text on.
    """
    images, captions, steps = noise.shape
    end, pad = ends(model)
    kind = _EncoderDecoder if model.config.is_encoder_decoder else _DecoderOnly
    writing: _Writing = kind(model, queries, prompt, captions)
    chances = noise.view(images * captions, steps)
    history, scores = writing.history, writing.first()
    written = torch.full_like(history[:, :1], pad).repeat(1, steps)
    ended = torch.zeros(len(history), dtype=torch.bool, device=history.device)
    look = 1 if history.device.type == "cpu" else _STEPS_A_LOOK
    for step in range(steps):
        forbid = end if len(prompt.ids) + step < lengths.min_length else None
        probabilities, tokens = processed_probabilities(scores.float(), history, recipe, forbid)
        chosen = pick(probabilities, tokens, chances[:, step])
        ended |= chosen == end
        chosen = chosen.masked_fill(ended, pad)
        written[:, step] = chosen
        if step + 1 == steps or (step % look == 0 and bool(ended.all())):
            break
        history = torch.cat([history, chosen[:, None]], dim=1)
        scores = writing.next(chosen)
    return written.view(images, captions, steps)


@steady_attention()
def search(
    model: Any,  # transformers' models are untyped
    queries: torch.Tensor,
    prompt: Prompt,
    captions: int,
    recipe: Beam,
    lengths: Lengths,
) -> torch.Tensor:
    """Write the `captions` best beams of each image by transformers' own search.

    Returns written ids (B, captions, steps), without the prompt; padding after the end of a text.
    """
    steps, (end, pad) = prompt.steps(lengths), ends(model)
    embedded, ids = prompted(model, queries, prompt)
    mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
    given = {"inputs_embeds": embedded, "attention_mask": mask}
    before = 1
    if not model.config.is_encoder_decoder:
        before = embedded.shape[1]  # what the penalty sees, and what comes back
        padding = (queries.shape[1], 0)
        said = torch.nn.functional.pad(ids, padding, value=prompt.placeholder)
        given["input_ids"] = said.repeat(len(queries), 1)
    found: torch.Tensor = model.generate(
        **given,
        num_beams=recipe.num_beams,
        num_return_sequences=captions,
        do_sample=False,
        repetition_penalty=recipe.repetition_penalty,
        min_new_tokens=max(0, lengths.min_length - len(prompt.ids)),
        max_new_tokens=steps,
        eos_token_id=end,
        pad_token_id=pad,
    )
    written = found[:, before:]
    filled = torch.nn.functional.pad(written, (0, steps - written.shape[1]), value=pad)
    return filled.view(len(queries), captions, steps)


def prompted(
    model: Any, queries: torch.Tensor, prompt: Prompt
) -> tuple[torch.Tensor, torch.Tensor]:  # untyped classes
    """Return (the queries with the embedded prompt after them (B, Q + P, D), the ids (1, P))."""
    ids = indices(prompt.ids, queries.device)[None]
    words = model.get_input_embeddings()(ids).to(queries.dtype)
    return torch.cat([queries, words.expand(len(queries), -1, -1)], dim=1), ids


def ends(model: Any) -> tuple[int, int]:  # untyped classes
    """Return (the token that ends a text, the one that stands after it)."""
    end = model.config.eos_token_id
    end = int(end[0] if isinstance(end, list) else end)
    pad = model.config.pad_token_id
    return end, end if pad is None else int(pad)


def _start(model: Any) -> int:  # untyped classes
    return int(model.config.decoder_start_token_id)
