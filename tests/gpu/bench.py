"""What the questions share: the models that are asked, their work, and how time is taken."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from capfilt.models.blip import BlipCaptioner, BlipMatcher
from capfilt.models.checkpoints import resolve_model
from capfilt.models.protocols import Pixels
from capfilt.models.recipe import CaptionerRecipe, Lengths, ModelRef, Nucleus, Precision
from tests.benchmarks.checkpoints import Architecture, save_pair

PROMPT: Final = "a picture of"
LENGTHS: Final = Lengths(20, 20)  # every caption as long as may be: what costs most
_WORDS: Final = 9  # of a text that is matched


@dataclass(slots=True)
class Findings:
    """What a question came to: lines for a person, figures for a machine, and what must not be."""

    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Add a line, and print it, so that a run that is cut off has said what it knew."""
        self.lines.append(line)
        print(line, flush=True)

    def expect(self, holds: bool, what: str) -> None:
        """Say whether something holds that must."""
        self.say(f"  {'ok  ' if holds else 'FAIL'} {what}")
        if not holds:
            self.faults.append(what)


@dataclass(frozen=True)
class Bench:
    """A device, a pair of models on disk, and work for them."""

    device: str
    architecture: Architecture
    folder: Path
    images: int
    rows: int

    def prepare(self) -> None:
        """Write the models, with random weights."""
        save_pair(self.architecture, self.folder, device=self.device)

    def ref(self, role: str) -> ModelRef:
        """Return a model of the pair."""
        return self._refs[role]

    @cached_property
    def _refs(self) -> dict[str, ModelRef]:
        return {r: resolve_model(str(self.folder / r), r) for r in ("captioner", "matcher")}

    def captioner(
        self, captions: int, precision: Precision, decoding: Nucleus | None = None
    ) -> BlipCaptioner:
        """Return our captioner."""
        recipe = CaptionerRecipe(
            self.ref("captioner"),
            decoding=decoding or Nucleus(),
            num_captions=captions,
            lengths=LENGTHS,
            prompt=PROMPT,
            precision=precision,
        )
        return BlipCaptioner(recipe, self.device)

    def matcher(self, precision: Precision, itm_token: str = "enc") -> BlipMatcher:
        """Return our filter."""
        return BlipMatcher(self.ref("matcher"), itm_token, self.device, precision)

    def pixels(self, count: int) -> list[Pixels]:
        """Return pictures of noise, at the models' side."""
        rng = np.random.default_rng(0)
        return [rng.integers(0, 255, (384, 384, 3), dtype=np.uint8) for _ in range(count)]

    def texts(self, count: int, each: int) -> list[list[str]]:
        """Return texts of one length."""
        rng = np.random.default_rng(1)
        return [
            [" ".join(f"w{n}" for n in rng.integers(0, 30_000, _WORDS)) for _ in range(each)]
            for _ in range(count)
        ]


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """Return the median time of some calls after one that warms up, the device's work included."""
    taken = []
    for _ in range(times + 1):
        settle()
        began = time.perf_counter()
        work()
        settle()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def settle() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give memory that nobody holds back to the device, and forget the peak."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    """Return the most memory that torch has held since `free`, in GB."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
