"""Features of all processes, where there are several."""

import torch
from torch import distributed

from capfilt.train.model.losses import Features


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes (world * B, ...) in order of rank, without gradients.

    Every process gives the same number of rows. Alone, these are its own.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor.detach()
    own = tensor.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    return torch.cat(parts)


def gathered_features(features: Features) -> Features:
    """Return the features of all processes."""
    return Features(gathered(features.image), gathered(features.text))
