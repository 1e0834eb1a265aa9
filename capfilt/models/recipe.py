"""What a model run is, apart from the model: frozen, hashable, and importable without torch."""

from dataclasses import dataclass, field
from typing import Literal

from capfilt.errors import InputError
from capfilt.fingerprint import NOT_IDENTITY

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A checkpoint. Its identity is the digest of its files; where they lie is not.

    `name` is what the user gave (a folder, a hub name, `embedded`), `path` the folder that it
    resolved to, `digest` the SHA-256 over the names and contents of its files.
    """

    digest: str
    name: str = field(metadata=NOT_IDENTITY)
    path: str = field(metadata=NOT_IDENTITY)


@dataclass(frozen=True, slots=True)
class Nucleus:
    """Nucleus sampling (Holtzman et al. 2019), with BLIP's figures as defaults.

    At each step the logits pass, in this order, repetition penalty, minimum length, temperature,
    top_k, top_p, as in transformers. `top_k` 0 switches it off; 50 is what BLIP's authors ran
    with, since it was their library's default.
    """

    top_p: float = 0.9
    top_k: int = 50
    temperature: float = 1.0
    repetition_penalty: float = 1.1

    def __post_init__(self) -> None:
        _check(0.0 < self.top_p <= 1.0, f"top_p is {self.top_p}; it must be in (0, 1]")
        _check(self.top_k >= 0, f"top_k is {self.top_k}; it must be 0 (off) or more")
        _check(self.temperature > 0.0, f"temperature is {self.temperature}; it must be above 0")
        _check(self.repetition_penalty > 0.0, "repetition_penalty must be above 0")


@dataclass(frozen=True, slots=True)
class Beam:
    """Beam search; the K best beams are the K captions. BLIP compares with 3 beams (Table 2)."""

    num_beams: int = 3
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check(self.num_beams >= 1, f"num_beams is {self.num_beams}; it must be at least 1")
        _check(self.repetition_penalty > 0.0, "repetition_penalty must be above 0")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Caption lengths in tokens, the prompt and its start token included."""

    min_length: int = 5
    max_length: int = 20

    def __post_init__(self) -> None:
        _check(
            0 <= self.min_length <= self.max_length,
            f"lengths {self.min_length} to {self.max_length} are not a range",
        )


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
