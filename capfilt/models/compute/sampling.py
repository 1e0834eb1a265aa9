"""Nucleus sampling, one step: logits to tokens, with noise given from outside."""

from typing import Final

import torch

from capfilt.models.recipe import Nucleus

_GROUP: Final = 16


def processed_probabilities(
    logits: torch.Tensor,
    history: torch.Tensor,
    recipe: Nucleus,
    forbid: int | None,
    where: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the decoding recipe to one step's logits.

    Args:
        logits: (R, V) float, the model's scores for the next token.
        history: (R, t) int64, all tokens so far, prompt and start token included.
        recipe: repetition penalty, temperature, top_k, top_p, applied in transformers' order.
        forbid: a token that may not come yet (the end, before min_length), or None.
        where: (R,) bool, the rows that `forbid` holds for; None: all of them.

    Returns:
        (probabilities, tokens), both (R, M), in descending order of probability; tokens outside
        the nucleus have probability 0 (and may be named twice), and equal logits stand in the
        order of their tokens.
    """
    scores, tokens = _candidates(logits, history, recipe)
    if forbid is not None:
        barred = tokens == forbid
        scores = scores.masked_fill(
            barred if where is None else barred & where[:, None], -torch.inf
        )
    # Candidates stand in the order of their tokens, so a stable sort leaves equal ones in it.
    ordered, places = torch.sort(scores, dim=-1, descending=True, stable=True)
    tokens = tokens.gather(1, places)
    if recipe.top_k:
        ordered, tokens = ordered[:, : recipe.top_k], tokens[:, : recipe.top_k]
    ordered = ordered / recipe.temperature
    probabilities = torch.softmax(ordered.double(), dim=-1)
    mass_above = torch.cumsum(probabilities, dim=-1) - probabilities
    kept = probabilities.masked_fill(mass_above >= recipe.top_p, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True), tokens


def pick(probabilities: torch.Tensor, tokens: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution at `noise` (R,) in [0, 1); returns tokens (R,)."""
    cumulative = torch.cumsum(probabilities, dim=-1)
    index = (cumulative <= noise[:, None] * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return tokens.gather(1, index.clamp(max=tokens.shape[1] - 1)).squeeze(1)


def _candidates(
    logits: torch.Tensor, history: torch.Tensor, recipe: Nucleus
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scores, tokens) among which the `top_k` are, tokens ascending, a repeated one -inf.

    These are the largest `top_k` (one more, since one may be forbidden) of the tokens that are not
    in the history, and those of the history, which the repetition penalty makes less likely
    (Keskar et al. 2019, section 4.1). So the penalty costs a few entries, not the vocabulary.
    """
    fresh = logits.scatter(1, history, -torch.inf)
    tokens = torch.cat([_largest(fresh, recipe.top_k + 1), history], dim=1).sort(dim=1).values
    scores = logits.gather(1, tokens).float()
    seen = (tokens[:, :, None] == history[:, None, :]).any(-1)
    penalty = recipe.repetition_penalty
    penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
    repeated = torch.nn.functional.pad(tokens[:, 1:] == tokens[:, :-1], (1, 0))
    return torch.where(seen, penalised, scores).masked_fill(repeated, -torch.inf), tokens


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the places (R, count) of each row's largest scores; all of them where count is 1.

    A wide row is first reduced to the maxima of groups: the largest `count` lie in the `count`
    groups of the largest maxima.
    """
    rows, width = scores.shape
    if count == 1 or count >= width:
        return torch.arange(width, device=scores.device).expand(rows, width)
    groups = width // _GROUP
    if groups < 4 * count:
        return scores.topk(count, sorted=False).indices
    body = scores[:, : groups * _GROUP].view(rows, _GROUP, groups)
    best = body.amax(1).topk(count, sorted=False).indices
    members = torch.arange(_GROUP, device=scores.device)[:, None] * groups
    rest = torch.arange(groups * _GROUP, width, device=scores.device).expand(rows, -1)
    places = torch.cat([(best[:, None] + members).flatten(1), rest], dim=1)
    return places.gather(1, scores.gather(1, places).topk(count, sorted=False).indices)
