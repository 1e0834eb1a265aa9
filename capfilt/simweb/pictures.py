"""Which picture lies at which address, and its bytes: pure functions of (seed, row)."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from random import Random
from typing import TypeVar

from PIL import Image

from capfilt.simweb.corruption import AltText, Copy, Noise
from capfilt.simweb.faults import Fault
from capfilt.simweb.render import render, to_jpeg
from capfilt.simweb.scenes import sample_scene

_PLACES = {Copy.ORIGINAL: "img", Copy.SAME_BYTES: "cdn", Copy.NEAR: "thumb"}
_PATH = re.compile(r"/(?:img|cdn|thumb)/([0-9]{9,15})\.jpg", re.ASCII)

Outcome = TypeVar("Outcome", AltText, Copy, Fault)


@dataclass(frozen=True, slots=True)
class Picture:
    """One address of the simulated web and what lies there.

    The scene of row `scene_index` is drawn at `width` × `height` pixels; a near copy is then
    cropped by `crop` (share of each side, [0, 0.04]) and resized by `scale` ([0.7, 1.3]).
    """

    path: str
    scene_index: int
    copy: Copy
    duplicate_of: int | None  # the earlier row that this one copies
    fault: Fault
    width: int
    height: int
    quality: int  # of the JPEG, [40, 95]
    crop: float = 0.0
    scale: float = 1.0


def rng_of(seed: int, purpose: str, index: int) -> Random:
    """Return a generator that depends on nothing but its three arguments."""
    digest = blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def draw(rng: Random, shares: Sequence[tuple[Outcome, float]], rest: Outcome) -> Outcome:
    """Return one outcome by its share in [0, 1]; `rest` has what the shares leave."""
    bounds = _cumulated(tuple(share for _, share in shares))
    place = bisect_right(bounds, rng.random())
    return shares[place][0] if place < len(shares) else rest


@lru_cache(maxsize=64)
def _cumulated(shares: tuple[float, ...]) -> list[float]:
    return list(accumulate(shares))


def picture_of(seed: int, index: int, noise: Noise) -> Picture:
    """Return the picture at the address of row `index` (0 or more)."""
    rng = rng_of(seed, "picture", index)
    copy, fault = _draws(rng, noise)
    if copy is not Copy.ORIGINAL:
        earlier = _earlier(rng, seed, index, noise, any_health=copy is Copy.SAME_URL)
        if earlier is not None:
            return _copied(rng, copy, index, picture_of(seed, earlier, noise))
    width, height = draw_size(rng, noise)
    path = f"/{_PLACES[Copy.ORIGINAL]}/{index:09d}.jpg"
    quality = rng.randint(60, 95)
    return Picture(path, index, Copy.ORIGINAL, None, fault, width, height, quality)


def find_picture(seed: int, path: str, noise: Noise) -> Picture | None:
    """Return the picture whose address is `path`, or None where the web has no such address."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    picture = picture_of(seed, int(match[1]), noise)
    return picture if picture.path == path else None


def index_in(path: str) -> int | None:
    """Return the row number that an address of the web names, or None for other addresses."""
    match = _PATH.fullmatch(path)
    return int(match[1]) if match else None


def image_bytes(seed: int, picture: Picture) -> bytes:
    """Draw the picture as a JPEG file; its fault, if any, is the server's to play."""
    rng = rng_of(seed, "render", picture.scene_index)
    scene = sample_scene(seed, picture.scene_index)
    image = render(scene, picture.width, picture.height, rng)
    if picture.copy is Copy.NEAR:
        image = _reworked(image, picture)
    return to_jpeg(image, picture.quality)


def _draws(rng: Random, noise: Noise) -> tuple[Copy, Fault]:
    """Make the first two draws of a row, those that `_earlier` asks of other rows."""
    return draw(rng, noise.copies, Copy.ORIGINAL), draw(rng, noise.faults, Fault.NONE)


def _earlier(rng: Random, seed: int, index: int, noise: Noise, *, any_health: bool) -> int | None:
    """Pick a row before `index` that is no copy itself; None where eight tries find none."""
    for _ in range(8 if index else 0):
        other = rng.randrange(index)
        copy, fault = _draws(rng_of(seed, "picture", other), noise)
        if copy is Copy.ORIGINAL and (any_health or fault is Fault.NONE):
            return other
    return None


def _copied(rng: Random, copy: Copy, index: int, original: Picture) -> Picture:
    found = replace(original, copy=copy, duplicate_of=original.scene_index)
    if copy is Copy.SAME_URL:
        return found
    found = replace(found, path=f"/{_PLACES[copy]}/{index:09d}.jpg")
    if copy is Copy.SAME_BYTES:
        return found
    return replace(
        found, quality=rng.randint(40, 90), crop=rng.uniform(0, 0.04), scale=rng.uniform(0.7, 1.3)
    )


def draw_size(rng: Random, noise: Noise) -> tuple[int, int]:
    """Return (width, height) in pixels: most 96 to 400 a side, some tiny, some banners."""
    place = rng.random()
    if place < noise.tiny:
        return rng.randint(12, 60), rng.randint(12, 60)
    if place < noise.tiny + noise.banner:
        height = rng.randint(64, 120)
        return round(height * rng.uniform(3.0, 5.0)), height
    width = rng.randint(96, 400)
    return width, min(400, max(96, round(width * rng.uniform(0.66, 1.5))))


def _reworked(image: Image.Image, picture: Picture) -> Image.Image:
    left, top = round(picture.width * picture.crop), round(picture.height * picture.crop)
    cropped = image.crop((left, top, picture.width - left, picture.height - top))
    width, height = round(picture.width * picture.scale), round(picture.height * picture.scale)
    return cropped.resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC)
