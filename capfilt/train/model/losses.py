"""The three losses of BLIP (arXiv 2201.12086, section 3.2) as functions of tensors.

ITC is ALBEF's (arXiv 2107.07651, equations 2 and 6): a momentum copy of the encoders gives the
keys and the soft targets.
"""

from typing import Final, NamedTuple

import torch
from torch.nn.functional import cross_entropy, log_softmax, softmax

from capfilt.models.compute.transfer import to_device

IGNORED: Final = -100
_EVERY_NEGATIVE: Final = 1e-4  # so that even one that is far from similar can be drawn


class Features(NamedTuple):
    """L2-normalised ITC features: images (B, d) and texts (B, d), row by row of one pair."""

    image: torch.Tensor
    text: torch.Tensor


class Negatives(NamedTuple):
    """Pairs for ITM: `image` and `text` (M,) are rows of the batch, `label` (M,) is 1 for a match.

    First the B own pairs, then hard texts, then hard images.
    """

    image: torch.Tensor
    text: torch.Tensor
    label: torch.Tensor


def positives(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Say which pairs belong together: (B, K) bool of ids (B, C) and (K, C), int64.

    Each column is an identity, of the image and of the caption: rows that agree in any column are
    positives of each other. So neither another caption of the same image nor another image with
    the same caption is called a negative.
    """
    return (own[:, None] == others[None]).any(dim=-1)


def similarities(
    features: Features, keys: Features, temperature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image-to-text and text-to-image similarities (B, K) by the temperature, fp32."""
    with torch.autocast(features.image.device.type, enabled=False):
        scale = temperature.float()
        to_text = features.image.float() @ keys.text.float().T / scale
        to_image = features.text.float() @ keys.image.float().T / scale
    return to_text, to_image


def itc_loss(
    features: Features,
    slow: Features,
    keys: Features,
    positive: torch.Tensor,
    temperature: torch.Tensor,
    alpha: float,
) -> torch.Tensor:
    """Return the image-text contrastive loss, a scalar (ALBEF, equation 6).

    `features` (B, d) are the model's, `slow` (B, d) the momentum copy's of the same pairs, `keys`
    (K, d) those of all pairs to tell apart: the momentum copy's of this step and of the queue.
    `positive` (B, K) says which keys are right; each row has at least one. The target is `alpha`
    parts what the momentum copy thinks, and 1 - `alpha` parts the right keys, in equal shares.
    """
    hard = positive.float() / positive.sum(dim=1, keepdim=True)
    with torch.no_grad():
        thought = similarities(slow, keys, temperature)
        targets = [alpha * softmax(each, dim=1) + (1.0 - alpha) * hard for each in thought]
    found = similarities(features, keys, temperature)
    losses = [
        -(log_softmax(each, dim=1) * target).sum(dim=1).mean()
        for each, target in zip(found, targets, strict=True)
    ]
    return (losses[0] + losses[1]) / 2


def draw_negatives(
    to_text: torch.Tensor,
    to_image: torch.Tensor,
    positive: torch.Tensor,
    generator: torch.Generator,
    hard_texts: int = 1,
    hard_images: int = 1,
) -> Negatives:
    """Draw what each pair is confused with, in proportion to softmax similarity (section 3.2).

    `to_text` and `to_image` (B, B) are similarities within the batch, `positive` (B, B) what must
    not be drawn. An image that every text of the batch fits has no hard text: its own text stands
    there once more, labelled as the match that it is. The draws are `generator`'s alone, on its
    device.
    """
    own = torch.arange(len(positive), device=positive.device)
    text = _draw(to_text, positive, hard_texts, generator)
    image = _draw(to_image, positive, hard_images, generator)
    images = torch.cat([own, own.repeat(hard_texts), image])
    texts = torch.cat([own, text, own.repeat(hard_images)])
    return Negatives(images, texts, positive[images, texts].long())


def _draw(
    similarity: torch.Tensor, positive: torch.Tensor, times: int, generator: torch.Generator
) -> torch.Tensor:
    """Return (times * B,) columns, row after row, `times` over."""
    if not times:
        return torch.empty(0, dtype=torch.long, device=positive.device)
    chances = softmax(similarity.detach().float(), dim=1) + _EVERY_NEGATIVE
    chances = chances.masked_fill(positive, 0.0)
    nothing = positive.all(dim=1, keepdim=True)
    chances = torch.where(nothing, torch.eye(len(chances), device=chances.device), chances)
    drawn = torch.multinomial(
        chances.to(generator.device), times, replacement=True, generator=generator
    )
    return to_device(drawn, positive.device).T.flatten()


def itm_loss(logits: torch.Tensor, label: torch.Tensor, match_weight: float = 1.0) -> torch.Tensor:
    """Return the image-text matching loss, a scalar: logits (M, 2), label (M,) 1 for a match.

    The mean over pairs, where a match counts `match_weight` times.
    """
    weight = to_device(torch.tensor([1.0, match_weight]), logits.device)
    return cross_entropy(logits.float(), label, weight=weight)


def lm_labels(ids: torch.Tensor, mask: torch.Tensor, prompt_tokens: int) -> torch.Tensor:
    """Return what to predict at each place, (R, L): the next token, or `IGNORED`.

    ids (R, L), mask (R, L) true at tokens. `prompt_tokens` first tokens, [DEC] among them, are
    given, not predicted; nor is padding.
    """
    labels = torch.full_like(ids, IGNORED)
    real = mask.bool()[:, 1:].clone()
    real[:, : prompt_tokens - 1] = False
    labels[:, :-1] = ids[:, 1:].masked_fill(~real, IGNORED)
    return labels


def lm_loss(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return the language-modelling loss, a scalar: the mean over places that have a label.

    logits (..., V) and labels (...) as `lm_labels` gives them. Smoothing gives `label_smoothing`
    of the target to all V tokens equally. Without any label it is 0.
    """
    total = cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten(),
        label_smoothing=label_smoothing,
        ignore_index=IGNORED,
        reduction="sum",
    )
    return total / (labels != IGNORED).sum().clamp(min=1)
