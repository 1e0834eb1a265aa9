"""Nucleus sampling of K captions an image, over slots of a fixed number of images.

An image enters a slot, its K captions are written there side by side, and when the last of them
has ended the next image takes the slot. So nothing that has ended goes on costing, and every step
has one and the same shape however many images there are and whatever their neighbours are: a
caption depends on its image, its key and the recipe alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from capfilt.models.compute.fused import Activated
from capfilt.models.compute.packed_linear import Dense
from capfilt.models.compute.slots import Look, Rules, Slots
from capfilt.models.compute.text import TextTower
from capfilt.models.recipe import Lengths, Nucleus

# Gives the states (enter, N, D) of the images with these numbers; fewer are filled up.
States = Callable[[Sequence[int]], torch.Tensor]


class Decoder:
    """The text decoder of a `transformers.BlipForConditionalGeneration`, written out.

    `slots` images of `tokens` states each are decoded at a time and `enter` of them begin together.
    """

    def __init__(
        self,
        model: Any,  # untyped classes
        slots: int,
        enter: int,
        tokens: int,
    ) -> None:
        self._tower = TextTower(model.bert)
        head = model.cls.predictions
        transform = Dense.of(head.transform.dense)
        self._transform = Activated(transform, head.transform.transform_act_fn)
        self._transform_norm = head.transform.LayerNorm
        self._vocabulary, self._words = Dense.padded(head.decoder), head.decoder.out_features
        self._slots, self._enter, self._tokens = slots, enter, tokens
        weight = head.decoder.weight
        self._device, self._dtype = weight.device, weight.dtype
        # A GPU is given its next step before the host has read of the last one who has ended.
        self._unread = 0 if weight.device.type == "cpu" else 1
        self._kept: tuple[tuple[int, Rules], Slots] | None = None

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
            states: gives image states; asked for the images in order.
            noise: (B, K, steps) uniform in [0, 1), on the device.
            prompt: token ids, the start token first; fewer than `lengths.max_length`.
            recipe, lengths: of nucleus sampling.
            end: the token that ends a caption.

        Returns:
            ids (B, K, max_length); after the end of a caption stands `end`.
        """
        slots = self._slots_for(noise.shape[1], Rules(tuple(prompt), recipe, lengths, end))
        slots.begin(noise)
        waiting, looks = deque(range(len(noise))), deque[Look]()
        while waiting or slots.busy:
            if waiting and slots.free >= min(self._enter, len(waiting)):
                taken = [waiting.popleft() for _ in range(min(self._enter, len(waiting)))]
                slots.enter(taken, states(taken))
                continue
            slots.step()
            looks.append(slots.look())
            if len(looks) > self._unread:
                slots.leave(looks.popleft())
        return slots.done

    def resize(self, slots: int, enter: int) -> None:
        """Serve another number of images from now on; the caches of the old number are freed."""
        self._slots, self._enter = slots, enter
        self._kept = None

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores over the vocabulary for hidden states."""
        hidden = self._transform_norm(self._transform(x))
        return self._vocabulary(hidden)[..., : self._words]

    def _slots_for(self, captions: int, rules: Rules) -> Slots:
        """Return the slots of these rules: kept, since fresh pages cost time."""
        wanted = (captions, rules)
        if self._kept is None or self._kept[0] != wanted:
            self._kept = None  # the old ones are freed first
            made = Slots(self._tower, self.logits, self._shape(captions), rules, self._empty)
            self._kept = (wanted, made)
        return self._kept[1]

    def _shape(self, captions: int) -> tuple[int, int, int]:
        return self._slots, captions, self._tokens

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)
