"""Nucleus sampling, one step: logits to tokens, with noise given from outside."""

import torch

from capfilt.models.recipe import Nucleus


def processed_probabilities(
    logits: torch.Tensor, history: torch.Tensor, recipe: Nucleus, forbid: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the decoding recipe to one step's logits.

    Args:
        logits: (R, V) float, the model's scores for the next token.
        history: (R, t) int64, all tokens so far, prompt and start token included.
        recipe: repetition penalty, temperature, top_k, top_p, applied in transformers' order.
        forbid: a token that may not come yet (the end, before min_length), or None.

    Returns:
        (probabilities, tokens), both (R, M), in descending order of probability; tokens outside
        the nucleus have probability 0, and equal logits stand in the order of their tokens.
    """
    scores = _penalised(logits.float(), history, recipe.repetition_penalty)
    if forbid is not None:
        scores[:, forbid] = -torch.inf
    scores = scores / recipe.temperature
    # A stable descending sort makes ties a matter of the vocabulary, not of the kernel.
    ordered, tokens = torch.sort(scores, dim=-1, descending=True, stable=True)
    if recipe.top_k:
        ordered, tokens = ordered[:, : recipe.top_k], tokens[:, : recipe.top_k]
    probabilities = torch.softmax(ordered.double(), dim=-1)
    mass_above = torch.cumsum(probabilities, dim=-1) - probabilities
    kept = probabilities.masked_fill(mass_above >= recipe.top_p, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True), tokens


def pick(probabilities: torch.Tensor, tokens: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution at `noise` (R,) in [0, 1); returns tokens (R,)."""
    cumulative = torch.cumsum(probabilities, dim=-1)
    index = (cumulative <= noise[:, None] * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return tokens.gather(1, index.clamp(max=tokens.shape[1] - 1)).squeeze(1)


def _penalised(logits: torch.Tensor, history: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make tokens of the history less likely (Keskar et al. 2019, section 4.1)."""
    if penalty == 1.0:
        return logits.clone()
    seen = logits.gather(1, history)
    seen = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits.scatter(1, history, seen)
