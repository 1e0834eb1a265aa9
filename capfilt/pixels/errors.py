"""What is accepted of a picture, and why it is not: kinds and stable words, never a decoder's."""

from dataclasses import dataclass
from typing import Final, Literal

# No picture above this is decoded, whatever is configured: 2^27 pixels, 11,585 squared.
MOST_PIXELS: Final = 1 << 27

Kind = Literal[
    "not_an_image",
    "truncated_image",
    "corrupt_image",
    "unsupported_image",
    "unsupported_samples",
    "too_many_pixels",
    "too_small",
    "extreme_aspect",
]
Broken = Literal["truncated_image", "corrupt_image"]


class UnusablePicture(ValueError):
    """A picture that cannot be had: a word of `stages/failures.py`, and a few stable words."""

    def __init__(self, kind: Kind, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind, self.words = kind, words


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is accepted, from the header alone. Sides in pixels; aspect: longer over shorter."""

    least_side: int = 0
    most_pixels: float = MOST_PIXELS
    most_aspect: float = float("inf")

    def check(self, width: int, height: int) -> None:
        """Raise UnusablePicture where a picture of this size is not accepted."""
        if min(width, height) < max(1, self.least_side):
            raise UnusablePicture("too_small", "image too small")
        if width * height > min(self.most_pixels, MOST_PIXELS):
            raise UnusablePicture("too_many_pixels", "image area too large")
        if max(width, height) > self.most_aspect * min(width, height):
            raise UnusablePicture("extreme_aspect", "aspect ratio too large")


def broken_picture(kind: Broken, form: str) -> UnusablePicture:
    """Return the error of a picture that is cut off or damaged."""
    ends = kind == "truncated_image"
    words = "ends in the middle" if ends else "cannot be decoded"
    return UnusablePicture(kind, f"the {form} {words}")
