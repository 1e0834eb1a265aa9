"""The three trainings of a round: pre-training, the captioner, the filter (BLIP, section 3.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capfilt.models.compute.transfer import indices, to_device
from capfilt.train.data.batch import Batch, normalised
from capfilt.train.data.tokens import Special, caption_texts, filter_texts, pair_ids, prompt_tokens
from capfilt.train.model.med import Med
from capfilt.train.model.momentum import Momentum
from capfilt.train.model.objective import (
    Pairs,
    before_step,
    caption_loss,
    filter_losses,
    step_generator,
)
from capfilt.train.recipe import FineTuneCaptioner, FineTuneFilter, Itc, Itm, Lm, Pretrain

Recipe = Pretrain | FineTuneCaptioner | FineTuneFilter
Losses = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class At:
    """Where a part of a step stands: everything that is drawn depends on it, and on the seed."""

    step: int
    part: int
    rank: int


class Job(nn.Module):
    """A MED with the losses of one training; calling it is what data parallelism wraps.

    `momentum` is there where ITC is. All of it is in `state_dict`.
    """

    def __init__(self, med: Med, tokenizer: Any, recipe: Recipe) -> None:  # untyped classes
        super().__init__()
        self.med, self._tokenizer, self.recipe = med, tokenizer, recipe
        self._special = Special.of(tokenizer, med.config.text_config)
        itc: Itc | None = getattr(recipe, "itc", None)
        self.momentum = Momentum(med, itc.queue_size) if itc is not None else None
        lm: Lm | None = getattr(recipe, "lm", None)
        self._given = prompt_tokens(tokenizer, lm.prompt, recipe.max_tokens) if lm else 0

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that get gradients."""
        if isinstance(self.recipe, FineTuneCaptioner):
            return self.med.captioner_parameters()
        if isinstance(self.recipe, FineTuneFilter):
            return self.med.matcher_parameters()
        both = [*self.med.captioner_parameters(), *self.med.matcher_parameters()]
        return list({id(parameter): parameter for parameter in both}.values())

    def before_step(self) -> None:
        """Do what comes once before each step of the optimiser."""
        itc: Itc | None = getattr(self.recipe, "itc", None)
        if self.momentum is not None and itc is not None:
            before_step(self.med, self.momentum, itc)

    def forward(self, batch: Batch, at: At) -> Losses:
        """Return the losses of a batch, each a scalar; their sum is what is minimised."""
        device = self.med.temperature.device
        pixels = to_device(torch.from_numpy(normalised(batch.pixels)), device)
        states = self.med.encode_image(pixels)
        found: Losses = {}
        if self.momentum is not None:
            found |= self._contrast_and_match(batch, pixels, states, at)
        lm: Lm | None = getattr(self.recipe, "lm", None)
        if lm is not None:
            longest = self.recipe.max_tokens
            said, count = _captions(batch)
            captions = caption_texts(self._tokenizer, lm.prompt, said, longest).to(device)
            found["lm"] = caption_loss(
                self.med, captions, states, self._special, lm, self._given, count
            )
        return found

    def _contrast_and_match(
        self, batch: Batch, pixels: torch.Tensor, states: torch.Tensor, at: At
    ) -> Losses:
        recipe = self.recipe
        if self.momentum is None or isinstance(recipe, FineTuneCaptioner):
            raise RuntimeError("a captioner has neither ITC nor ITM")
        itc: Itc = recipe.itc
        itm: Itm = recipe.itm
        refuted = [place for place, text in enumerate(batch.hard_negatives) if text]
        said = [*batch.texts, *filter(None, batch.hard_negatives)]
        texts = filter_texts(self._tokenizer, said, recipe.max_tokens).to(states.device)
        ids = to_device(pair_ids(batch.keys, batch.texts), states.device)
        losses = filter_losses(
            self.med,
            self.momentum,
            Pairs(pixels, texts, ids, indices(refuted, states.device)),
            states,
            self._special,
            itc,
            itm,
            itc.alpha_at(at.step),
            step_generator(recipe.seed, at.step * 1000 + at.part, at.rank),
        )
        return {"itc": losses.itc, "itm": losses.itm}


def _captions(batch: Batch) -> tuple[list[str], int]:
    """Return the texts that LM sees, those of an image side by side, and how many it has."""
    if not batch.others:
        return list(batch.texts), 1
    told = zip(batch.texts, batch.others, strict=True)
    return [text for own, others in told for text in (own, *others)], 1 + len(batch.others[0])


def save_results(job: Job, folder: Path, processors: Callable[[Path], None]) -> None:
    """Write what a training is for into `folder`: `med`, `captioner` and `matcher`, or one of them.

    `processors` puts tokenizer and preprocessing beside the weights.
    """
    roles: list[tuple[str, Callable[[Path], None]]] = []
    if isinstance(job.recipe, Pretrain):
        roles.append(("med", job.med.save))
    if not isinstance(job.recipe, FineTuneFilter):
        roles.append(("captioner", job.med.export_captioner))
    if not isinstance(job.recipe, FineTuneCaptioner):
        roles.append(("matcher", job.med.export_matcher))
    for name, save in roles:
        (folder / name).mkdir(parents=True, exist_ok=True)
        save(folder / name)
        processors(folder / name)
