"""The momentum copy of ITC's encoders and its queues (ALBEF, arXiv 2107.07651, section 3.2)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from capfilt.train.model.losses import Features
from capfilt.train.model.med import Med
from capfilt.train.model.towers import text_states, vision_states


class Momentum(nn.Module):
    """A slow copy of what ITC needs: image encoder, text encoder alone, and projections.

    Names of parameters are those of `Med`. Copy, queues and their place are all in `state_dict`,
    so that a training that goes on has the same keys. Nothing here takes gradients.
    """

    image_queue: torch.Tensor
    text_queue: torch.Tensor
    id_queue: torch.Tensor
    written: torch.Tensor

    def __init__(self, med: Med, queue_size: int, id_columns: int = 2) -> None:
        super().__init__()
        self.vision_model = copy.deepcopy(med.vision_model)
        self.text_encoder = _unimodal(med.text_encoder)
        self.vision_proj = copy.deepcopy(med.vision_proj)
        self.text_proj = copy.deepcopy(med.text_proj)
        self.requires_grad_(False)
        like, width = self.vision_proj.weight, self.vision_proj.out_features
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, like.new_zeros(queue_size, width, dtype=torch.float32))
        ids = torch.zeros(queue_size, id_columns, dtype=torch.long, device=like.device)
        self.register_buffer("id_queue", ids)
        self.register_buffer("written", torch.zeros((), dtype=torch.long, device=like.device))

    @torch.no_grad()
    def update(self, med: Med, momentum: float) -> None:
        """Move every weight: momentum * slow + (1 - momentum) * fast; once a step."""
        for name, slow in self.named_parameters():
            slow.mul_(momentum).add_(med.get_parameter(name), alpha=1.0 - momentum)

    @torch.no_grad()
    def features(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> Features:
        """Return the slow features (B, d) of pixels (B, 3, side, side) and texts (B, L)."""
        image = self.vision_proj(vision_states(self.vision_model, pixels)[:, 0])
        text = self.text_proj(text_states(self.text_encoder, ids, mask, None)[:, 0])
        return Features(normalize(image.float(), dim=-1), normalize(text.float(), dim=-1))

    @property
    def filled(self) -> int:
        """How many keys the queue holds."""
        return min(int(self.written), len(self.id_queue))

    def keys(self, fresh: Features, ids: torch.Tensor) -> tuple[Features, torch.Tensor]:
        """Return `fresh` (G, d) with `ids` (G, C), and after them what the queue holds.

        BLIP fills its queue with random features to begin with; here it begins empty.
        """
        held = self.filled
        image = torch.cat([fresh.image, self.image_queue[:held]])
        text = torch.cat([fresh.text, self.text_queue[:held]])
        return Features(image, text), torch.cat([ids, self.id_queue[:held]])

    @torch.no_grad()
    def enqueue(self, fresh: Features, ids: torch.Tensor) -> None:
        """Put features (G, d) and ids (G, C) over the oldest; G need not divide the queue."""
        size, count = len(self.id_queue), len(ids)
        kept = min(size, count)
        if kept:
            start = self.written + (count - kept)
            places = (torch.arange(kept, device=ids.device) + start) % size
            self.image_queue[places] = fresh.image[-kept:].float()
            self.text_queue[places] = fresh.text[-kept:].float()
            self.id_queue[places] = ids[-kept:]
        self.written += count


def _unimodal(encoder: Any) -> Any:
    """Return a copy without cross-attention, which a text alone never passes."""
    made = copy.deepcopy(encoder)
    for layer in made.encoder.layer:
        del layer.crossattention
    return made
