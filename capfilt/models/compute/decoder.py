"""Nucleus sampling of K captions an image, over slots of a fixed number of images.

An image enters a slot, its K captions are written there side by side, and when the last of them
has ended the next image takes the slot. So nothing that has ended goes on costing, and every step
has one and the same shape however many images there are and whatever their neighbours are: a
caption depends on its image, its key and the recipe alone.

An image's cross-attention keys and values are projected once, when it enters; its K captions are
K queries to them. The prompt is run once an image, and its self-attention copied to the K.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from capfilt.models.compute.packed_linear import Dense
from capfilt.models.compute.sampling import pick, processed_probabilities
from capfilt.models.compute.text import TextTower
from capfilt.models.recipe import Lengths, Nucleus

# Gives the states (enter, N, D) of the images with these numbers; fewer are filled up.
States = Callable[[Sequence[int]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Caches:
    """Keys and values of every layer.

    `own`: self-attention, (slots, K, heads, T, d) each; `image`: (slots, heads, N, d) each.
    """

    own: list[tuple[torch.Tensor, torch.Tensor]]
    image: list[tuple[torch.Tensor, torch.Tensor]]


class Decoder:
    """The text decoder of a `transformers.BlipForConditionalGeneration`, written out.

    `slots` images are decoded at a time and `enter` of them begin together.
    """

    def __init__(self, model: Any, slots: int, enter: int) -> None:  # untyped classes
        self._tower = TextTower(model.bert)
        head = model.cls.predictions
        self._transform = Dense.of(head.transform.dense)
        self._transform_act = head.transform.transform_act_fn
        self._transform_norm = head.transform.LayerNorm
        self._vocabulary = Dense.of(head.decoder)
        self._slots, self._enter = slots, enter
        self._steps_a_look = 1 if head.decoder.weight.device.type == "cpu" else 4
        self._caches: dict[tuple[int, ...], Caches] = {}

    def sample(
        self,
        states: States,
        noise: torch.Tensor,
        prompt: Sequence[int],
        recipe: Nucleus,
        lengths: Lengths,
        end: int,
    ) -> torch.Tensor:
        """Write K captions for each of B images.

        Args:
            states: gives image states.
            noise: (B, K, steps) uniform in [0, 1), on the device.
            prompt: token ids, the start token first; fewer than `lengths.max_length`.
            recipe, lengths: of nucleus sampling.
            end: the token that ends a caption.

        Returns:
            ids (B, K, max_length); after the end of a caption stands `end`.
        """
        desk = _Desk(self, noise, prompt, recipe, lengths, end)
        waiting = deque(range(len(noise)))
        while waiting or desk.busy:
            if waiting and desk.free >= min(self._enter, len(waiting)):
                taken = [waiting.popleft() for _ in range(min(self._enter, len(waiting)))]
                desk.enter(taken, states(taken))
                continue
            for _ in range(self._steps_a_look):
                desk.step()
            desk.leave()
        return desk.done

    def resize(self, slots: int, enter: int) -> None:
        """Serve another number of images from now on; the caches of the old number are freed."""
        self._slots, self._enter = slots, enter
        self._caches.clear()

    def caches(self, states: torch.Tensor, captions: int, longest: int) -> "Caches":
        """Return the caches for images of these states: made once, since fresh pages cost time.

        What an earlier image left in them is overwritten or masked, and finite.
        """
        shape = (captions, longest, states.shape[1])
        if shape not in self._caches:
            self._caches[shape] = _new_caches(self._tower, states, self._slots, captions, longest)
        return self._caches[shape]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores over the vocabulary for hidden states."""
        return self._vocabulary(self._transform_norm(self._transform_act(self._transform(x))))


class _Desk:
    """The slots of one `sample`: tokens, caches, and which image is where.

    Rows are (slot, caption). `_length` is how many tokens of a slot's captions stand; it is the
    same for all captions of an image, ended ones being filled up with the end token.
    """

    def __init__(
        self,
        decoder: Decoder,
        noise: torch.Tensor,
        prompt: Sequence[int],
        recipe: Nucleus,
        lengths: Lengths,
        end: int,
    ) -> None:
        self._decoder, self._tower = decoder, decoder._tower
        self._recipe, self._lengths, self._end = recipe, lengths, end
        device, slots, (images, captions, _) = noise.device, decoder._slots, noise.shape
        self._noise, self._k, self._slots = noise, captions, slots
        self._prompt = torch.tensor(list(prompt), device=device)
        longest = lengths.max_length
        self.done = torch.full((images, captions, longest), end, device=device)
        # A slot that nobody has entered holds a prompt as well, so that what it computes is finite.
        first = torch.full((longest,), int(prompt[0]), device=device)
        first[: len(prompt)] = self._prompt
        self._blank = first
        self._ids = first.repeat(slots, captions, 1)
        self._length = torch.full((slots,), len(prompt), device=device)
        self._ended = torch.ones((slots, captions), dtype=torch.bool, device=device)
        self._here: list[int | None] = [None] * slots
        self._chance = torch.zeros(
            (slots, captions, noise.shape[2] + 1), dtype=noise.dtype, device=device
        )
        self._caches = Caches([], [])
        self._rows = torch.arange(slots, device=device)

    @property
    def busy(self) -> bool:
        """Whether an image is being written for."""
        return any(image is not None for image in self._here)

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self._here.count(None)

    def enter(self, images: Sequence[int], states: torch.Tensor) -> None:
        """Seat images in free slots. `states` may have more rows than images; they are ignored."""
        seats = [slot for slot, image in enumerate(self._here) if image is None][: len(images)]
        at = torch.tensor(seats, device=self._noise.device)
        self._caches = self._decoder.caches(states, self._k, self._lengths.max_length)
        self._prefill(at, states)
        for slot, image in zip(seats, images, strict=True):
            self._here[slot] = image
        self._ids[at] = self._blank
        self._length[at] = len(self._prompt)
        self._ended[at] = False
        chosen = torch.tensor(list(images), device=self._noise.device)
        self._chance[at, :, :-1] = self._noise[chosen]

    def step(self) -> None:
        """Write one more token of every caption."""
        length, ids = self._length, self._ids
        fed = ids[self._rows, :, length - 1]  # (slots, K)
        hidden = self._forward(fed, length - 1)
        rows = self._slots * self._k
        logits = self._decoder.logits(hidden).view(rows, -1)
        young = (length < self._lengths.min_length).repeat_interleave(self._k)
        chances, tokens = processed_probabilities(
            logits, ids.view(rows, -1), self._recipe, self._end, young
        )
        step = (length - len(self._prompt)).clamp(max=self._chance.shape[2] - 1)
        chosen = pick(chances, tokens, self._chance[self._rows, :, step].view(rows))
        chosen = chosen.view(self._slots, self._k).masked_fill(self._ended, self._end)
        writes = (length < self._lengths.max_length)[:, None]
        place = length.clamp(max=self._lengths.max_length - 1)
        before = ids[self._rows, :, place]
        ids[self._rows, :, place] = torch.where(writes, chosen, before)
        self._ended |= (chosen == self._end) | ~writes
        self._length = torch.where(length < self._lengths.max_length, length + 1, length)

    def leave(self) -> None:
        """Take the captions of finished images out of their slots."""
        full = self._length >= self._lengths.max_length
        over = (self._ended.all(1) | full).tolist()
        for slot, image in enumerate(self._here):
            if image is not None and over[slot]:
                self.done[image] = self._finished(slot)
                self._here[slot] = None

    def _finished(self, slot: int) -> torch.Tensor:
        """Return the ids (K, max_length) of a slot; what was never written is the end token."""
        unwritten = torch.arange(self._ids.shape[2], device=self._ids.device) >= self._length[slot]
        return self._ids[slot].masked_fill(unwritten, self._end)

    def _forward(self, fed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Run one token of each caption: (slots, K) at `positions` (slots,) to (slots, K, D)."""
        x = self._tower.embed(fed, positions[:, None])
        longest = self._ids.shape[2]
        seen = torch.arange(longest, device=fed.device) <= positions[:, None]
        mask = seen.repeat_interleave(self._k, 0)[:, None, None]  # (rows, 1, 1, T)
        for layer, own, image in zip(
            self._tower.layers, self._caches.own, self._caches.image, strict=True
        ):
            q, k, v = layer.project(x)  # (slots, heads, K, head size)
            for cache, fresh in zip(own, (k, v), strict=True):
                cache[self._rows, :, :, positions] = fresh.transpose(1, 2)
            # Each caption has a cache of its own, so captions are rows here, of one query each.
            single = q.transpose(1, 2).flatten(0, 1)[:, :, None]
            keys, values = (cache.flatten(0, 1) for cache in own)
            gathered = scaled_dot_product_attention(single, keys, values, attn_mask=mask)
            gathered = gathered.squeeze(2).view(self._slots, self._k, layer.heads, -1)
            x = layer.after_self(x, gathered.transpose(1, 2))
            x = layer.after_cross(x, _gather(layer.cross_queries(x), *image))
            x = layer.feed_forward(x)
        return x

    def _prefill(self, at: torch.Tensor, states: torch.Tensor) -> None:
        """Project the images' keys and values, and run the prompt but its last token over them."""
        before = len(self._prompt) - 1
        count, taken = len(states), len(at)
        if before:
            x = self._tower.begin(self._prompt[:-1].expand(count, before))
        for layer, own, image in zip(
            self._tower.layers, self._caches.own, self._caches.image, strict=True
        ):
            keys = layer.image_keys(states)
            for cache, fresh in zip(image, keys, strict=True):
                cache[at] = fresh[:taken]
            if not before:
                continue
            q, k, v = layer.project(x)
            for cache, fresh in zip(own, (k, v), strict=True):
                cache[at, :, :, :before] = fresh[:taken, None].expand(-1, self._k, -1, -1, -1)
            x = layer.after_self(x, scaled_dot_product_attention(q, k, v, is_causal=True))
            crossed = scaled_dot_product_attention(layer.cross_queries(x), keys.keys, keys.values)
            x = layer.feed_forward(layer.after_cross(x, crossed))


def _new_caches(
    tower: TextTower, states: torch.Tensor, slots: int, captions: int, longest: int
) -> Caches:
    caches = Caches([], [])
    for layer in tower.layers:
        _, heads, count, size = layer.image_keys(states[:1]).keys.shape
        own, image = (slots, captions, heads, longest, size), (slots, heads, count, size)
        caches.own.append((states.new_zeros(own), states.new_zeros(own)))
        caches.image.append((states.new_zeros(image), states.new_zeros(image)))
    return caches


def _gather(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Cross-attend K queries an image (slots, heads, K, d) to its keys and values.

    On a CPU a few queries against hundreds of keys are two thin products; torch's fused kernel is
    made for many queries, and is slower from two on.
    """
    if q.shape[2] == 1 or q.device.type != "cpu":
        return scaled_dot_product_attention(q, keys, values)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(-1, -2))
    return torch.matmul(torch.softmax(scores, dim=-1), values)
