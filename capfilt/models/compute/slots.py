"""The slots of the decoder: which image is where, its captions so far, and one more token of each.

An image's cross-attention keys and values are projected once, when it enters; its K captions are
K queries to them. The prompt is run once an image, and its self-attention copied to the K.

All of it lies in buffers that stay where they are, and a step changes them in place: so on a GPU a
step is a CUDA graph.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from capfilt.models.compute.attention import attend_image, attend_self
from capfilt.models.compute.graphs import replayed
from capfilt.models.compute.sampling import pick, processed_probabilities
from capfilt.models.compute.text import TextTower, keys_and_values
from capfilt.models.compute.transfer import Readback, indices
from capfilt.models.recipe import Lengths, Nucleus


@dataclass(frozen=True, slots=True)
class Rules:
    """What a caption begins with, how its tokens are drawn, and how long it may be."""

    prompt: tuple[int, ...]
    recipe: Nucleus
    lengths: Lengths
    end: int


@dataclass(frozen=True, slots=True)
class Look:
    """Who sat in which slot at one moment, and which slots had ended then."""

    here: tuple[int | None, ...]
    over: Readback


class Slots:
    """Tokens, caches and noise of the images that are being written for.

    Rows are (slot, caption). `_length` is how many tokens of a slot's captions stand; it is the
    same for all captions of an image, ended ones being filled up with the end token.

    shape: slots, captions of an image, states of an image.
    logits: hidden states to scores over the vocabulary.
    zeros: makes buffers of the model's type on its device.
    """

    def __init__(
        self,
        tower: TextTower,
        logits: Callable[[torch.Tensor], torch.Tensor],
        shape: tuple[int, int, int],
        rules: Rules,
        zeros: Callable[..., torch.Tensor],
    ) -> None:
        slots, captions, tokens = shape
        longest, prompt = rules.lengths.max_length, rules.prompt
        self._tower, self._logits, self._rules = tower, logits, rules
        self._count, self._k = slots, captions
        # Self-attention, (slots, K, heads, T, d) each; cross-attention, (slots, N, 2, heads, d).
        sizes = [(layer.heads, layer.head_size) for layer in tower.layers]
        self._own = [
            (zeros(slots, captions, h, longest, d), zeros(slots, captions, h, longest, d))
            for h, d in sizes
        ]
        like = self._own[0][0]
        self._image = [layer.key_buffer(like, slots, tokens) for layer in tower.layers]
        self.device = device = like.device
        # A slot that nobody has entered holds a prompt as well, so that what it computes is finite.
        self._blank = torch.full((longest,), prompt[0], device=device)
        self._blank[: len(prompt)] = torch.tensor(prompt, device=device)
        self._ids = self._blank.repeat(slots, captions, 1)
        self._length = torch.full((slots,), len(prompt), device=device)
        self._ended = torch.ones((slots, captions), dtype=torch.bool, device=device)
        steps = longest - len(prompt) + 1
        self._noise = torch.zeros((slots, captions, steps), dtype=torch.float64, device=device)
        self._over = torch.ones(slots, dtype=torch.bool, device=device)
        self._rows, self._places = (torch.arange(n, device=device) for n in (slots, longest))
        self._here: list[int | None] = [None] * slots
        self._reads = deque([Readback(self._over), Readback(self._over)])
        self.step = replayed(self._step, device)
        self.begin(self._noise[:0, :, :-1])

    def begin(self, noise: torch.Tensor) -> None:
        """Empty the slots for B images of noise (B, K, steps); `done` gets their ids."""
        self._given, self._here = noise, [None] * self._count
        shape = (len(noise), self._k, len(self._blank))
        self.done = torch.full(shape, self._rules.end, device=self.device)

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
        at = indices(seats, self.device)
        self._prefill(at, states)
        for slot, image in zip(seats, images, strict=True):
            self._here[slot] = image
        self._ids.index_copy_(0, at, self._blank.expand(len(at), self._k, -1))
        self._length.index_fill_(0, at, len(self._rules.prompt))
        self._ended.index_fill_(0, at, 0)
        given = self._given.index_select(0, indices(images, self.device))
        self._noise[:, :, :-1].index_copy_(0, at, given)

    def look(self) -> Look:
        """Begin to read which slots have ended; at most two looks may be unread."""
        self._reads.rotate()
        self._reads[0].send(self._over)
        return Look(tuple(self._here), self._reads[0])

    def leave(self, look: Look) -> None:
        """Take the captions of images that had ended at a look out of their slots.

        A slot that another image has entered since is not meant by it.
        """
        over = look.over.read()
        gone = {
            slot: image
            for slot, image in enumerate(look.here)
            if image is not None and over[slot] and self._here[slot] == image
        }
        if not gone:
            return
        written = self._finished(indices(list(gone), self.device))
        self.done.index_copy_(0, indices(list(gone.values()), self.device), written)
        for slot in gone:
            self._here[slot] = None

    def _finished(self, at: torch.Tensor) -> torch.Tensor:
        """Return the ids (n, K, max_length) of slots; what was never written is the end token."""
        unwritten = self._places >= self._length.index_select(0, at)[:, None, None]
        return self._ids.index_select(0, at).masked_fill(unwritten, self._rules.end)

    def _step(self) -> None:
        """Write one more token of every caption, in place."""
        length, ids, rules = self._length, self._ids, self._rules
        rows, longest = self._count * self._k, rules.lengths.max_length
        last = (length - 1)[:, None, None].expand(-1, self._k, 1)
        hidden = self._forward(ids.gather(2, last).squeeze(2), length - 1)
        logits = self._logits(hidden).view(rows, -1)
        young = (length < rules.lengths.min_length)[:, None].expand(-1, self._k).reshape(rows)
        chances, tokens = processed_probabilities(
            logits, ids.view(rows, -1), rules.recipe, rules.end, young
        )
        step = (length - len(rules.prompt)).clamp(max=self._noise.shape[2] - 1)
        noise = self._noise.gather(2, step[:, None, None].expand(-1, self._k, 1)).view(rows)
        chosen = pick(chances, tokens, noise).view(self._count, self._k)
        chosen = chosen.masked_fill(self._ended, rules.end)
        writes = (length < longest)[:, None]
        place = length.clamp(max=longest - 1)[:, None, None].expand(-1, self._k, 1)
        kept = torch.where(writes, chosen, ids.gather(2, place).squeeze(2))
        ids.scatter_(2, place, kept[:, :, None])
        self._ended.logical_or_(chosen == rules.end).logical_or_(~writes)
        length.add_(1).clamp_(max=longest)
        self._over.copy_(self._ended.all(1) | (length >= longest))

    def _forward(self, fed: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Run one token of each caption: (slots, K) at `positions` (slots,) to (slots, K, D)."""
        x = self._tower.embed(fed, positions[:, None])
        seen = self._places <= positions[:, None]
        mask = seen[:, None].expand(-1, self._k, -1).flatten(0, 1)[:, None, None]  # (rows, 1, 1, T)
        for layer, own, image in zip(self._tower.layers, self._own, self._image, strict=True):
            q, k, v = layer.project(x)  # (slots, heads, K, head size)
            for cache, fresh in zip(own, (k, v), strict=True):
                cache[self._rows, :, :, positions] = fresh.transpose(1, 2)
            # Each caption has a cache of its own, so captions are rows here, of one query each.
            single = q.transpose(1, 2).flatten(0, 1)[:, :, None]
            keys, values = (cache.flatten(0, 1) for cache in own)
            gathered = attend_self(single, keys, values, mask)
            gathered = gathered.squeeze(2).view(self._count, self._k, layer.heads, -1)
            x = layer.after_self(x, gathered.transpose(1, 2))
            x = layer.after_cross(x, attend_image(layer.cross_queries(x), *keys_and_values(image)))
            x = layer.feed_forward(x)
        return x

    def _prefill(self, at: torch.Tensor, states: torch.Tensor) -> None:
        """Project the images' keys and values, and run the prompt but its last token over them."""
        before = len(self._rules.prompt) - 1
        count, taken = len(states), len(at)
        if before:
            x = self._tower.begin(self._blank[:before].expand(count, before))
        for layer, own, image in zip(self._tower.layers, self._own, self._image, strict=True):
            both = layer.image_keys(states)
            image.index_copy_(0, at, both[:taken])
            if not before:
                continue
            q, k, v = layer.project(x)
            for cache, fresh in zip(own, (k, v), strict=True):
                cache[at, :, :, :before] = fresh[:taken, None].expand(-1, self._k, -1, -1, -1)
            x = layer.after_self(x, scaled_dot_product_attention(q, k, v, is_causal=True))
            q = layer.cross_queries(x)
            crossed = scaled_dot_product_attention(q, *keys_and_values(both))
            x = layer.feed_forward(layer.after_cross(x, crossed))
