"""What a training is, apart from model and data: frozen, hashable, and importable without torch.

Defaults are BLIP's (arXiv 2201.12086, section 4.1 and appendix A; where the paper is silent, the
authors' configuration files). One thing differs: every phase decays by a cosine, where BLIP's
pre-training multiplied the rate by 0.9 after each epoch, which has no meaning for a stream.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from capfilt.errors import InputError

Vit = Literal["base", "large"]


@dataclass(frozen=True, slots=True)
class Itc:
    """Image-text contrast with momentum features, queue and soft targets (section 3.2; ALBEF).

    `queue_size` features of earlier steps are negatives. `alpha` is the share of the soft targets;
    it rises linearly from 0 over `alpha_ramp_steps` (BLIP: the first epoch). The temperature is
    learnt from `temperature` on and held within `temperature_range`. A `queue_size` of 0 leaves
    the features of the step itself.
    """

    queue_size: int = 57_600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_ramp_steps: int = 0
    temperature: float = 0.07
    temperature_range: tuple[float, float] = (0.001, 0.5)

    def __post_init__(self) -> None:
        _check(self.queue_size >= 0, f"queue_size is {self.queue_size}; it must be 0 or more")
        _share("momentum", self.momentum)
        _share("alpha", self.alpha)
        ramp = self.alpha_ramp_steps
        _check(ramp >= 0, f"alpha_ramp_steps is {ramp}; it must be 0 (none) or more")
        low, high = self.temperature_range
        _check(
            0.0 < low <= self.temperature <= high < math.inf,
            f"temperature {self.temperature} is not within its range {low} to {high}, "
            "which must be above 0",
        )

    def alpha_at(self, step: int) -> float:
        """Return the share of the soft targets at `step`, counted from 0."""
        if not self.alpha_ramp_steps:
            return self.alpha
        return self.alpha * min(1.0, step / self.alpha_ramp_steps)


@dataclass(frozen=True, slots=True)
class Itm:
    """Image-text matching (section 3.2): each pair against hard negatives drawn by ITC similarity.

    `hard_texts` and `hard_images` an own pair; BLIP has one of each, 1 positive to 2 negatives.
    """

    hard_texts: int = 1
    hard_images: int = 1

    def __post_init__(self) -> None:
        _check(
            min(self.hard_texts, self.hard_images) >= 0 and self.hard_texts + self.hard_images > 0,
            f"{self.hard_texts} hard texts and {self.hard_images} hard images; "
            "without negatives there is nothing to tell apart",
        )


@dataclass(frozen=True, slots=True)
class Lm:
    """Language modelling (section 3.2): cross entropy with smoothed labels, the prompt masked."""

    label_smoothing: float = 0.1
    prompt: str = "a picture of "

    def __post_init__(self) -> None:
        _check(
            0.0 <= self.label_smoothing < 1.0,
            f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)",
        )


@dataclass(frozen=True, slots=True)
class Optim:
    """AdamW with linear warm-up to `peak_lr`, then a cosine to `min_lr_factor` of it.

    `batch_size` counts the samples of one step of the optimiser, over all processes and over the
    `accumulate` parts that it is computed in. `clip` bounds the norm of the gradient; None: not.
    """

    peak_lr: float
    steps: int
    batch_size: int
    warmup_steps: int = 0
    min_lr_factor: float = 0.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    accumulate: int = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        _above_zero("peak_lr", self.peak_lr)
        for name in ("steps", "batch_size", "accumulate"):
            value: int = getattr(self, name)
            _check(value >= 1, f"{name} is {value}; it must be at least 1")
        _check(
            0 <= self.warmup_steps <= self.steps,
            f"{self.warmup_steps} warm-up steps do not fit into {self.steps} steps",
        )
        _share("min_lr_factor", self.min_lr_factor)
        decay = self.weight_decay
        _check(0.0 <= decay < math.inf, f"weight_decay is {decay}; it must be 0 or more")
        _check(
            all(0.0 <= beta < 1.0 for beta in self.betas),
            f"betas are {self.betas}; both must be in [0, 1)",
        )
        if self.clip is not None:
            _above_zero("clip", self.clip)
        self.micro_batch(1)

    def micro_batch(self, processes: int) -> int:
        """Return how many samples one process takes at once.

        Raises:
            InputError: the batch cannot be shared equally.
        """
        parts = processes * self.accumulate
        _check(
            self.batch_size % parts == 0,
            f"a batch of {self.batch_size} cannot be shared equally by {processes} processes in "
            f"{self.accumulate} parts; give a multiple of {parts}",
        )
        return self.batch_size // parts

    def learning_rate(self, step: int) -> float:
        """Return the rate of `step`, counted from 0; the peak is that of step `warmup_steps`."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        height = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.peak_lr * (self.min_lr_factor + (1.0 - self.min_lr_factor) * height)


@dataclass(frozen=True, slots=True)
class Pretrain:
    """Pre-training of MED with ITC + ITM + LM, of equal weight (section 3.2).

    `side` is that of the square images in pixels, `captions_per_image` how many texts of an image
    LM sees at once (BLIP: one). `seed` starts everything that is drawn. Texts are cut after
    `max_tokens`, those of ITC and ITM after 35 at the latest, as the filter's are.
    """

    optim: Optim
    itc: Itc = field(default_factory=Itc)
    itm: Itm = field(default_factory=Itm)
    lm: Lm = field(default_factory=Lm)
    side: int = 224
    captions_per_image: int = 1
    seed: int = 0
    max_tokens: int = 40

    def __post_init__(self) -> None:
        _sizes(self.side, self.captions_per_image, self.max_tokens)

    @classmethod
    def blip(cls, pairs: int, vit: Vit = "base", epochs: int = 20, seed: int = 0) -> "Pretrain":
        """Return BLIP's recipe for a list of `pairs` pairs: batch 2880 (ViT-L 2400), 20 epochs."""
        peak, batch = (3e-4, 2880) if vit == "base" else (2e-4, 2400)
        steps = _steps(pairs, epochs, batch)
        optim = Optim(peak, steps, batch, min(3000, steps // 10), min_lr_factor=1e-6 / peak)
        return cls(optim, Itc(alpha_ramp_steps=_steps(pairs, 1, batch)), seed=seed)


@dataclass(frozen=True, slots=True)
class FineTuneCaptioner:
    """Fine-tuning of a captioner on human pairs with LM alone (section 3.3)."""

    optim: Optim
    lm: Lm = field(default_factory=Lm)
    side: int = 384
    captions_per_image: int = 1
    seed: int = 0
    max_tokens: int = 40

    def __post_init__(self) -> None:
        _sizes(self.side, self.captions_per_image, self.max_tokens)

    @classmethod
    def blip(
        cls, pairs: int, vit: Vit = "base", epochs: int = 5, seed: int = 0
    ) -> "FineTuneCaptioner":
        """Return BLIP's recipe: batch 256, 5 epochs, rate 1e-5 (ViT-L 2e-6)."""
        optim = Optim(1e-5 if vit == "base" else 2e-6, _steps(pairs, epochs, 256), 256)
        return cls(optim, seed=seed)


@dataclass(frozen=True, slots=True)
class FineTuneFilter:
    """Fine-tuning of a filter on human pairs with ITC + ITM (section 3.3)."""

    optim: Optim
    itc: Itc = field(default_factory=Itc)
    itm: Itm = field(default_factory=Itm)
    side: int = 384
    seed: int = 0
    max_tokens: int = 40

    def __post_init__(self) -> None:
        _sizes(self.side, 1, self.max_tokens)

    @classmethod
    def blip(
        cls, pairs: int, vit: Vit = "base", epochs: int = 6, seed: int = 0
    ) -> "FineTuneFilter":
        """Return BLIP's recipe: batch 256, 6 epochs, rate 1e-5 (ViT-L 5e-6)."""
        optim = Optim(1e-5 if vit == "base" else 5e-6, _steps(pairs, epochs, 256), 256)
        return cls(optim, Itc(alpha_ramp_steps=_steps(pairs, 1, 256)), seed=seed)


def _steps(pairs: int, epochs: int, batch: int) -> int:
    _check(pairs >= 1, f"{pairs} pairs; there must be at least one to train on")
    _check(epochs >= 1, f"{epochs} epochs; there must be at least one")
    return math.ceil(pairs * epochs / batch)


def _sizes(side: int, captions: int, tokens: int) -> None:
    _check(side >= 1, f"side is {side} pixels; it must be at least 1")
    _check(tokens >= 3, f"max_tokens is {tokens}; a text of one word has 3 with its ends")
    _check(captions >= 1, f"captions_per_image is {captions}; it must be at least 1")


def _share(name: str, value: float) -> None:
    _check(0.0 <= value <= 1.0, f"{name} is {value}; it must be in [0, 1]")


def _above_zero(name: str, value: float) -> None:
    _check(0.0 < value < math.inf, f"{name} is {value}; it must be above 0")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
