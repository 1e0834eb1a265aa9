"""How dirty the simulated web is: shares of rows, each with a default from common experience."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Self

from capfilt.errors import InputError
from capfilt.simweb.faults import Fault


class AltText(StrEnum):
    """What kind of text stands beside a picture."""

    TRUE = "true"
    MISMATCHED = "mismatched"  # a caption of another picture, false of this one
    WRONG_ATTRIBUTE = "wrong_attribute"  # one attribute of a true caption is wrong
    TRUNCATED = "truncated"  # a true caption cut off
    OTHER_LANGUAGE = "other_language"  # true, but not English
    BOILERPLATE = "boilerplate"  # "click here to enlarge"
    FILE_NAME = "file_name"  # "IMG_2034.JPG"
    EMPTY = "empty"
    HOSTILE = "hostile"  # script, formula, control characters, endless or bidirectional text


class Copy(StrEnum):
    """How the address of a row relates to those of the rows before it."""

    ORIGINAL = "original"  # a picture of its own
    SAME_URL = "same_url"  # the address of an earlier row
    SAME_BYTES = "same_bytes"  # another address, the same file
    NEAR = "near"  # another address, re-encoded, resized and slightly cropped


_COMMON_FAULTS = (
    (Fault.NOT_FOUND, 0.05),
    (Fault.REFUSED, 0.01),
    (Fault.FORBIDDEN, 0.01),
    (Fault.GONE, 0.005),
    (Fault.TOO_MANY, 0.003),
    (Fault.FLAKY, 0.02),
    (Fault.REDIRECT, 0.02),
    (Fault.REDIRECT_LOOP, 0.002),
    (Fault.HTML, 0.01),
    (Fault.BROKEN_JPEG, 0.005),
    (Fault.HALF_JPEG, 0.005),
    (Fault.EMPTY, 0.003),
    (Fault.TRUNCATED, 0.004),
    (Fault.RESET, 0.003),
    (Fault.SLOW, 0.004),
    (Fault.TEXT_PLAIN, 0.005),
    (Fault.NO_AI, 0.005),
)


@dataclass(frozen=True, slots=True)
class Noise:
    """Shares in [0, 1] of three independent draws a row: its text, its address, its picture.

    Within one draw the shares add up to at most 1; the rest is a true caption, a picture of its
    own, a healthy address. A row whose address is a copy of an earlier one has that one's
    health. Raises InputError where shares are negative or add up to more than 1.
    """

    mismatched: float = 0.15
    wrong_attribute: float = 0.12
    truncated: float = 0.05
    other_language: float = 0.05
    boilerplate: float = 0.10
    file_name: float = 0.07
    empty: float = 0.02
    hostile: float = 0.02

    same_url: float = 0.02
    same_bytes: float = 0.03
    near: float = 0.05

    faults: tuple[tuple[Fault, float], ...] = _COMMON_FAULTS
    tiny: float = 0.02  # pictures of 12 to 60 pixels, too small to learn from
    banner: float = 0.01  # pictures three to five times wider than high

    def __post_init__(self) -> None:
        shape = (("tiny", self.tiny), ("banner", self.banner))
        for draw in (self.texts, self.copies, self.faults, shape):
            shares = [share for _, share in draw]
            if min(shares, default=0.0) < 0 or sum(shares) > 1 + 1e-9:
                listed = ", ".join(f"{name} {share}" for name, share in draw)
                raise InputError(
                    f"noise shares {listed}: each must be 0 or more and their sum at most 1"
                )

    @property
    def texts(self) -> tuple[tuple[AltText, float], ...]:
        """Shares of the kinds of alt text other than TRUE."""
        return tuple((kind, getattr(self, kind)) for kind in AltText if kind is not AltText.TRUE)

    @property
    def copies(self) -> tuple[tuple[Copy, float], ...]:
        """Shares of the kinds of address other than ORIGINAL."""
        return tuple((copy, getattr(self, copy)) for copy in Copy if copy is not Copy.ORIGINAL)

    def scaled(self, factor: float) -> Self:
        """Return the same mixture with every share times `factor`; 0 gives a clean web."""
        shares = {
            f.name: getattr(self, f.name) * factor for f in fields(self) if f.name != "faults"
        }
        return replace(self, faults=tuple((f, s * factor) for f, s in self.faults), **shares)
