"""One step's losses: which texts and images meet in which use of MED (BLIP, Figure 2)."""

from typing import NamedTuple

import torch

from capfilt.train.data.randomness import rng_of
from capfilt.train.data.tokens import Special, Texts
from capfilt.train.model.collective import gathered, gathered_features
from capfilt.train.model.losses import (
    IGNORED,
    Features,
    Negatives,
    draw_negatives,
    itc_loss,
    itm_loss,
    lm_labels,
    lm_loss,
    positives,
    similarities,
)
from capfilt.train.model.med import Med
from capfilt.train.model.momentum import Momentum
from capfilt.train.recipe import Itc, Itm, Lm


class Pairs(NamedTuple):
    """B image-text pairs: normalised pixels (B, 3, side, side), texts, and ids (B, 2).

    `refuted` (M,): images that M further texts at the end of `texts` are false of.
    """

    pixels: torch.Tensor
    texts: Texts
    ids: torch.Tensor
    refuted: torch.Tensor | None = None


class FilterLosses(NamedTuple):
    """Scalars."""

    itc: torch.Tensor
    itm: torch.Tensor


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Return the draws of one step: a function of its arguments, so a resume has the same."""
    generator = torch.Generator()
    return generator.manual_seed(rng_of("negatives", seed, step, rank).getrandbits(63))


def filter_losses(
    med: Med,
    momentum: Momentum,
    pairs: Pairs,
    states: torch.Tensor,
    special: Special,
    itc: Itc,
    itm: Itm,
    alpha: float,
    generator: torch.Generator,
) -> FilterLosses:
    """Return ITC and ITM of pairs whose image states (B, N, D) are at hand; feeds the queue.

    Keys and queue are of all processes, hard negatives of this one, as in BLIP. The caller has
    clamped the temperature and moved the momentum copy (`before_step`).
    """
    own = pairs.texts.first(len(pairs.ids))
    plain = med.encode_text(own.headed(special.cls), own.mask)
    features = Features(med.image_features(states), med.text_features(plain))
    slow = momentum.features(pairs.pixels, own.headed(special.cls), own.mask)
    fresh, ids = gathered_features(slow), gathered(pairs.ids)
    keys, key_ids = momentum.keys(fresh, ids)
    contrast = itc_loss(features, slow, keys, positives(pairs.ids, key_ids), med.temperature, alpha)
    momentum.enqueue(fresh, ids)
    with torch.no_grad():
        to_text, to_image = similarities(features, slow, med.temperature)
        drawn = draw_negatives(
            to_text,
            to_image,
            positives(pairs.ids, pairs.ids),
            generator,
            itm.hard_texts,
            itm.hard_images,
        )
    every, weight = _with_given(drawn, pairs)
    grounded = pairs.texts.headed(special.enc)[every.text]
    logits = med.match(grounded, pairs.texts.mask[every.text], states, every.image)
    return FilterLosses(contrast, itm_loss(logits, every.label, weight))


def _with_given(drawn: Negatives, pairs: Pairs) -> tuple[Negatives, float]:
    """Add the negatives that the data have; matches weigh as much more as there are negatives."""
    if pairs.refuted is None or not len(pairs.refuted):
        return drawn, 1.0
    count = len(pairs.refuted)
    texts = torch.arange(count, device=drawn.text.device) + len(pairs.ids)
    every = Negatives(
        torch.cat([drawn.image, pairs.refuted]),
        torch.cat([drawn.text, texts]),
        torch.cat([drawn.label, torch.zeros_like(texts)]),
    )
    before = max(1, len(drawn.label) - len(pairs.ids))
    return every, (before + count) / before


def before_step(med: Med, momentum: Momentum, itc: Itc) -> None:
    """Clamp the temperature and move the momentum copy: once before a step of the optimiser."""
    med.clamp_temperature(*itc.temperature_range)
    momentum.update(med, itc.momentum)


def caption_loss(
    med: Med,
    captions: Texts,
    states: torch.Tensor,
    special: Special,
    lm: Lm,
    given: int,
    captions_per_image: int = 1,
) -> torch.Tensor:
    """Return LM of captions (B * K, L) on image states (B, N, D); the first `given` tokens given.

    Only places with a label meet the vocabulary.
    """
    ids = captions.headed(special.dec)
    labels = lm_labels(ids, captions.mask, given)
    decoded = med.decode_states(ids, states, captions_per_image)
    # Asked once: the host waits for a GPU to say how many there are.
    wanted = (labels != IGNORED).nonzero(as_tuple=True)
    return lm_loss(med.vocabulary_logits(decoded[wanted]), labels[wanted], lm.label_smoothing)
